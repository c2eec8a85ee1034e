"""What a T5 writes for a text does not depend on the texts beside it: greedy, in a padded batch and alone."""

import pytest
import torch

from fivefold import T5Config, T5Model

LENGTHS = (1, 5, 12, 7, 3)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position", ["relative_bias", "rope", "alibi", "adaptive_alibi", "none"])
def test_in_a_padded_batch_as_alone(position, use_cache):
    torch.manual_seed(2)
    config = T5Config(vocab_size=64, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, position=position)
    model = T5Model(config).double().eval()
    with torch.no_grad():  # a fresh model says the same whatever it is asked
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    texts = [torch.randint(2, 64, (length,)) for length in LENGTHS]
    settings = {"max_new_tokens": 15, "do_sample": False, "use_cache": use_cache, "no_repeat_ngram_size": 2}
    alone = [model.generate(input_ids=text[None], **settings)[0] for text in texts]
    together = model.generate(
        input_ids=torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        attention_mask=torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None],
        **settings,
    )
    assert len({tuple(answer.tolist()) for answer in alone}) == len(LENGTHS)
    for one, row in zip(alone, together, strict=True):
        assert row[: len(one)].tolist() == one.tolist()
        assert (row[len(one) :] == 0).all()
