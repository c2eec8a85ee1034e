"""Teach a decoder to go on from one main text in several branches at once, by LoRA or as a whole."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.branches.settings import BranchSettings, LoraFileSettings
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import BranchBatchSettings, BranchDataSettings
from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LoroSettings, LowRankSettings
from fivefold.models.settings import ModelSettings, TrainableSettings
from fivefold.objectives.settings import LossSettings
from fivefold.training.settings import BranchLoopSettings, OptimizerSettings, ScheduleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fivefold.commands.stages.stage import Task
    from fivefold.objectives.objective import Batch

DEFAULT_EPOCHS = 1.0
DEFAULT_LR = 1e-4
DEFAULT_RANK = 8


def run(
    model: ModelSettings,
    low_rank: LowRankSettings,
    trainable: TrainableSettings,
    branches: BranchSettings,
    lora_files: LoraFileSettings,
    corpus: CorpusSettings,
    data: BranchDataSettings,
    loss: LossSettings,
    batch: BranchBatchSettings,
    optimizer: OptimizerSettings,
    loro: LoroSettings,
    schedule: ScheduleSettings,
    loop: BranchLoopSettings,
    *,
    dry_run: bool,
) -> None:
    """Resolve the settings, train, and draw the curves."""
    from fivefold.adapters.folder import load_adapter_weights
    from fivefold.adapters.lora_files import load_lora_file, write_lora_file
    from fivefold.branches.folder import check_scheme, save_with_scheme
    from fivefold.branches.model import prepare_for_branches
    from fivefold.commands.stages.stage import Example, Stage, Task, resolve_model, run_stage
    from fivefold.commands.stages.tokenizer import raw_tokenizer_unless_on_hub
    from fivefold.commands.stages.trainable import choose_trainable, for_fine_tuning
    from fivefold.data.branches import build_branches
    from fivefold.models.build import num_positions
    from fivefold.objectives.branches import BranchObjective
    from fivefold.objectives.full_rows import full_branches

    model = resolve_model(model)
    if model.model_type != "llama":
        raise ConfigError("Branches are for decoders, and the model is a T5; name another with --model.")
    if loop.compile:
        raise ConfigError("--compile would compile anew for every layout of branches; leave it out.")
    trainable = _with_lora(trainable, model)
    if optimizer.lr is None and trainable.adapter_source is not None:
        optimizer = replace(optimizer, lr=DEFAULT_LR)
    optimizer = for_fine_tuning(optimizer, model, trainable)
    if loop.epochs is None and loop.num_training_steps is None:
        loop = replace(loop, epochs=DEFAULT_EPOCHS)
    if trainable.adapter_source is None and (lora_files.load_lora or lora_files.save_lora_files):
        raise ConfigError("--load_lora and --save_lora_files need a LoRA; leave --use_peft_lora false out.")
    scheme = branches.scheme
    for folder in (model.model, lora_files.load_lora):
        if folder is not None:
            check_scheme(folder, scheme)

    def open_tokenizer() -> "tuple[PreTrainedTokenizerBase | None, list[str]]":
        return raw_tokenizer_unless_on_hub(corpus, data.validation_data, data.tokenizer or model.model, dry_run)

    def change(network: "PreTrainedModel") -> "PreTrainedModel":
        prepare_for_branches(network, scheme)
        network = choose_trainable(network, trainable, model, low_rank, loop.seed)
        if lora_files.load_lora is not None:
            is_folder = Path(lora_files.load_lora).is_dir()
            (load_adapter_weights if is_folder else load_lora_file)(network, lora_files.load_lora)
        save_with_scheme(network, scheme, data.most_branches)
        return network

    def build_task(network: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "Task":
        most, needs_end = num_positions(network), loop.epochs is not None
        read = build_branches(corpus, data, tokenizer, max_positions=most, needs_end=needs_end, seed=loop.seed)
        return Task(learned, read.training, read.validation)

    def full_rows(rows: int) -> "Batch":
        return full_branches(rows, data.input_length, data.most_branches, data.max_total_tokens)

    learned = BranchObjective(loss, scheme)
    run_stage(
        Stage(
            *("parallel", model, low_rank, batch, optimizer, loro, schedule, loop),
            own=(trainable, branches, lora_files, corpus, data, loss),
        ),
        open_tokenizer,
        build_task,
        Example(learned, full_rows),
        input_length=data.input_length,
        change=change,
        dry_run=dry_run,
    )
    if lora_files.save_lora_files and not dry_run:
        out = Path(loop.output_dir)
        for folder in sorted([*out.glob("step_*"), out / "final"]):
            name = "final" if folder.name == "final" else f"step{int(folder.name.removeprefix('step_'))}"
            write_lora_file(folder, out / "lora" / f"{lora_files.lora_name}_{name}.pth")
            print(f"file    {out / 'lora' / f'{lora_files.lora_name}_{name}.pth'}")


def _with_lora(trainable: TrainableSettings, model: ModelSettings) -> TrainableSettings:
    """LoRA on all linear layers where nothing else is said: of rank 8, without dropout, what it adds scaled by 1."""
    is_asked = trainable.use_peft_lora is not False and not trainable.adapter and not trainable.freeze
    if not is_asked or (model.model is None and not trainable.use_peft_lora):
        return trainable
    rank = trainable.lora_r or DEFAULT_RANK
    alpha, dropout = trainable.lora_alpha or rank, trainable.lora_dropout or 0.0
    return replace(trainable, use_peft_lora=True, lora_r=rank, lora_alpha=alpha, lora_dropout=dropout)
