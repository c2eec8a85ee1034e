"""The training loop: it knows steps, not stages."""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from fivefold.adapters.gradients import check_gradients
from fivefold.data.loader import Step
from fivefold.errors import DataError, ModelError
from fivefold.lowrank.factor_optimizer import num_recovered
from fivefold.objectives.objective import Batch, LossTerms, Objective, TokenCounts
from fivefold.training.distributed import Processes
from fivefold.training.optimizers import set_lr
from fivefold.training.settings import LoopSettings
from fivefold.training.telemetry import Telemetry


@dataclass
class LoopState:
    """Where a run stands; with weights and optimizer state, all that a resumed run needs."""

    step: int = 0
    """Optimizer steps made."""
    tokens_seen: int = 0
    """By all processes."""
    source_state: dict[str, Any] = field(default_factory=dict)
    """Where a streaming data source stands; empty for the others."""


Observe: TypeAlias = Callable[[int], Mapping[str, float | str]]
"""Looks at the model after so many steps, dropout off, on every process. Of what it returns numbers are logged beside
the held-out loss and texts are shown by TensorBoard, each under its name."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has written a checkpoint."""


class Evaluation(NamedTuple):
    """What held-out data say about a model."""

    loss: float
    """Mean over all terms: in nats over target tokens, where these are what the objective counts."""
    num_terms: int
    """Target tokens, or whatever the objective counts."""
    galore_loss: float
    """Sum of the n batches' mean losses over n + 1, which GaLore's script and those made from it, such as LORO's, take
    for the mean. It depends on the batch size; it is here so that their tables can be compared with ours."""
    others: Mapping[str, float] = MappingProxyType({})
    """Means of what else the objective measures."""

    @property
    def perplexity(self) -> float:
        """e to the mean loss a token."""
        return _exp(self.loss)

    @property
    def galore_perplexity(self) -> float:
        """The perplexity that GaLore's script would print."""
        return _exp(self.galore_loss)


class Trainer:
    """Model, objective and optimizer, and the one step they make together.

    Args:
        model: as `processes.wrap` returned it.
        objective: batch and model to a loss sum and a count.
        optimizer: with base learning rates remembered, see `training.optimizers`.
        lr_factor: step to the factor on every learning rate.
        grad_clipping: largest global gradient norm; 0 for none.
        settings: dtype and seed are used here.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        lr_factor: Callable[[int], float],
        grad_clipping: float,
        settings: LoopSettings,
        processes: Processes,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.lr_factor = lr_factor
        self.max_norm = grad_clipping or math.inf
        self.seed = settings.seed
        self.dtype = getattr(torch, settings.dtype)
        # With pure_bf16 the weights have the products' type already, and autocast would only look them up.
        self.is_mixed = self.dtype != torch.float32 and not settings.pure_bf16
        self.processes = processes
        self._has_checked = False  # that each tensor of an adapter gets a gradient
        # Only float16 needs its loss scaled: its gradients underflow below 6e-8.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)

    def step(self, step: int, micro_batches: list[Batch], want_stop: bool) -> dict[str, float]:
        """One optimizer step on the micro-batches of this process.

        Returns:
            loss, grad_norm, learning_rate (the run's, see `set_lr`), the shares of positions that hold tokens, the
            objective's other means, num_tokens, and stop: 1 if any process wants to stop after this step.

        Raises:
            ModelError: loss or gradient is not finite; the optimizer has not moved.
        """
        tokens_of_batches = zip(*map(self.objective.count_tokens, micro_batches), strict=True)
        count, stop, *sums = self.processes.sum(
            sum(map(self.objective.count, micro_batches)), float(want_stop), *map(sum, tokens_of_batches)
        )
        tokens = TokenCounts(*map(int, sums))
        if count == 0:
            raise DataError(f"Step {step + 1} has no target {self.objective.unit}; the data hold empty targets only.")
        # Dropout follows from (seed, step, process), so a resumed run draws what the uninterrupted one would have.
        seeds = np.random.SeedSequence([self.seed, step, self.processes.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        lr = set_lr(self.optimizer, self.lr_factor(step))
        device = self.processes.device
        loss_sum = nll_sum = torch.zeros((), device=device)
        other_sums = torch.zeros(len(self.objective.others), device=device)
        for index, batch in enumerate(micro_batches):
            is_last = index + 1 == len(micro_batches)
            with nullcontext() if is_last else self.processes.without_sync(self.model):
                terms = self._terms(batch)
                # Divided before backward: an undivided sum would overflow float16. DDP takes the mean over processes.
                scaled = terms.loss_sum * (self.processes.world_size / count)
                self.scaler.scale(scaled).backward()
            loss_sum = loss_sum + terms.loss_sum.detach()
            nll_sum, other_sums = nll_sum + terms.nll_sum, other_sums + terms.other_sums.to(device)
        loss, nll, *means = (total / count for total in self.processes.sum(loss_sum, nll_sum, *other_sums))
        if not math.isfinite(loss):
            raise ModelError(_not_finite("loss", loss, step, self.dtype))
        if not self._has_checked:
            check_gradients(self.model)
            self._has_checked = True
        self.scaler.unscale_(self.optimizer)
        grad_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm))
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():  # the scaler skips such steps by itself
            raise ModelError(_not_finite("gradient norm", grad_norm, step, self.dtype))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        measured = {"loss": nll, "grad_norm": grad_norm, "learning_rate": lr, **tokens.nonpadding_fracs}
        measured |= dict(zip(self.objective.others, means, strict=True))
        return measured | {"num_tokens": tokens.total, "stop": stop}

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> Evaluation:
        """Measure plain losses over all processes' batches, with dropout off.

        Raises:
            DataError: the batches hold no target token.
        """
        self.model.eval()
        device = self.processes.device
        nll_sum = sum_of_means = torch.zeros((), device=device)
        other_sums = torch.zeros(len(self.objective.others), device=device)
        count = num_batches = 0
        for batch in batches:
            _, nll, others = self._terms(batch, getattr(self.model, "module", self.model))
            batch_count = self.objective.count(batch)
            nll_sum, sum_of_means = nll_sum + nll, sum_of_means + nll / max(1, batch_count)
            other_sums, count, num_batches = other_sums + others.to(device), count + batch_count, num_batches + 1
        self.model.train()
        sums = self.processes.sum(nll_sum, sum_of_means, count, num_batches, *other_sums)
        nll, batch_means, total, total_batches, *totals = sums
        if total == 0:
            raise DataError(
                f"The held-out data hold no target {self.objective.unit}; give more of them, or --eval_every 0."
            )
        means = {name: value / total for name, value in zip(self.objective.others, totals, strict=True)}
        return Evaluation(nll / total, int(total), batch_means / (total_batches + 1), means)

    def _terms(self, batch: Batch, model: nn.Module | None = None) -> LossTerms:
        device = self.processes.device
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(device.type, self.dtype, enabled=self.is_mixed):
            return self.objective(model or self.model, on_device)


def train(
    trainer: Trainer,
    steps: Iterator[Step],
    state: LoopState,
    settings: LoopSettings,
    telemetry: Telemetry,
    evaluate: Callable[[], Evaluation] | None,
    save: Callable[[LoopState, float | None], None],
    observe: Observe | None = None,
) -> LoopState:
    """Train from `state.step` to `settings.total_steps`.

    Args:
        steps: their micro-batches, beginning with those of step `state.step`.
        evaluate: measures on held-out data, or None without any.
        save: writes a checkpoint for a state and, if it was just measured, its held-out loss.
        observe: looks at more after each of its measurements, without gradients of its own.

    Returns:
        The state at the end.

    Raises:
        Interrupted: a signal came; a checkpoint of the last finished step is written.
        ModelError: a loss that is not finite; the last checkpoint stays as it is.
    """
    total = settings.total_steps

    def measure(step: int) -> float | None:
        if evaluate is None:
            return None
        with telemetry.paused("evaluating"):
            measured = evaluate()
            trainer.model.eval()
            observed = {} if observe is None else observe(step)
            trainer.model.train()
        perplexities = {"eval_perplexity": measured.perplexity, "eval_galore_perplexity": measured.galore_perplexity}
        others = {**measured.others, **{name: seen for name, seen in observed.items() if not isinstance(seen, str)}}
        telemetry.log_evaluation(
            step,
            eval_loss=measured.loss,
            **{f"eval_{trainer.objective.unit}": measured.num_terms},
            **(perplexities if trainer.objective.unit == "tokens" else {}),
            **{f"eval_{name}": value for name, value in others.items()},
        )
        telemetry.show_texts(step, {name: seen for name, seen in observed.items() if isinstance(seen, str)})
        return measured.loss

    trainer.model.train()
    if state.step == 0 and settings.eval_every:
        measure(0)
    with _stop_signals() as stop_requested:
        while state.step < total:
            micro_batches, source_state = next(steps)
            result = trainer.step(state.step, micro_batches, stop_requested())
            tokens_seen = state.tokens_seen + int(result.pop("num_tokens"))
            state = LoopState(state.step + 1, tokens_seen, source_state)
            is_last, must_stop = state.step == total, result.pop("stop") > 0
            telemetry.advance(state.step)
            if state.step % settings.log_every == 0 or is_last:
                recovered = num_recovered(trainer.optimizer)
                telemetry.log_step(state.step, **result, tokens_seen=tokens_seen, recovered_factors=recovered)
            eval_loss = measure(state.step) if is_last or _is_due(state.step, settings.eval_every) else None
            if is_last or must_stop or _is_due(state.step, settings.save_every):
                with telemetry.paused("saving"):
                    save(state, eval_loss)
            if must_stop and not is_last:
                raise Interrupted(f"stopped after step {state.step:,} of {total:,}; --resume goes on from there")
    return state


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # math.exp raises from 709.8 on


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(what: str, value: float, step: int, dtype: torch.dtype) -> str:
    remedy = (
        "use --dtype bfloat16, or a lower --lr" if dtype == torch.float16 else "use a lower --lr or more --warmup_steps"
    )
    return (
        f"The {what} of step {step + 1} is {value}; the optimizer has not moved and earlier checkpoints are untouched: "
        f"{remedy}."
    )


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current step; the second one acts at once."""
    requested = False
    previous: dict[int, Any] = {}

    def request(number: int, _: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        previous.clear()
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
