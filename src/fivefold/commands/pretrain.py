"""Train a T5 (span corruption, UL2, prefix-LM, pairs) or a LLaMA (causal), at full or low rank, fresh or trained."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import HUB_ID, check_sources
from fivefold.data.settings import BatchSettings, DataSettings, ObjectiveSettings
from fivefold.errors import DataError
from fivefold.flags import as_recipe, changed_settings
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings
from fivefold.objectives.settings import LossSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(
    model: ModelSettings,
    low_rank: LowRankSettings,
    corpus: CorpusSettings,
    data: DataSettings,
    objective: ObjectiveSettings,
    loss: LossSettings,
    batch: BatchSettings,
    optimizer: OptimizerSettings,
    loro: LoroSettings,
    schedule: ScheduleSettings,
    loop: LoopSettings,
    *,
    dry_run: bool,
) -> None:
    """Resolve the settings, train, and draw the curves."""
    import torch

    from fivefold.data.build import build_sources, check_data
    from fivefold.data.corruption import build_corruption
    from fivefold.data.defaults import with_defaults
    from fivefold.models.build import build_model, check_length
    from fivefold.models.family import complete
    from fivefold.objectives.causal import CausalObjective
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.report.page import write_report
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint
    from fivefold.training.distributed import start_processes
    from fivefold.training.optimizers import build_optimizer, check_optimizer
    from fivefold.training.run import check_settings, describe_run, find_obstacle, run_training

    if model.model is not None and (Path(model.model) / MANIFEST).is_file():
        verify_checkpoint(Path(model.model))
    model = complete(model)
    objective, loss = objective.for_family(model.model_type), loss.for_family(model.model_type)
    corpus, data = with_defaults(corpus, data, objective.objective, model.model)
    check_data(corpus, data, objective)
    settings = (model, low_rank, corpus, data, objective, loss, batch, optimizer, loro, schedule, loop)
    run_settings = as_recipe(settings)
    with start_processes() as processes:
        check_settings(batch, schedule, loop, processes.world_size)
        tokenizer, unchecked = _open_tokenizer(corpus, data, dry_run)
        if tokenizer is not None and objective.objective != "seq2seq":  # before a large model is built for nothing
            build_corruption(objective, tokenizer, loop.seed)
        default_init = "xavier" if optimizer.optimizer == "loro_adamw" and model.model is None else "spectral"
        # Only the shape matters to a dry run, and the largest ones fit in no memory here.
        with torch.device("meta") if dry_run and model.model is None else nullcontext():
            network, report = build_model(model, low_rank, tokenizer, loop.seed, default_init=default_init)
        check_length(network, objective.sample_length)
        check_optimizer(network, optimizer, loro)
        if loop.pure_bf16:
            network.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
        if dry_run:
            changed = changed_settings(settings)
            print(describe_run(network, batch, optimizer, run_settings, changed, processes.world_size))
        if report is not None and processes.is_first:
            print(f"low rank       {str(report).replace(chr(10), chr(10) + ' ' * 15)}")
        if tokenizer is None or dry_run:
            for hub_id in dict.fromkeys(unchecked):
                print(f"unchecked      {hub_id} (a Hub id; it is looked up when training starts)")
            if obstacle := find_obstacle(Path(loop.output_dir), loop.resume):
                print(f"would stop     {obstacle}")
            return
        training, validation = build_sources(corpus, data, objective, tokenizer, loop.seed)
        run_training(
            network,
            tokenizer,
            CausalObjective(loss) if model.model_type == "llama" else Seq2SeqObjective(loss),
            training,
            validation,
            batch,
            build_optimizer(network, optimizer, loro),
            optimizer.grad_clipping,
            schedule,
            loop,
            run_settings,
            processes,
        )
        if processes.is_first:
            run_dir = Path(loop.output_dir)
            print(f"model   {run_dir / 'final'}")
            print(f"report  {write_report([run_dir], run_dir)}")


def _open_tokenizer(
    corpus: CorpusSettings, data: DataSettings, dry_run: bool
) -> "tuple[PreTrainedTokenizerBase | None, list[str]]":
    """The tokenizer, and the Hub ids nobody has looked up; a dry run asks no network, and may find no tokenizer."""
    from fivefold.data.build import open_tokenizer, prepared_folder

    is_prepared = prepared_folder(corpus) is not None
    unchecked = [] if is_prepared else check_sources(corpus)
    if data.validation_data:
        unchecked += check_sources(replace(corpus, data=data.validation_data))
    try:
        return open_tokenizer(corpus, data, is_offline=dry_run), unchecked
    except DataError:
        name = data.tokenizer or ""
        if not dry_run or is_prepared or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
            raise
        return None, [*unchecked, name]
