"""benchmarks/t5_faults.py on invented answers: each fault changes something, and the checks find what they should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from fivefold.data.loader import tensors
from fivefold.data.pairs import EncodedSource
from fivefold.training.optimizers import build_optimizer

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    import t5_faults
    from faulty_loops import LOOPS, RIGHT, train_step
    from loop_checks import CHECKS, failed_checks

VOCAB = 1024
FAULTS = {name: loop for group, loops in LOOPS.items() if group != "nothing" for name, loop in loops.items()}
# By hand: A the loss alone, B the first loss, C what a label moves, D the prompt, E padding, F one step, G the network.
FOUND_BY = {
    "T5's own start, 3.3 times as large": "",
    "output layer tied to N(0, 1) embeddings, not scaled": "B",
    "output layer of its own, N(0, 1)": "B",
    "all weights as torch draws them": "",
    "scores not divided, q drawn like k": "",
    "scores divided, q drawn smaller as well": "G",
    "no norms": "G",
    "no final norms": "G",
    "no residual connections": "CFG",  # one label is as good as another, so that half of the decoder learns nothing
    "no positions": "DG",
    "positions in the first layer only": "G",
    "decoder does not see the encoder": "DFG",
    "cross-attention's padding mask upside down": "EG",
    "no causal mask": "CEG",  # E: the padding of answers is seen as well
    "blocks in a plain list, unknown to the optimizer": "F",
    "labels not shifted": "CG",
    "labels shifted twice": "CG",
    "padding counts as labels": "AE",
    "softmax before cross_entropy": "A",
    "logits [T, B], labels [B, T]": "AE",
    "8 micro-batches added up, not divided": "B",
    "zero_grad between backward and step": "F",
    "no zero_grad": "F",
    "AdamW, 1e-3, output layer tied, not scaled": "B",
}


@pytest.fixture(scope="module")
def source() -> EncodedSource:
    """48 prompts of 8 to 20 tokens, each its own answer."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(3, VOCAB, generator.integers(8, 21)) for _ in range(48)]
    ended = [np.append(text, 1) for text in texts]
    return EncodedSource(ended, ended, pad_id=0, seed=0, shuffle=False)


@pytest.fixture(scope="module")
def batch(source) -> dict[str, torch.Tensor]:
    return tensors(source.batch(np.arange(8)))


def printed(loop, batch: dict[str, torch.Tensor]) -> list[float]:
    model = loop.build(VOCAB).train()
    optimizer = build_optimizer(model, loop.optimizer)
    return [train_step(loop, model, optimizer, batch, loop.rate(step, 20)) for step in range(3)]


@pytest.fixture(scope="module")
def right_losses(batch) -> list[float]:
    return printed(RIGHT, batch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_what_is_printed_within_three_steps(fault, batch, right_losses):
    losses = printed(FAULTS[fault], batch)
    assert max(abs(one - other) for one, other in zip(losses, right_losses, strict=True)) > 1e-5


@pytest.mark.parametrize("fault", FAULTS)
def test_the_checks_find_what_can_be_seen_before_training(fault, batch):
    loop = FAULTS[fault]
    assert failed_checks(loop, loop.build(VOCAB), batch) == FOUND_BY.get(fault, "")


def test_nothing_is_wrong_with_a_right_t5(batch):
    for name, loop in LOOPS["nothing"].items():
        assert failed_checks(loop, loop.build(VOCAB), batch) == "", name
    assert isinstance(LOOPS["nothing"]["transformers' T5"].build(VOCAB), T5ForConditionalGeneration)


def test_its_table_and_picture(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(t5_faults, "VOCAB", VOCAB)
    monkeypatch.setattr(t5_faults, "HELD_OUT", 16)
    monkeypatch.setattr(t5_faults, "reviews", lambda: t5_faults.Task(source, source, 4.5))
    rows = ["fivefold's T5", "decoder does not see the encoder", "labels not shifted"]
    monkeypatch.setattr("sys.argv", ["t5_faults.py", "--work", str(tmp_path), "--steps", "20", "--rows", *rows])
    t5_faults.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [line[1] for line in lines] == rows
    assert lines[1][5] == "+0.00"  # nothing but the prompt changes, which nobody reads
    assert lines[1][6].strip(" |") == "D F G"
    assert (tmp_path / "t5_faults.png").stat().st_size > 10_000
    assert set("".join(FOUND_BY.values())) == set(CHECKS)
