"""A T5 that somebody trained: flan-t5-small in both libraries, and back again."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from fivefold import T5Model

GERMAN = ("translate English to German: The house is wonderful.", "Das Haus ist wunderbar.")
SENTENCES = [
    GERMAN[0],
    "translate English to German: I would like a cup of coffee.",
    "summarize: The meeting was moved from Monday to Friday because the speaker was ill and no one else could speak.",
]


@pytest.fixture(scope="module")
def models(real_t5):
    theirs = T5ForConditionalGeneration.from_pretrained(real_t5, dtype=torch.float32).eval()
    ours = T5Model.from_pretrained(real_t5, dtype=torch.float32).eval()
    return theirs, ours, AutoTokenizer.from_pretrained(real_t5)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 4}, {"use_cache": False}])
def test_it_says_the_same_word_for_word(models, arguments):
    theirs, ours, tokenizer = models
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "max_new_tokens": 24}
    expected, got = (model.generate(**inputs, **arguments) for model in (theirs, ours))
    assert torch.equal(got, expected)
    assert tokenizer.decode(got[0], skip_special_tokens=True) == GERMAN[1]


def test_it_round_trips_through_both_libraries(models, tmp_path):
    _, ours, tokenizer = models
    ours.save_pretrained(tmp_path / "ours")
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours")
    back.save_pretrained(tmp_path / "theirs")
    again = T5Model.from_pretrained(tmp_path / "theirs")
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    for name in ("tie_word_embeddings", "scale_decoder_outputs", "feed_forward_proj", "num_heads", "d_kv"):
        assert getattr(again.config, name) == getattr(ours.config, name), name
    batch = tokenizer(SENTENCES[:1], return_tensors="pt")
    labels = torch.tensor([[3, 4, 5, 1]])
    torch.testing.assert_close(back(**batch, labels=labels).logits, again(**batch, labels=labels).logits)
