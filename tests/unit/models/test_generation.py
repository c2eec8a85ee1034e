"""Decoders continue their prompts, however these are batched."""

import pytest
import torch

from fivefold.errors import DataError
from fivefold.lowrank.settings import LowRankSettings
from fivefold.models.build import build_model
from fivefold.models.generation import generate
from fivefold.models.settings import ModelSettings

THIN = LowRankSettings(loro_scope="all", loro_attn_rank=4, loro_mlp_rank=6)


@pytest.fixture(scope="module", params=["full", "thin"])
def decoder(request, shapes, tokenizer):
    """Large weights, so that it does not say the same to everything."""
    settings = ModelSettings(model_config=shapes["llama"])
    low_rank = THIN if request.param == "thin" else LowRankSettings()
    model, _ = build_model(settings, low_rank, tokenizer, 0, default_init="spectral")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval()


@pytest.mark.parametrize("changes", [{}, {"num_beams": 3}, {"repetition_penalty": 1.5}], ids=str)
def test_continuations_are_those_of_transformers(changes, decoder, tokenizer, lines):
    texts = [line[: 3 + 7 * number] for number, line in enumerate(lines[:5])]
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :-1]  # the tokenizer ends texts, as T5's do
        tokens = decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            suppress_tokens=list(range(500, 512)),
            max_new_tokens=9,
            **changes,
        )
        expected.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert len(set(expected)) == len(texts)
    for batch_size in (1, 2, 5):
        results = list(generate(decoder, tokenizer, texts, batch_size, max_new_tokens=9, **changes))
        assert [result["input"] for result in results] == texts
        assert [result["input"] + result["output"] for result in results] == expected


def test_an_empty_prompt_begins_a_document(decoder, tokenizer):
    ids = torch.tensor([[tokenizer.eos_token_id]])
    tokens = decoder.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), suppress_tokens=list(range(500, 512)), max_new_tokens=5
    )
    expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
    results = generate(decoder, tokenizer, ["", "a b"], 2, max_new_tokens=5)
    assert next(results) == {"input": "", "output": expected}


def test_blanks_are_for_t5(decoder, tokenizer):
    with pytest.raises(DataError, match="'a ___ b' has a blank, which only a T5 fills in"):
        list(generate(decoder, tokenizer, ["a b", "a ___ b"], 1, max_new_tokens=5))
