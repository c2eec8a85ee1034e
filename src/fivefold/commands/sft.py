"""Teach a T5 or a decoder to answer: supervised fine-tuning on conversations, the loss on answers alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import BatchSettings, DialogueSettings
from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings, QuantisationSettings, TrainableSettings
from fivefold.objectives.settings import LossSettings
from fivefold.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fivefold.commands.stages.stage import Task
    from fivefold.data.source import Source
    from fivefold.objectives.objective import Batch

DEFAULT_EPOCHS = 3.0


@dataclass
class SampleSettings:
    """What the model shows of itself at each evaluation."""

    samples: int = 4
    """Held-out prompts answered at each evaluation, without chance, for samples.jsonl and TensorBoard; 0 for none."""
    sample_tokens: int = 64
    """Most tokens of such an answer."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.samples < 0 or self.sample_tokens < 1:
            raise ConfigError("--samples must be at least 0 and --sample_tokens at least 1.")


def run(
    model: ModelSettings,
    low_rank: LowRankSettings,
    trainable: TrainableSettings,
    quantisation: QuantisationSettings,
    corpus: CorpusSettings,
    data: DialogueSettings,
    sample: SampleSettings,
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
    from fivefold.adapters.attach import without_wrapper
    from fivefold.commands.stages.quantised import for_training
    from fivefold.commands.stages.stage import Example, Stage, Task, resolve_model, run_stage
    from fivefold.commands.stages.tokenizer import chat_format_unless_on_hub
    from fivefold.commands.stages.trainable import choose_trainable, for_fine_tuning
    from fivefold.corpus.sources import are_local
    from fivefold.data.dialogues import build_dialogues
    from fivefold.models.answers import Answerer
    from fivefold.models.decoding import DecodingSettings
    from fivefold.objectives.causal import CausalObjective, check_packing
    from fivefold.objectives.full_rows import full_pairs, full_windows
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.tokenizer.chat_format import ChatFormat
    from fivefold.training.samples import Samples

    model = resolve_model(model)
    loss, optimizer = loss.for_family(model.model_type), for_fine_tuning(optimizer, model, trainable)
    quantisation = for_training(quantisation, model, low_rank, trainable, loop)
    if loop.epochs is None and loop.num_training_steps is None:
        loop = replace(loop, epochs=DEFAULT_EPOCHS)

    def open_tokenizer() -> "tuple[PreTrainedTokenizerBase | None, list[str]]":
        chat, unchecked = chat_format_unless_on_hub(corpus, data, model, dry_run, reads_text=True)
        return None if chat is None else chat.tokenizer, unchecked

    def build_task(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Task":
        if model.model_type == "llama" and data.packing:
            check_packing(network)
        dialogues = build_dialogues(corpus, data, ChatFormat(tokenizer, model.model_type or "t5"), seed=loop.seed)
        conversations = [messages for messages in dialogues.held_out if messages[-1]["role"] == "assistant"]
        shown, observe = conversations[: sample.samples], None
        if shown:
            answerer = Answerer(
                without_wrapper(network), tokenizer, data.input_length if model.model_type == "t5" else None
            )
            decoding = DecodingSettings(max_new_tokens=sample.sample_tokens)
            observe = Samples(Path(loop.output_dir), shown, lambda prompts: answerer.write(prompts, decoding))
        return Task(learned, dialogues.training, dialogues.validation, observe)

    def read(tokenizer: "PreTrainedTokenizerBase") -> "Source | None":
        if not all(are_local(one) for one in (corpus, data.validation_corpus(corpus)) if one is not None):
            return None
        return build_dialogues(corpus, data, ChatFormat(tokenizer, model.model_type or "t5"), seed=loop.seed).training

    def full_rows(rows: int) -> "Batch":
        if model.model_type == "llama":
            return full_windows(rows, data.input_length, packing=data.packing)
        return full_pairs(rows, data.input_length, data.target_length or data.input_length, packing=data.packing)

    learned = CausalObjective(loss) if model.model_type == "llama" else Seq2SeqObjective(loss)
    own = (trainable, quantisation, corpus, data, sample, loss)
    base = quantisation if quantisation.flag else None
    run_stage(
        Stage("sft", model, low_rank, batch, optimizer, loro, schedule, loop, own, base),
        open_tokenizer,
        build_task,
        Example(learned, full_rows, read),
        input_length=data.input_length,
        change=lambda network: choose_trainable(network, trainable, model, low_rank, loop.seed),
        dry_run=dry_run,
    )
