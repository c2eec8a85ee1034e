"""Supervised fine-tuning of a T5 against transformers' T5, whose loss is a mean over a micro-batch."""

import numpy as np
import pytest
import torch
from transformers import T5Config as TheirConfig
from transformers import T5ForConditionalGeneration

from fivefold import T5Config, T5Model
from fivefold.data.dialogues import encode_dialogues
from fivefold.data.examples import PackedSource
from fivefold.data.loader import tensors
from fivefold.data.pairs import EncodedSource
from fivefold.data.settings import DialogueSettings
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings
from fivefold.tokenizer.chat_format import ChatFormat
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

SHAPE = {"vocab_size": 420, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
LENGTH = 64


def _examples():
    settings = TokenizerSettings("", vocab_size=400, num_sentinels=20)
    chat = ChatFormat(train_tokenizer([" ".join(WORDS)] * 4, settings).tokenizer, "t5")
    talks = [
        [
            {"role": ("user", "assistant")[turn % 2], "content": " ".join(WORDS[: 1 + (turn + size) % 7])}
            for turn in range(turns)
        ]
        for size, turns in enumerate([2, 4, 2, 6, 2, 4, 2, 2])
    ]
    inputs, labels = zip(*encode_dialogues(talks, DialogueSettings(input_length=LENGTH), chat), strict=True)
    return EncodedSource(inputs, labels, pad_id=0, seed=0, shuffle=False)


@pytest.mark.parametrize("is_packed", [False, True])
def test_loss_and_gradients_are_those_of_transformers_once_its_accumulation_is_corrected(is_packed):
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(TheirConfig(**SHAPE, decoder_start_token_id=0)).double()
    ours = T5Model(T5Config(**SHAPE)).double()
    # They store the shared table under four names.
    ours.load_state_dict({name: theirs.state_dict()[name] for name in ours.state_dict()})
    source = _examples()
    number = source.samples_per_epoch
    # Two micro-batches of unequal numbers of answers and tokens; a Trainer would give both the same weight.
    halves = [tensors(source.batch(np.arange(start, stop))) for start, stop in ((0, 4), (4, number))]
    counts = [int((half["labels"] != -100).sum()) for half in halves]
    assert len(set(counts)) == 2
    loss = sum(theirs(**half).loss * count for half, count in zip(halves, counts, strict=True)) / sum(counts)
    loss.backward()

    objective = Seq2SeqObjective(LossSettings(z_loss=0.0))
    rows = PackedSource(source, (LENGTH, LENGTH)) if is_packed else source
    batches = [tensors(rows.batch(np.arange(rows.samples_per_epoch)))] if is_packed else halves
    total = sum(map(objective.count, batches))
    assert total == sum(counts)
    mine = sum(objective(ours, batch).loss_sum for batch in batches) / total
    mine.backward()
    torch.testing.assert_close(mine, loss)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")
