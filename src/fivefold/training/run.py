"""A run from settings to a finished model: resume, train, keep checkpoints, write the final folder."""

import json
import logging
import math
import shlex
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.data.batch_plan import plan_batches
from fivefold.data.loader import BatchLoader, evaluation_batches
from fivefold.data.settings import BatchSettings
from fivefold.data.source import Source
from fivefold.errors import CheckpointError, ConfigError
from fivefold.objectives.objective import Objective
from fivefold.training.checkpoint import (
    clean_leftovers,
    find_last_checkpoint,
    load_training_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
    save_final,
    verify_checkpoint,
)
from fivefold.training.distributed import Processes
from fivefold.training.loop import Evaluation, LoopState, Observe, Trainer, train
from fivefold.training.prediction import describe_cost
from fivefold.training.schedule import lr_factor, warmup_length
from fivefold.training.settings import LoopSettings, ScheduleSettings
from fivefold.training.step_cost import StepCost
from fivefold.training.telemetry import Telemetry, check_wandb

log = logging.getLogger("fivefold")

SETTINGS_NAME = "run.yaml"
# What may differ between a run and its continuation without a word.
_FREE_TO_CHANGE = {"resume", "output_dir", "log_every", "keep_last", "use_wandb", "wandb_project"}


def run_training(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    training: Source,
    validation: Source | None,
    batch: BatchSettings,
    optimizer: torch.optim.Optimizer,
    grad_clipping: float,
    schedule: ScheduleSettings,
    loop: LoopSettings,
    run_settings: dict[str, Any],
    processes: Processes,
    observe: Observe | None = None,
) -> None:
    """Train `model` in `loop.output_dir` until `loop.total_steps`, from the last checkpoint if there is one.

    Args:
        model: on the CPU; parameters that do not require a gradient stay as they are.
        optimizer: over its parameters.
        grad_clipping: largest global gradient norm; 0 for none.
        validation: held-out samples, or None.
        run_settings: every setting of the run, saved beside the weights.
        observe: looks at more after each measurement of the held-out loss.

    Raises:
        ConfigError: the folder holds another run, or the settings do not fit together.
        CheckpointError: the last checkpoint is damaged or of another model.
        Interrupted, ModelError: as `train`.
    """
    run_dir = Path(loop.output_dir)
    plan = plan_batches(batch, processes.world_size)
    checkpoint = _open_run_dir(run_dir, loop.resume, processes)
    if checkpoint is not None:
        load_weights(checkpoint, model)
    if loop.compile:
        model.compile()  # in place, so that parameters keep their names
    wrapped = processes.wrap(model)
    factor = partial(lr_factor, total_steps=loop.total_steps, settings=schedule)
    trainer = Trainer(wrapped, objective, optimizer, factor, grad_clipping, loop, processes)
    state = LoopState()
    if checkpoint is not None:
        scaler = trainer.scaler if trainer.scaler.is_enabled() else None
        loaded = load_training_state(checkpoint, optimizer, scaler)
        state = LoopState(loaded["step"], loaded["tokens_seen"], loaded["source_state"])
        if bool(state.source_state) != bool(training.state_dict()):
            kinds = ("prepared tokens or pairs", "a stream of text")
            before, now = kinds[bool(state.source_state)], kinds[not state.source_state]
            raise CheckpointError(
                f"{checkpoint} was trained on {before}, but --data is {now} now; give it the same data."
            )
        training.load_state_dict(state.source_state)
        _say_what_changed(checkpoint, run_settings)

    def save(state: LoopState, eval_loss: float | None) -> None:
        if processes.is_first:
            save_checkpoint(
                run_dir,
                state.step,
                model=model,
                tokenizer=tokenizer,
                optimizer=optimizer,
                loop_state={"tokens_seen": state.tokens_seen, "source_state": state.source_state},
                run_settings=run_settings,
                eval_loss=eval_loss,
                grad_scaler=trainer.scaler if trainer.scaler.is_enabled() else None,
            )
            prune_checkpoints(run_dir, loop.keep_last)
        processes.wait_for_all()

    if loop.load_best_model_at_end and validation is None:
        raise ConfigError(
            "--load_best_model_at_end chooses by the held-out loss, but nothing is held out; leave it out."
        )
    eval_batch_size = batch.eval_batch_size or plan.micro_batch_size
    evaluate = _evaluation(trainer, validation, loop, eval_batch_size, processes) if validation else None
    with BatchLoader(training, plan, rank=processes.rank, first_step=state.step) as loader:
        steps = chain([next(loader)], loader)  # the first one before anything is written: bad data leave no run behind
        if processes.is_first:
            _write_settings(run_dir, run_settings)
        with Telemetry(
            run_dir,
            loop.total_steps,
            loop,
            run_settings=run_settings,
            start_step=state.step,
            tokens_seen=state.tokens_seen,
            enabled=processes.is_first,
        ) as telemetry:
            telemetry.say(f"training on {training.describe()}")
            if checkpoint is not None:
                telemetry.say(f"going on from {checkpoint}")
            state = train(trainer, steps, state, loop, telemetry, evaluate, save, observe)
    if processes.is_first:
        loop_state = {"step": state.step, "tokens_seen": state.tokens_seen}
        if loop.load_best_model_at_end:
            best = (run_dir / "best").resolve()
            load_weights(best, model)
            stored = json.loads((best / "loop.json").read_text(encoding="utf-8"))
            loop_state = {name: stored[name] for name in loop_state}
            log.info("the final model is that of %s, whose held-out loss is the lowest", best.name)
        save_final(run_dir, model=model, tokenizer=tokenizer, loop_state=loop_state, run_settings=run_settings)
    processes.wait_for_all()


def check_settings(batch: BatchSettings, schedule: ScheduleSettings, loop: LoopSettings, world_size: int) -> None:
    """Raise ConfigError for settings that cannot work together, before anything expensive is done."""
    plan_batches(batch, world_size)
    if loop.epochs is None:
        warmup_length(loop.total_steps, schedule)
    check_wandb(loop)
    if loop.compile and not torch.cuda.is_available():
        raise ConfigError(
            "--compile is for GPUs and torch sees none; on a CPU it would need a C++ compiler: leave it out."
        )
    run_dir = Path(loop.output_dir)
    nearest = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"--output_dir {run_dir} cannot be a folder, because {nearest} is a file; give another one.")


def find_obstacle(run_dir: Path, resume: bool) -> str | None:
    """Why a run cannot begin in this folder, or with `resume` cannot go on, as one sentence; None if it can."""
    holds_run = find_last_checkpoint(run_dir) is not None or (run_dir / "final").exists()
    if holds_run and not resume:
        return f"--output_dir {run_dir} holds a run already; give --resume to go on with it, or another folder."
    if resume and not run_dir.is_dir():
        return f"--resume: there is no run in {run_dir}; leave --resume out to start one."
    return None


def describe_run(
    model: PreTrainedModel,
    cost: StepCost,
    batch: BatchSettings,
    loop: LoopSettings,
    run_settings: dict[str, Any],
    changed: dict[str, Any],
    world_size: int,
    verb: str = "pretrain",
    training: Source | None = None,
) -> str:
    """What `--dry_run` prints: settings, parameters, memory, operations, time, and the lines that run it.

    Args:
        cost: of a step of one process.
        changed: the settings that are not at their defaults, which those lines have to name.
        training: what is trained on, where it was read; `loop` then has the steps that it makes.
    """
    plan = plan_batches(batch, world_size)
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Two processes make the same steps wherever the global batch is even.
    half, odd = divmod(plan.global_batch_size, 2)
    shared = {} if odd else {"batch_size": math.gcd(plan.micro_batch_size, half), "total_batch_size": 2 * half}
    of_two = changed | {"resume": None, "total_batch_size": None, "accumulation_steps": None} | shared
    data = "" if training is None else f"data           {training.describe()}\n"
    if training is not None:
        data += f"steps          {loop.total_steps:,}, {training.samples_per_epoch:,} samples a pass\n"
    return (
        f"{yaml.safe_dump(run_settings, sort_keys=False, allow_unicode=True)}\n"
        f"parameters     {model.num_parameters():,}, of which {parameters:,} train\n"
        f"batch          {plan.global_batch_size} samples a step: {plan.micro_batch_size} at once x "
        f"{plan.accumulation_steps} accumulated x {plan.world_size} processes\n"
        f"{describe_cost(cost, loop, plan.world_size)}\n"
        f"{data}"
        f"one process    fivefold {verb} {_as_words(changed)}\n"
        f"two processes  torchrun --nproc_per_node 2 -m fivefold {verb} {_as_words(of_two)}"
    )


def _as_words(settings: dict[str, Any]) -> str:
    """Settings as a shell takes them."""
    return " ".join(
        f"--{name} {' '.join(map(shlex.quote, map(str, value if isinstance(value, list) else [value])))}"
        for name, value in settings.items()
        if value is not None and value != []
    )


def _open_run_dir(run_dir: Path, resume: bool, processes: Processes) -> Path | None:
    """The checkpoint to go on from, or None for a fresh run."""
    if processes.is_first:
        clean_leftovers(run_dir)
    processes.wait_for_all()
    if obstacle := find_obstacle(run_dir, resume):
        raise ConfigError(obstacle)
    if not resume:
        return None
    checkpoint = find_last_checkpoint(run_dir)
    if checkpoint is None:
        log.warning("%s holds no complete checkpoint; starting from the first step", run_dir)
        return None
    verify_checkpoint(checkpoint)
    return checkpoint


def _write_settings(run_dir: Path, run_settings: dict[str, Any]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / f".writing-{SETTINGS_NAME}"
    try:
        partial.write_text(yaml.safe_dump(run_settings, sort_keys=False, allow_unicode=True), "utf-8")
        partial.replace(run_dir / SETTINGS_NAME)
    finally:
        partial.unlink(missing_ok=True)


def _say_what_changed(checkpoint: Path, run_settings: dict[str, Any]) -> None:
    before = yaml.safe_load((checkpoint / SETTINGS_NAME).read_text(encoding="utf-8"))
    for name, value in run_settings.items():
        if name not in _FREE_TO_CHANGE and before.get(name) != value:
            log.warning("resuming with --%s %s, which was %s", name, value, before.get(name))


def _evaluation(
    trainer: Trainer, validation: Source, loop: LoopSettings, batch_size: int, processes: Processes
) -> Callable[[], Evaluation]:
    num_samples = min(validation.samples_per_epoch or math.inf, loop.eval_samples or math.inf)
    if num_samples == math.inf:
        raise ConfigError("--eval_samples is 0, which means all, but the held-out data have no end; give a number.")

    def evaluate() -> Evaluation:
        batches = evaluation_batches(
            validation, int(num_samples), batch_size, rank=processes.rank, world_size=processes.world_size
        )
        return trainer.evaluate(batches)

    return evaluate
