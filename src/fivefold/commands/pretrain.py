"""Train a T5 (span corruption, UL2, prefix-LM, pairs) or a LLaMA (causal), at full or low rank, fresh or trained."""

from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import BatchSettings, DataSettings, ObjectiveSettings
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings
from fivefold.objectives.settings import LossSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fivefold.commands.stages.stage import Task
    from fivefold.objectives.objective import Batch


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
    from fivefold.commands.stages.stage import Example, Stage, Task, resolve_model, run_stage
    from fivefold.commands.stages.tokenizer import open_tokenizer_unless_on_hub
    from fivefold.data.build import build_sources, check_data
    from fivefold.data.corruption import build_corruption, longest_target
    from fivefold.data.defaults import with_defaults
    from fivefold.objectives.causal import CausalObjective
    from fivefold.objectives.full_rows import full_pairs, full_windows
    from fivefold.objectives.seq2seq import Seq2SeqObjective

    model = resolve_model(model)
    objective, loss = objective.for_family(model.model_type), loss.for_family(model.model_type)
    corpus, data = with_defaults(corpus, data, objective.objective, model.model)
    check_data(corpus, data, objective)

    def open_tokenizer() -> "tuple[PreTrainedTokenizerBase | None, list[str]]":
        tokenizer, unchecked = open_tokenizer_unless_on_hub(corpus, data, dry_run)
        if tokenizer is not None and objective.objective != "seq2seq":  # before a large model is built for nothing
            build_corruption(objective, tokenizer, loop.seed)
        return tokenizer, unchecked

    def build_task(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Task":
        training, validation = build_sources(corpus, data, objective, tokenizer, loop.seed)
        return Task(learned, training, validation)

    def full_rows(rows: int) -> "Batch":
        if objective.objective == "causal":
            return full_windows(rows, objective.sample_length)
        lengths = (objective.sample_length, longest_target(objective))
        return full_pairs(rows, *lengths, packing=data.packing, may_pad=objective.objective != "span")

    learned = CausalObjective(loss) if model.model_type == "llama" else Seq2SeqObjective(loss)
    example = Example(learned, full_rows)
    own = (corpus, data, objective, loss)
    stage = Stage("pretrain", model, low_rank, batch, optimizer, loro, schedule, loop, own)
    run_stage(stage, open_tokenizer, build_task, example, input_length=objective.sample_length, dry_run=dry_run)
