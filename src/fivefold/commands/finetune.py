"""Fine-tune a model, mostly an adapter by a PEFT JSON file: show the plan and the exact command, or run it."""

from dataclasses import dataclass

from fivefold.commands import sft
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import BatchSettings, DialogueSettings
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings, QuantisationSettings, TrainableSettings
from fivefold.objectives.settings import LossSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings


@dataclass
class FinetuneSettings:
    """Whether to do it."""

    execute: bool = False
    """Run the command; without it, the plan and the command are printed and nothing else is done."""


def run(
    finetune: FinetuneSettings,
    model: ModelSettings,
    low_rank: LowRankSettings,
    trainable: TrainableSettings,
    quantisation: QuantisationSettings,
    corpus: CorpusSettings,
    data: DialogueSettings,
    sample: sft.SampleSettings,
    loss: LossSettings,
    batch: BatchSettings,
    optimizer: OptimizerSettings,
    loro: LoroSettings,
    schedule: ScheduleSettings,
    loop: LoopSettings,
    *,
    dry_run: bool,
) -> None:
    """Hand everything to sft: for a dry run, or with `--execute` for training."""
    groups = (model, low_rank, trainable, quantisation, corpus, data, sample, loss, batch, optimizer, loro, schedule)
    is_plan = dry_run or not finetune.execute
    sft.run(*groups, loop, dry_run=is_plan)
    if is_plan:
        print("nothing was run; --execute runs it")
