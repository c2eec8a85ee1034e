import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fivefold.errors import DataError
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.training.distributed import Processes
from fivefold.training.loop import Evaluation, LoopState, Trainer, train
from fivefold.training.settings import LoopSettings
from fivefold.training.telemetry import Telemetry

SETTINGS = LoopSettings("run", num_training_steps=1, dtype="float32", eval_every=1)
# Losses of single tokens, in batches of 4, 1 and 2.
BATCHES = [[1.0, 2.0, 3.0, 4.0], [8.0], [0.5, 1.5]]


class GivenLosses:
    """An objective whose batches are their tokens' losses; the model only multiplies them."""

    unit, others = "tokens", ()

    def count(self, batch: Batch) -> int:
        return batch["losses"].numel()

    def count_tokens(self, batch: Batch) -> TokenCounts:
        return TokenCounts(self.count(batch), self.count(batch))

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        total = model(batch["losses"]).sum()
        return LossTerms(total, total.detach())


class Times(nn.Module):
    """Multiplies by a number that trains, and while training by 2."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, losses: Tensor) -> Tensor:
        return losses * self.factor * (2 if self.training else 1)


@dataclass(frozen=True)
class BesideAnother(Processes):
    """One of two processes, of which the other measures the same sums."""

    def sum(self, *values: float | Tensor) -> list[float]:
        return [2 * float(value) for value in values]


def trainer_of(factor: float = 1.0, processes: Processes | None = None) -> Trainer:
    model = Times(factor)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.0, "base_lr": 0.0}])
    alone = Processes(0, 1, torch.device("cpu"))
    return Trainer(model, GivenLosses(), optimizer, lambda _: 1.0, 0.0, SETTINGS, processes or alone)


def evaluate(trainer: Trainer, batches: list[list[float]]) -> Evaluation:
    return trainer.evaluate(iter([{"losses": torch.tensor(batch)} for batch in batches]))


def test_perplexities_of_unequal_batches_worked_out_by_hand():
    measured = evaluate(trainer_of(), BATCHES)
    assert measured.num_terms == 7
    assert measured.loss == pytest.approx(20 / 7)  # (1 + 2 + 3 + 4 + 8 + .5 + 1.5) / 7
    assert measured.perplexity == pytest.approx(math.exp(20 / 7))
    assert measured.galore_perplexity == pytest.approx(math.exp((2.5 + 8 + 1) / 4))  # three means over 3 + 1


def test_galores_number_is_lower_than_the_perplexity_of_equal_batches_and_comes_near_with_their_number():
    few, many = (evaluate(trainer_of(), [[3.0, 3.0]] * count) for count in (4, 400))
    assert few.perplexity == many.perplexity == pytest.approx(math.exp(3))
    assert few.galore_perplexity == pytest.approx(math.exp(3 * 4 / 5))
    assert many.galore_perplexity == pytest.approx(math.exp(3 * 400 / 401))


def test_several_processes_add_one_batch_once():
    measured = evaluate(trainer_of(processes=BesideAnother(0, 2, torch.device("cpu"))), BATCHES)
    assert measured.num_terms == 14
    assert measured.loss == pytest.approx(20 / 7)
    assert measured.galore_perplexity == pytest.approx(math.exp(2 * 11.5 / 7))


def test_a_large_loss_is_an_infinite_perplexity_and_null_in_the_log(tmp_path):
    trainer = trainer_of(factor=1e3)
    measured = evaluate(trainer, BATCHES)
    assert measured.loss == pytest.approx(20_000 / 7)
    assert measured.perplexity == measured.galore_perplexity == math.inf
    assert evaluate(trainer_of(factor=math.inf), BATCHES).perplexity == math.inf
    with Telemetry(tmp_path, 1, SETTINGS) as telemetry:
        steps = iter([([{"losses": torch.ones(1)}], {})])
        train(trainer, steps, LoopState(), SETTINGS, telemetry, lambda: measured, lambda state, eval_loss: None)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 1]
    assert lines[0]["eval_perplexity"] is lines[0]["eval_galore_perplexity"] is None
    assert lines[0]["eval_loss"] == pytest.approx(20_000 / 7)


def test_the_loop_logs_what_was_measured(tmp_path, capsys):
    measured = Evaluation(2.0, 70, 1.8)
    with Telemetry(tmp_path, 1, SETTINGS) as telemetry:
        steps = iter([([{"losses": torch.ones(1)}], {})])
        saved = []
        train(
            trainer_of(), steps, LoopState(), SETTINGS, telemetry, lambda: measured,
            lambda state, eval_loss: saved.append(eval_loss),
        )  # fmt: skip
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    del line["seconds"]
    assert line == {
        "step": 1,
        "eval_loss": 2.0,
        "eval_tokens": 70,
        "eval_perplexity": math.exp(2.0),
        "eval_galore_perplexity": math.exp(1.8),
    }
    assert saved == [2.0]
    assert "held-out loss 2.0000, perplexity 7.3891 (6.0496 as GaLore counts), 70 tokens" in capsys.readouterr().err


def test_held_out_data_without_a_target_are_one_sentence():
    for batches in ([], [[]]):
        with pytest.raises(DataError, match="hold no target token"):
            evaluate(trainer_of(), batches)


def test_the_model_trains_on_after_an_evaluation():
    trainer = trainer_of()
    trainer.model.train()
    assert evaluate(trainer, [[1.0]]).loss == 1.0
    assert trainer.model.training
