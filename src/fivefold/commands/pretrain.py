"""Train a T5 on text (span corruption, UL2, prefix-LM) or on prompts and responses, from scratch or from a model."""

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
    from fivefold.data.build import build_sources, open_tokenizer, prepared_folder
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.report.page import write_report
    from fivefold.t5.build import build_model
    from fivefold.training.distributed import start_processes
    from fivefold.training.run import check_settings, describe_run, run_training

    settings = (model, corpus, data, objective, loss, batch, optimizer, schedule, loop)
    run_settings = as_recipe(settings)
    unchecked = [] if prepared_folder(corpus) else check_sources(corpus)
    with start_processes() as processes:
        check_settings(batch, schedule, loop, processes.world_size)
        tokenizer = open_tokenizer(corpus, data)
        network = build_model(model, tokenizer, loop.seed)
        if dry_run:
            print(describe_run(network, batch, optimizer, run_settings, processes.world_size))
            for hub_id in unchecked:
                print(f"unchecked      {hub_id} (a Hub id; it is looked up when training starts)")
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
