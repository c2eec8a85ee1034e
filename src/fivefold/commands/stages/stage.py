"""A stage of training: from a verb's settings to a model, what it learns, a run and its report."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.adapters.adalora import is_adalora, prune_ranks
from fivefold.data.batch_plan import plan_batches
from fivefold.data.settings import BatchSettings
from fivefold.data.source import Source
from fivefold.flags import as_recipe, changed_settings
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.build import build_model, check_length
from fivefold.models.family import complete
from fivefold.models.settings import ModelSettings, QuantisationSettings
from fivefold.objectives.objective import Batch, Objective
from fivefold.objectives.orthogonality import WithOrthogonality
from fivefold.optim.lora import freeze_first_factors
from fivefold.report.page import write_report
from fivefold.training.checkpoint import MANIFEST, verify_checkpoint
from fivefold.training.distributed import start_processes
from fivefold.training.loop import Observe
from fivefold.training.optimizers import build_optimizer, check_optimizer
from fivefold.training.run import check_settings, describe_run, find_obstacle, run_training
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings
from fivefold.training.step_cost import step_cost


@dataclass(frozen=True)
class Stage:
    """Which verb, and the settings that all verbs that train have."""

    verb: str
    model: ModelSettings
    """As `resolve_model` returns it."""
    low_rank: LowRankSettings
    batch: BatchSettings
    optimizer: OptimizerSettings
    loro: LoroSettings
    schedule: ScheduleSettings
    loop: LoopSettings
    own: tuple[object, ...]
    """The verb's other settings dataclasses, resolved; they are saved with the run."""
    quantisation: QuantisationSettings | None = None


@dataclass(frozen=True)
class Task:
    """What a stage trains on, and for what."""

    objective: Objective
    training: Source
    validation: Source | None
    observe: Observe | None = None
    """Looks at the model after each measurement of the held-out loss."""


@dataclass(frozen=True)
class Example:
    """What stands for a task in a dry run."""

    objective: Objective
    full_rows: Callable[[int], Batch]
    """From a number of rows to the micro-batch of that many that takes the most memory."""
    read: Callable[[PreTrainedTokenizerBase], Source | None] = lambda tokenizer: None
    """What will be trained on; None where that needs a network or takes long."""


def resolve_model(model: ModelSettings) -> ModelSettings:
    """The same settings with the family filled in; a stored model that has a manifest agrees with it.

    Raises:
        ConfigError, CheckpointError, ModelError: settings that contradict each other, or a model that is damaged.
    """
    if model.model is not None and (Path(model.model) / MANIFEST).is_file():
        verify_checkpoint(Path(model.model))
    return complete(model)


def run_stage(
    stage: Stage,
    open_tokenizer: Callable[[], tuple[PreTrainedTokenizerBase | None, list[str]]],
    build_task: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Task],
    example: Example,
    *,
    input_length: int,
    change: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
    dry_run: bool,
) -> None:
    """Build the model, train it, and draw the curves; a dry run checks everything and says what would be done.

    Args:
        open_tokenizer: the tokenizer, and the Hub ids that nobody has looked up; a dry run may find none. It is the
            place for all checks that need no model.
        build_task: reads the data; not called in a dry run, see `Example.read`.
        example: by which a dry run tells what a step takes.
        input_length: tokens that the model must have positions for.
        change: from the model that is built to the one that trains: what is frozen, what is added.
    """
    settings = (stage.model, stage.low_rank, *stage.own, stage.batch, stage.optimizer)
    settings += (stage.loro, stage.schedule, stage.loop)
    run_settings, loop = as_recipe(settings), stage.loop
    with start_processes() as processes:
        check_settings(stage.batch, stage.schedule, loop, processes.world_size)
        tokenizer, unchecked = open_tokenizer()
        is_fresh = stage.model.model is None
        default_init = "xavier" if stage.optimizer.optimizer == "loro_adamw" and is_fresh else "spectral"
        # Only the shape matters to a dry run, and the largest ones fit in no memory here.
        with torch.device("meta") if dry_run and is_fresh else nullcontext():
            network, report = build_model(
                stage.model,
                stage.low_rank,
                tokenizer,
                loop.seed,
                default_init=default_init,
                quantisation=stage.quantisation,
            )
        check_length(network, input_length)
        network = network if change is None else change(network)
        check_optimizer(network, stage.optimizer, stage.loro)
        if stage.optimizer.optimizer == "lorafa":
            freeze_first_factors(network)  # before anyone counts what trains
        if loop.pure_bf16:
            network.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
        if dry_run:
            changed, world_size = changed_settings(settings), processes.world_size
            plan = plan_batches(stage.batch, world_size)
            sizes = {"micro_batch_size": plan.micro_batch_size, "accumulation_steps": plan.accumulation_steps}
            cost = step_cost(network, example.objective, example.full_rows, stage.optimizer, loop, **sizes)
            training = None if tokenizer is None else example.read(tokenizer)
            if training is not None:
                loop = loop.with_steps(training.samples_per_epoch, plan.global_batch_size)
                check_settings(stage.batch, stage.schedule, loop, world_size)
            run = (stage.batch, loop, run_settings, changed, world_size, stage.verb, training)
            print(describe_run(network, cost, *run))
        if report is not None and processes.is_first:
            print(f"low rank       {str(report).replace(chr(10), chr(10) + ' ' * 15)}")
        if tokenizer is None or dry_run:
            for hub_id in dict.fromkeys(unchecked):
                print(f"unchecked      {hub_id} (a Hub id; it is looked up when training starts)")
            if obstacle := find_obstacle(Path(loop.output_dir), loop.resume):
                print(f"would stop     {obstacle}")
            return
        task = build_task(network, tokenizer)
        per_epoch = task.training.samples_per_epoch
        loop = loop.with_steps(per_epoch, plan_batches(stage.batch, processes.world_size).global_batch_size)
        if stage.loop.epochs is not None:
            check_settings(stage.batch, stage.schedule, loop, processes.world_size)
            if processes.is_first:
                print(f"steps   {loop.total_steps:,}: {stage.loop.epochs:g} epochs of {per_epoch:,} samples")
        optimizer, objective = build_optimizer(network, stage.optimizer, stage.loro), task.objective
        if is_adalora(network):
            prune_ranks(network, optimizer, loop.total_steps)
            objective = WithOrthogonality(objective)
        run_training(
            network,
            tokenizer,
            objective,
            task.training,
            task.validation,
            stage.batch,
            optimizer,
            stage.optimizer.grad_clipping,
            stage.schedule,
            loop,
            run_settings,
            processes,
            task.observe,
        )
        if processes.is_first:
            run_dir = Path(loop.output_dir)
            print(f"model   {run_dir / 'final'}")
            print(f"report  {write_report([run_dir], run_dir)}")
