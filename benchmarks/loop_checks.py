"""Questions that a network and its loss answer before any training, all together in a second.

A right T5 passes all of them. `same_as_transformers` alone expects transformers' names of weights.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from faulty_loops import SHAPE, Batch, Loop, shifted_inputs, train_step
from torch import Tensor, nn

from fivefold.training.optimizers import build_optimizer

PLACE = 5
"""The label that is changed to see what it moves."""


def right_logits_lose_nothing(loop: Loop, model: Any, batch: Batch) -> bool:
    """Logits of 100 for every label and 0 elsewhere have a loss of 0, whatever stands where there is no label."""
    logits = torch.zeros(*batch["labels"].shape, model.config.vocab_size, dtype=torch.float64)
    logits[..., 1] = 100.0
    is_label = batch["labels"] >= 0
    logits[is_label] = 0.0
    logits[is_label, batch["labels"][is_label]] = 100.0
    return loop.loss(logits, batch["labels"]).item() < 1e-3


def starts_at_guessing(loop: Loop, model: Any, batch: Batch) -> bool:
    """The first loss is within a fifth of ln(vocabulary)."""
    first = loop.loss(_logits(loop, model, batch), batch["labels"]).item()
    return math.isclose(first, math.log(model.config.vocab_size), rel_tol=0.2)


def label_reaches_the_next_place(loop: Loop, model: Any, batch: Batch) -> bool:
    """Another label moves the logits behind it and none before: the first that move are those of the next place."""
    other = _copied(batch)
    other["labels"][:, PLACE] = (other["labels"][:, PLACE] + 1) % model.config.vocab_size
    return _moved(loop, model, batch, other).any(0).tolist()[: PLACE + 2] == [False] * (PLACE + 1) + [True]


def answer_depends_on_prompt(loop: Loop, model: Any, batch: Batch) -> bool:
    """Another row's prompt moves the first logits of every row, and so does the prompt's own text read backwards."""
    other, backwards = _copied(batch), _copied(batch)
    for name in {"input_ids", "attention_mask"} & set(batch):
        other[name] = batch[name].roll(1, 0)
    for row in backwards["input_ids"]:
        length = int((row != 0).sum())
        row[:length] = row[:length].flip(0)
    return all(bool(_moved(loop, model, batch, changed)[:, 0].all()) for changed in (other, backwards))


def padding_changes_nothing(loop: Loop, model: Any, batch: Batch) -> bool:
    """Eight more columns of padding on both sides leave the loss where it was, to rounding."""
    wider = {
        "input_ids": nn.functional.pad(batch["input_ids"], (0, 8)),
        "attention_mask": nn.functional.pad(batch.get("attention_mask", torch.ones_like(batch["input_ids"])), (0, 8)),
        "labels": nn.functional.pad(batch["labels"], (0, 8), value=-100),
    }
    losses = [loop.loss(_logits(loop, model, some), some["labels"]).item() for some in (batch, wider)]
    return math.isclose(*losses, rel_tol=1e-9)


def step_moves_everything(loop: Loop, model: Any, batch: Batch) -> bool:
    """One step changes each tensor that the network computes with, and leaves no gradient for the next one."""
    trained = deepcopy(model)
    train_step(loop, trained, build_optimizer(trained, loop.optimizer), batch, 1.0)
    has_stayed = any(map(torch.equal, model.state_dict().values(), trained.state_dict().values()))
    return not has_stayed and all(weight.grad is None for weight in trained.parameters())


def same_as_transformers(loop: Loop, model: Any, batch: Batch) -> bool:
    """transformers' T5 has the same logits with the same weights, to rounding."""
    import transformers

    names = ("vocab_size", *(name for name in SHAPE if name not in ("tie_word_embeddings", "initializer_factor")))
    config = {name: getattr(model.config, name) for name in names}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**config, decoder_start_token_id=0))
    theirs.config.scale_decoder_outputs = model.config.scale_decoder_outputs  # transformers would always scale
    theirs.lm_head = nn.Linear(config["d_model"], config["vocab_size"], bias=False)
    theirs.double().eval().load_state_dict(model.state_dict(), strict=False)
    expected = theirs(**shifted_inputs(theirs, batch)).logits
    return torch.allclose(_logits(loop, model, batch), expected, atol=1e-6)  # transformers' norms stay in float32


CHECKS: dict[str, Callable[[Loop, Any, Batch], bool]] = {
    "A": right_logits_lose_nothing,
    "B": starts_at_guessing,
    "C": label_reaches_the_next_place,
    "D": answer_depends_on_prompt,
    "E": padding_changes_nothing,
    "F": step_moves_everything,
    "G": same_as_transformers,
}


def failed_checks(loop: Loop, model: Any, batch: Batch) -> str:
    """The letters of the checks that the loop fails; the network stays as it is."""
    exact = deepcopy(model).double().train()  # so that rounding is far below what a fault changes
    return "".join(letter for letter, passes in CHECKS.items() if not passes(loop, exact, batch))


def _logits(loop: Loop, model: Any, batch: Batch) -> Tensor:
    return model(**loop.inputs(model, batch)).logits


def _moved(loop: Loop, model: Any, batch: Batch, other: Batch) -> Tensor:
    """Which logits differ, [B, T]."""
    return (_logits(loop, model, batch) - _logits(loop, model, other)).abs().amax(-1) > 1e-9


def _copied(batch: Batch) -> Batch:
    return {name: tensor.clone() for name, tensor in batch.items()}
