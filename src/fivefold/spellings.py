"""What other projects call our flags, and those of their flags that are none of ours: each is answered by name."""

# The spellings of other projects' users, to ours.
ALIASES: dict[str, str] = {
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
}
REFUSED_VALUES: dict[tuple[str, str], str] = {
    ("optimizer", "adamw_cola"): _NO_COLA,
    ("optimizer", "lost"): _NO_LOST,
    ("scheduler", "cosine_restart_zero"): "cosine_restart warms up from zero here; say --scheduler cosine_restart",
}

# Flags that ask for what is done anyway: said, not refused, so that the command lines of other projects run.
NEEDLESS: dict[str, str] = {
    "single_gpu": "without torchrun there is one process on one GPU",
    "workers": "one thread prepares batches faster than a model takes them",
    "save_ckpt": "checkpoints are always written, see --save_every",
    "use_hf_model": "decoders are transformers' own",
    "name": "a run goes by the name of its folder, see --output_dir",
    "tags": "Weights & Biases shows every setting of a run, to group and filter by",
}
