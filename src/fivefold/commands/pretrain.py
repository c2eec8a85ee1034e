"""Train a T5 on text (span corruption, UL2, prefix-LM) or on prompts and responses, from scratch or from a model."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import check_sources
from fivefold.data.settings import BatchSettings, DataSettings, ObjectiveSettings
from fivefold.flags import as_recipe
from fivefold.objectives.settings import LossSettings
from fivefold.t5.settings import ModelSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings


def run(
    model: ModelSettings,
    corpus: CorpusSettings,
    data: DataSettings,
    objective: ObjectiveSettings,
    loss: LossSettings,
    batch: BatchSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    loop: LoopSettings,
    *,
    dry_run: bool,
) -> None:
    """Resolve the settings, train, and draw the curves."""
    import torch

    from fivefold.data.build import build_sources, open_tokenizer, prepared_folder
    from fivefold.data.corruption import build_corruption
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.report.page import write_report
    from fivefold.t5.build import build_model
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint
    from fivefold.training.distributed import start_processes
    from fivefold.training.run import check_settings, describe_run, find_obstacle, run_training

    settings = (model, corpus, data, objective, loss, batch, optimizer, schedule, loop)
    run_settings = as_recipe(settings)
    unchecked = [] if prepared_folder(corpus) else check_sources(corpus)
    if data.validation_data:
        unchecked += check_sources(replace(corpus, data=data.validation_data))
    with start_processes() as processes:
        check_settings(batch, schedule, loop, processes.world_size)
        tokenizer = open_tokenizer(corpus, data)
        if objective.objective != "seq2seq":  # lengths and sentinels, before a large model is built for nothing
            build_corruption(objective, tokenizer, loop.seed)
        if model.model is not None and (Path(model.model) / MANIFEST).is_file():
            verify_checkpoint(Path(model.model))
        # Only the shape matters to a dry run, and the largest ones fit in no memory here.
        with torch.device("meta") if dry_run and model.model is None else nullcontext():
            network = build_model(model, tokenizer, loop.seed)
        if dry_run:
            print(describe_run(network, batch, optimizer, run_settings, processes.world_size))
            for hub_id in unchecked:
                print(f"unchecked      {hub_id} (a Hub id; it is looked up when training starts)")
            if obstacle := find_obstacle(Path(loop.output_dir), loop.resume):
                print(f"would stop     {obstacle}")
            return
        training, validation = build_sources(corpus, data, objective, tokenizer, loop.seed)
        run_training(
            network,
            tokenizer,
            Seq2SeqObjective(loss),
            training,
            validation,
            batch,
            optimizer,
            schedule,
            loop,
            run_settings,
            processes,
        )
        if processes.is_first:
            run_dir = Path(loop.output_dir)
            print(f"model   {run_dir / 'final'}")
            print(f"report  {write_report([run_dir], run_dir)}")
