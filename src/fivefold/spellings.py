"""What other projects call our flags, and those of their flags that are none of ours: each is answered by name.

A flag of theirs, with its value, is one of ours (`ALIASES`, `MEANINGS`), asks for what is done anyway and is accepted
with a note (`NEEDLESS`, `MEANINGS`), or is refused with the reason (`REFUSED`). The last word is `meaning_of`'s.
"""

from dataclasses import dataclass, field

from fivefold.errors import ConfigError

# The spellings of other projects' users, to ours.
ALIASES: dict[str, str] = {
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "base_model": "model",
    "bnb_4bit_quant_storage": "bnb_4bit_quant_storage_dtype",
    "bnb_4bit_use_double_quant": "use_nested_quant",
    "config": "adapter",
    "data_path": "data",
    "dataset_config": "data_config",
    "dataset_config_name": "data_config",
    "dataset_name": "data",
    "dataset_text_field": "text_field",
    "evaluation_strategy": "eval_strategy",
    "hf_dataset": "data",
    "hf_split": "data_split",
    "hf_subset": "data_config",
    "load_in_4bit": "use_4bit_quantization",
    "load_in_8bit": "use_8bit_quantization",
    "label_smoothing_factor": "label_smoothing",
    "lora_rank": "lora_r",
    "per_device_eval_batch_size": "eval_batch_size",
    "resume_from_checkpoint": "resume",
    "save_total_limit": "keep_last",
    "tokenizer_path": "tokenizer",
    "torch_dtype": "dtype",
    "use_bnb_nested_quant": "use_nested_quant",
    "use_peft": "use_peft_lora",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "grad_clip": "grad_clipping",
    "max_grad_norm": "grad_clipping",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "num_training_steps",
    "save_interval": "save_every",
    "save_steps": "save_every",
    "eval_steps": "eval_every",
    "log_interval": "log_every",
    "logging_steps": "log_every",
    "gradient_accumulation_steps": "accumulation_steps",
    "gradient_accumulation": "accumulation_steps",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "activation_checkpointing": "gradient_checkpointing",
    "torch_compile": "compile",
    "max_length": "input_length",
    "max_seq_len": "input_length",
    "max_seq_length": "input_length",
    "max_source_length": "input_length",
    "max_prompt_length": "input_length",
    "max_target_length": "target_length",
    "max_completion_length": "target_length",
    "normalize": "normalise",
    "model_name_or_path": "model",
    "model_path": "model",
}

# Flags that exist elsewhere and that we refuse, with the reason.
_NO_SPARSITY = (
    "2:4 sparsity is not part of fivefold: in its authors' own measurements it was slower than the low-rank layers "
    "without it; leave it out"
)
_NO_COLA = "CoLA's nonlinearity between the factors is not part of fivefold; leave it out"
_NO_LOST = "LOST's sparse columns beside the factors are not part of fivefold; leave it out"
# Refused only where they ask for something.
_ONLY_UNSET: dict[str, tuple[str, ...]] = {
    "nothing is sent to the Hub; upload the finished folder yourself": ("push_to_hub",),
    "unsloth's kernels are not part of fivefold; leave it out": ("use_unsloth",),
    "Liger's kernels are not part of fivefold; leave it out": ("use_liger_kernel",),
    "code that comes with a model is not run; give a model that transformers knows itself": ("trust_remote_code",),
    "batches are drawn at random; --packing is what keeps padding out of them": ("group_by_length",),
    "several processes share the work by torchrun alone, each with the whole model; leave it out": (
        "deepspeed",
        "fsdp",
    ),
    "noise on embeddings is not part of fivefold; leave it out": ("neftune_noise_alpha",),
    "a run keeps the batch size that it is given; see what --dry_run says of memory": ("auto_find_batch_size",),
}
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "enable_2to4_sparse",
            "attn_2by4",
            "mlp_2by4",
            "activation_2by4",
            "activation_sparse_method",
            "permute_2by4",
            "activation_dense_warmup_steps",
            "dx_direct_sparse",
            "flip_rate",
            "squ_relu",
        ),
        _NO_SPARSITY,
    ),
    **dict.fromkeys(("cola_silu", "cola_sparse_method"), _NO_COLA),
    **dict.fromkeys(("lost_sparsity", "lost_gamma"), _NO_LOST),
    "loro_fallback_freq": "exact steps are damped and need no fallback; leave it out",
    "momentum_reset_steps": "say --optimizer loro_adamw --loro_refresh all --loro_refresh_freq STEPS instead",
    "c4_local": "name the files or the folder with --data",
    "continue_from": "say --resume to go on with a run, or --model FOLDER to start from its weights",
    "proj_type": "gradients are projected on their smaller side, which GaLore calls std; leave it out",
    "max_train_tokens": "say --num_training_steps, each of total_batch_size x input_length tokens",
    **{name: reason for reason, names in _ONLY_UNSET.items() for name in names},
    "add_special_tokens": "the chat template writes all special tokens, once",
    "append_concat_token": "packed conversations are kept apart without a token between them",
    "attn_implementation": "attention takes the fastest of torch's kernels; leave it out",
    "bf16": "it takes true or false",
    "chat_template_format": "it takes none, chatml or zephyr; for others say --chat_template FILE",
    "fp16": "it takes true or false",
    "greater_is_better": "the lowest held-out loss is the best",
    "logging_strategy": "the log has a line every --logging_steps steps; say steps",
    "lr_scheduler_type": "say --scheduler, with --min_lr_ratio for its floor",
    "metric_for_best_model": "checkpoints are compared by their held-out loss; say eval_loss",
    "model_revision": "models are opened as they are now; fetch another revision into a folder and name that",
    "optim": "say --optimizer; 8-bit and paged optimizers are not part of fivefold",
    "report_to": "it takes none, tensorboard, whose files are always written, or wandb",
    "splits": "it takes the split to train on, or that and the one to measure on, such as train,test",
}
REFUSED_VALUES: dict[tuple[str, str], str] = {
    ("optimizer", "adamw_cola"): _NO_COLA,
    ("optimizer", "lost"): _NO_LOST,
    ("save_strategy", "best"): "the best checkpoint is kept beside the newest ones anyway; say steps or epoch",
    ("scheduler", "cosine_restart_zero"): "cosine_restart warms up from zero here; say --scheduler cosine_restart",
}

# Flags that ask for what is done anyway: said, not refused, so that the command lines of other projects run.
NEEDLESS: dict[str, str] = {
    "ddp": "torchrun starts the processes, and they find each other",
    "device": "a GPU is taken where there is one; CUDA_VISIBLE_DEVICES says which",
    "single_gpu": "without torchrun there is one process on one GPU",
    "workers": "one thread prepares batches faster than a model takes them",
    "save_ckpt": "checkpoints are always written, see --save_every",
    "use_hf_model": "decoders are transformers' own",
    "name": "a run goes by the name of its folder, see --output_dir",
    "tags": "Weights & Biases shows every setting of a run, to group and filter by",
    **dict.fromkeys(("log_level", "disable_tqdm"), "a run always says the same of itself"),
    **dict.fromkeys(("use_reentrant", "gradient_checkpointing_kwargs"), "blocks give the same gradients either way"),
    **dict.fromkeys(("hub_model_id", "hub_private_repo", "hub_strategy", "hub_token"), "nothing is sent to the Hub"),
    **dict.fromkeys(
        ("dataloader_num_workers", "dataset_num_proc", "dataset_batch_size", "dataloader_pin_memory"),
        "one thread prepares batches faster than a model takes them",
    ),
    **dict.fromkeys(("do_train", "do_eval"), "a run trains, and measures where something is held out"),
    **dict.fromkeys(
        ("remove_unused_columns", "ddp_find_unused_parameters", "local_rank"), "nobody has to say that here"
    ),
    "use_flash_attn": "attention takes the fastest of torch's kernels, on a GPU FlashAttention's",
    "run_name": "a run goes by the name of its folder, see --output_dir",
    "logging_dir": "TensorBoard's files lie in --output_dir",
    "overwrite_output_dir": "a folder that holds a run is never written over; --resume goes on with it",
}


@dataclass(frozen=True)
class Meaning:
    """What a flag of another project asks for, with one of its values."""

    settings: dict[str, str] = field(default_factory=dict)
    """Our settings that it says."""
    implied: dict[str, str] = field(default_factory=dict)
    """Those that it brings along where nobody says them."""
    note: str = ""
    """Why it changes nothing, where it asks for what is done anyway."""


def _falls_to_zero(scheduler: str) -> Meaning:
    return Meaning({"scheduler": scheduler}, {"min_lr_ratio": "0"})  # as transformers' own


_NOTHING = Meaning(note="it asks for nothing")
MEANINGS: dict[tuple[str, str], Meaning] = {
    **{(name, value): _NOTHING for names in _ONLY_UNSET.values() for name in names for value in ("false", "none", "")},
    ("add_special_tokens", "false"): Meaning(note="the chat template writes all special tokens, once"),
    ("append_concat_token", "false"): Meaning(note="no token is ever put between packed conversations"),
    **{
        ("attn_implementation", name): Meaning(note="attention takes the fastest of torch's kernels")
        for name in ("sdpa", "flash_attention_2")
    },
    ("bf16", "true"): Meaning({"dtype": "bfloat16"}),
    ("bf16", "false"): Meaning(implied={"dtype": "float32"}),
    ("fp16", "true"): Meaning({"dtype": "float16"}),
    ("fp16", "false"): _NOTHING,
    ("chat_template_format", "none"): Meaning(
        note="the tokenizer's own template is taken, or else --chat_template labels"
    ),
    ("chat_template_format", "chatml"): Meaning({"chat_template": "chatml"}),
    ("chat_template_format", "zephyr"): Meaning({"chat_template": "zephyr"}),
    ("greater_is_better", "false"): Meaning(note="the lowest held-out loss is the best"),
    ("logging_strategy", "steps"): Meaning(note="the log has a line every --logging_steps steps"),
    ("lr_scheduler_type", "cosine"): _falls_to_zero("cosine"),
    ("lr_scheduler_type", "linear"): _falls_to_zero("linear"),
    ("lr_scheduler_type", "inverse_sqrt"): _falls_to_zero("inverse_sqrt"),
    ("lr_scheduler_type", "constant"): Meaning({"scheduler": "constant"}),
    ("lr_scheduler_type", "constant_with_warmup"): Meaning({"scheduler": "constant"}),
    ("metric_for_best_model", "eval_loss"): Meaning(note="checkpoints are compared by their held-out loss"),
    ("metric_for_best_model", "loss"): Meaning(note="checkpoints are compared by their held-out loss"),
    ("model_revision", "main"): _NOTHING,
    ("optim", "adamw_torch"): Meaning({"optimizer": "adamw"}),
    ("optim", "adamw_torch_fused"): Meaning({"optimizer": "adamw"}),
    ("optim", "adafactor"): Meaning({"optimizer": "adafactor"}),
    ("report_to", "none"): Meaning(note="the log and TensorBoard's files stay in --output_dir"),
    ("report_to", "tensorboard"): Meaning(note="TensorBoard's files are always written"),
    ("report_to", "wandb"): Meaning({"use_wandb": "true"}),
}
THEIRS = {*NEEDLESS, *REFUSED, *(name for name, _ in MEANINGS)}
"""Every flag of theirs that none of ours stands for by itself."""


def meaning_of(name: str, value: str) -> Meaning:
    """What a flag in `THEIRS` asks for.

    Args:
        name: in snake_case.
        value: as written; "true" for a flag that stands alone.

    Raises:
        ConfigError: it asks for what is not here.
    """
    if name in NEEDLESS:
        return Meaning(note=NEEDLESS[name])
    if value == "null":  # files of settings name all there are
        return _NOTHING
    spelled = {"yes": "true", "1": "true", "no": "false", "0": "false"}.get(value.lower(), value.lower())
    if meaning := MEANINGS.get((name, spelled)):
        return meaning
    splits = [split.strip() for split in value.split(",")]
    if name == "splits" and len(splits) <= 2 and all(splits):
        return Meaning(dict(zip(("data_split", "validation_split"), splits, strict=False)))
    depends_on_value = name == "splits" or any(known == name for known, _ in MEANINGS)
    raise ConfigError(f"--{name}{f' {value}' if depends_on_value else ''} is refused: {REFUSED[name]}.")
