"""Teach a T5 or a decoder which of two answers is better: DPO and its relatives, on pairs of answers."""

from dataclasses import replace
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import BatchSettings, DialogueSettings
from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings, TrainableSettings
from fivefold.objectives.settings import PreferenceLossSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ReferenceSettings, ScheduleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fivefold.commands.stages.stage import Task
    from fivefold.objectives.objective import Batch

DEFAULT_EPOCHS = 1.0


def run(
    model: ModelSettings,
    low_rank: LowRankSettings,
    trainable: TrainableSettings,
    corpus: CorpusSettings,
    data: DialogueSettings,
    loss: PreferenceLossSettings,
    reference: ReferenceSettings,
    batch: BatchSettings,
    optimizer: OptimizerSettings,
    loro: LoroSettings,
    schedule: ScheduleSettings,
    loop: LoopSettings,
    *,
    dry_run: bool,
) -> None:
    """Resolve the settings, train, and draw the curves."""
    from fivefold.commands.stages.preference import build_preference_task
    from fivefold.commands.stages.stage import Example, Stage, resolve_model, run_stage
    from fivefold.commands.stages.tokenizer import chat_format_unless_on_hub
    from fivefold.commands.stages.trainable import choose_trainable, for_preferences
    from fivefold.data.preference_data import row_capacity
    from fivefold.models.dropout import turn_off_dropout
    from fivefold.objectives.full_rows import full_preferences
    from fivefold.objectives.preference import PreferenceObjective

    if model.model is None:
        raise ConfigError(
            "--model is missing: dpo chooses between answers that a model can give already, such as one trained by "
            "`fivefold sft`."
        )
    if model.dropout_rate:
        raise ConfigError(f"--dropout_rate is {model.dropout_rate}, but dpo trains without dropout; leave it out.")
    if loop.compile:
        raise ConfigError("--compile would compile anew for every number of answer tokens in a batch; leave it out.")
    reference.check(loss.loss_type, loss.needs_reference)
    model = resolve_model(model)
    optimizer = for_preferences(optimizer, model, trainable)
    if loop.epochs is None and loop.num_training_steps is None:
        loop = replace(loop, epochs=DEFAULT_EPOCHS)

    def open_tokenizer() -> "tuple[PreTrainedTokenizerBase | None, list[str]]":
        chat, unchecked = chat_format_unless_on_hub(corpus, data, model, dry_run)
        return None if chat is None else chat.tokenizer, unchecked

    def build_task(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Task":
        return build_preference_task(network, tokenizer, model, corpus, data, loss, reference, batch, loop)

    def change(network: "PreTrainedModel") -> "PreTrainedModel":
        network = choose_trainable(network, trainable, model, low_rank, loop.seed)
        turn_off_dropout(network)
        return network

    def full_rows(rows: int) -> "Batch":
        capacity = row_capacity(data, model.model_type or "t5")
        return full_preferences(rows, capacity, needs_reference=loss.needs_reference)

    own = (trainable, corpus, data, loss, reference)
    run_stage(
        Stage("dpo", model, low_rank, batch, optimizer, loro, schedule, loop, own),
        open_tokenizer,
        build_task,
        Example(PreferenceObjective(loss), full_rows),
        input_length=data.input_length,
        change=change,
        dry_run=dry_run,
    )
    if dry_run and reference.reference == "live":
        print("reference      live: its weights and a forward pass a step come on top")
