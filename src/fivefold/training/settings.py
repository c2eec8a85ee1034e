"""The settings of the optimizer, the learning-rate schedule and the loop: cheap to import, checked when built."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fivefold.choices import refuse_unused
from fivefold.errors import ConfigError

# Where people start with each optimizer. The two T5 rates are for updates multiplied by the parameter's RMS
# (nanoT5's 2e-2; T5's 1/sqrt(10,000) = 1e-2), so not comparable with Adam's; Spectron's bounds a spectral norm.
CUSTOMARY_LR = {
    "adam": 1e-3,
    "adamw": 1e-3,
    "adamw_scaled": 2e-2,
    "adafactor": 1e-2,
    "muon": 5e-3,
    "galore_adamw": 1e-2,
    "loro_adamw": 1e-3,
    "loro_muon": 7e-3,
    "spectron": 5e-2,
    "loraplus": 5e-4,
    "lorafa": 1e-3,
}
MOMENTUM_OPTIMIZERS = ("muon", "loro_muon", "spectron")
"""Those that move the matrices inside the network by a momentum, and all other parameters by AdamW."""
LORA_OPTIMIZERS = ("loraplus", "lorafa")
"""Those that need an adapter of the LoRA kind."""

# Under which choices a setting counts, see `fivefold.choices`.
_MOMENTS = {"optimizer": tuple(name for name in CUSTOMARY_LR if name != "adafactor")}
_DENSE = {"optimizer": tuple(name for name in CUSTOMARY_LR if name != "loraplus")}
_LORAPLUS = {"optimizer": ("loraplus",)}
_MOMENTUM = {"optimizer": MOMENTUM_OPTIMIZERS}
_GALORE = {"optimizer": ("galore_adamw",)}
_FALLING = {"scheduler": ("cosine", "cosine_restart", "inverse_sqrt", "wsd", "linear")}
_RESTARTS = {"scheduler": ("cosine_restart",)}
_WSD = {"scheduler": ("wsd",)}

_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass
class OptimizerSettings:
    """How a gradient becomes a step."""

    optimizer: Literal[
        "adam",
        "adamw",
        "adamw_scaled",
        "adafactor",
        "muon",
        "galore_adamw",
        "loro_adamw",
        "loro_muon",
        "spectron",
        "loraplus",
        "lorafa",
    ] = "adamw"
    """adam, adamw, adamw_scaled (AdamW, each tensor's step multiplied by its RMS, as nanoT5), adafactor (as T5: by that
    RMS too, which LORO and GaLore leave out), muon, galore_adamw (AdamW on projected gradients); for low-rank layers
    loro_muon (recommended), loro_adamw, spectron; for a LoRA (--adapter) loraplus (AdamW, B faster than A), lorafa
    (AdamW on B alone, A frozen)."""
    lr: float | None = None
    """Peak learning rate; by default 1e-3 for adam, adamw, loro_adamw and lorafa, 2e-2 for adamw_scaled, 5e-3 for muon,
    7e-3 for loro_muon, 5e-2 for spectron, 5e-4 for loraplus, 1e-2 for the others. Under adamw_scaled and adafactor it
    is a part of each tensor's RMS. LORO's own default is 1e-4; its scripts give 5e-3 or 1e-2.
    Fine-tuning (sft) of a trained model takes a tenth of all these, of an adapter a fifth."""
    dense_lr: float | None = field(default=None, metadata=_DENSE)
    """Peak learning rate of embeddings, output layer, norms and biases; by default the same, but for muon, loro_muon
    and spectron 1e-2, and 2e-2 in a T5, whose embeddings start with a deviation of 1."""
    weight_decay: float = 0.0
    """Weight decay on matrices; norms, biases and relative-position tables never decay. T5 recipes use 0."""
    beta1: float = field(default=0.9, metadata=_MOMENTS)
    """Decay of the first moment (not for adafactor, which keeps none)."""
    beta2: float = field(default=0.999, metadata=_MOMENTS)
    """Decay of the second moment (not for adafactor, whose decay is 1 - step^-0.8)."""
    eps: float = field(default=1e-6, metadata=_MOMENTS)
    """Added to the root of the second moment (not for adafactor)."""
    momentum: float = field(default=0.95, metadata=_MOMENTUM)
    """Decay of the momentum of muon, loro_muon and spectron."""
    lora_plus_ratio: float = field(default=16.0, metadata=_LORAPLUS)
    """loraplus: how many times as fast as A the matrices B learn, which start at 0."""
    rank: int = field(default=128, metadata=_GALORE)
    """galore_adamw: rank of the projected gradients."""
    update_proj_gap: int = field(default=50, metadata=_GALORE)
    """galore_adamw: steps between two projections."""
    galore_scale: float = field(default=1.0, metadata=_GALORE)
    """galore_adamw: factor on the steps that come out of the projection."""
    grad_clipping: float = 1.0
    """Largest global gradient norm, larger gradients are scaled down to it; 0 turns clipping off, LORO's default (its
    clipping sees layers that are no longer in the model)."""

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}, but it must be above 0.")
        for name in ("weight_decay", "grad_clipping"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 0 (off) or above.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must lie in [0, 1).")
        for name in ("eps", "dense_lr", "galore_scale"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be above 0.")
        for name in ("rank", "update_proj_gap", "lora_plus_ratio"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 1 or above.")
        refuse_unused(self, "optimizer")

    @property
    def peak_lr(self) -> float:
        """The learning rate to use: the one that was set, or the optimizer's customary one."""
        return CUSTOMARY_LR[self.optimizer] if self.lr is None else self.lr

    def peak_dense_lr(self, *, is_t5: bool) -> float:
        """The learning rate of what is no matrix inside the network."""
        if self.dense_lr is not None:
            return self.dense_lr
        if self.optimizer not in MOMENTUM_OPTIMIZERS:
            return self.peak_lr
        return 2e-2 if is_t5 else 1e-2  # nanoT5's step on embeddings of deviation 1; see docs/log.md for the other


@dataclass
class ScheduleSettings:
    """How the learning rate moves over the run; `schedule.lr_factor` holds the formulas."""

    scheduler: Literal["cosine", "cosine_restart", "inverse_sqrt", "wsd", "linear", "constant", "const"] = "cosine"
    """Shape after warm-up; cosine_restart climbs again every cosine_restart_freq steps, wsd falls at the very end;
    const, as LORO calls it, is constant."""
    warmup_steps: int | None = None
    """Steps of linear warm-up from 0; by default a tenth of the run, at most 1000 (LORO's default, which is
    longer than a short run)."""
    min_lr_ratio: float = field(default=0.1, metadata=_FALLING)
    """The learning rate never ends below this part of its peak (not for constant, which stays at the peak)."""
    cosine_restart_freq: int | None = field(default=None, metadata=_RESTARTS)
    """cosine_restart: steps between two restarts."""
    cosine_restart_warmup: int = field(default=5, metadata=_RESTARTS)
    """cosine_restart: steps of the short linear ramp after each restart."""
    lr_adjust_steps: int = field(default=0, metadata=_RESTARTS)
    """cosine_restart: shifts the cosine after warm-up by this many steps; LORO's scripts use minus the warm-up."""
    lr_jag_after_warmup: bool = field(default=False, metadata=_RESTARTS)
    """cosine_restart: no restarts during the warm-up."""
    decay_frac: float = field(default=0.2, metadata=_WSD)
    """wsd: the last part of the run in which the learning rate falls."""
    warmup_ratio: float | None = None
    """Linear warm-up as a part of the run, rounded up to whole steps, in place of warmup_steps."""

    def __post_init__(self) -> None:
        if self.scheduler == "const":
            self.scheduler = "constant"
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps is {self.warmup_steps}, but it must be 0 (no warm-up) or above.")
        if self.warmup_ratio is not None:
            if self.warmup_steps is not None:
                raise ConfigError(
                    f"warmup_steps is {self.warmup_steps} and warmup_ratio {self.warmup_ratio}; give one of the two."
                )
            if not 0 <= self.warmup_ratio <= 1:
                raise ConfigError(f"warmup_ratio is {self.warmup_ratio}, but it must lie in [0, 1].")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"min_lr_ratio is {self.min_lr_ratio}, but it must lie in [0, 1].")
        if not 0 <= self.decay_frac <= 1:
            raise ConfigError(f"decay_frac is {self.decay_frac}, but it must lie in [0, 1].")
        if self.cosine_restart_warmup < 1:
            raise ConfigError(f"cosine_restart_warmup is {self.cosine_restart_warmup}, but it must be 1 or above.")
        refuse_unused(self, "scheduler")
        if self.scheduler == "cosine_restart" and (self.cosine_restart_freq is None or self.cosine_restart_freq < 1):
            raise ConfigError(
                f"cosine_restart_freq is {self.cosine_restart_freq}, but --scheduler cosine_restart needs the steps "
                "between two restarts, for example --cosine_restart_freq 500."
            )


@dataclass
class LoopSettings:
    """How long a run lasts, what it measures and what it leaves behind."""

    output_dir: str = "runs/latest"
    """Folder of the run: settings, log, checkpoints, final model and report."""
    num_training_steps: int | None = None
    """Optimizer steps to train for, by default 10,000; for sft what 3 epochs are."""
    epochs: float | None = None
    """Passes over the data to train for, instead of a number of steps; a half is half a pass."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to measure the held-out loss: every eval_every steps, after each pass over the data, or (no) at the
    end only, as with --eval_every 0."""
    eval_every: int = field(default=1000, metadata={"eval_strategy": ("steps",)})
    """Steps between measurements of the held-out loss; 0 measures only at the end. LORO's default is 5000."""
    eval_samples: int = 256
    """Held-out samples to measure on, always the same ones; 0 for all."""
    log_every: int = 10
    """Steps between two lines of log.jsonl."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to write a checkpoint, as for eval_strategy; the final model is always written."""
    save_every: int = field(default=1000, metadata={"save_strategy": ("steps",)})
    """Steps between checkpoints; 0 writes only the final model. LORO's default is 10000."""
    keep_last: int = 2
    """Newest checkpoints to keep beside the best one; 0 keeps all."""
    load_best_model_at_end: bool = False
    """Make the checkpoint with the lowest held-out loss the final model, not the newest one."""
    resume: bool = False
    """Go on from the newest complete checkpoint in output_dir."""
    seed: int = 0
    """Everything random in the run follows from it."""
    dtype: Literal["bfloat16", "float16", "float32", "bf16", "fp16", "fp32"] = "bfloat16"
    """Number type of matrix products; weights and optimizer state stay in float32."""
    pure_bf16: bool = False
    """Keep weights and optimizer state in bfloat16 too, as LORO's scripts do: half the memory, and small updates are
    lost to rounding."""
    compile: bool = False
    """Run the model through torch.compile: some minutes at the start, then faster steps; on GPUs only."""
    use_wandb: bool = False
    """Send the log to Weights & Biases too (install fivefold[wandb])."""
    wandb_project: str = "fivefold"
    """Weights & Biases project."""

    def __post_init__(self) -> None:
        self.dtype = _DTYPE_NAMES.get(self.dtype, self.dtype)  # type: ignore[assignment]
        if not self.output_dir:
            raise ConfigError("output_dir is empty, but the run needs a folder: give --output_dir FOLDER.")
        for name in ("num_training_steps", "log_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 1 or above.")
        if self.epochs is not None:
            if self.num_training_steps is not None:
                raise ConfigError(
                    f"epochs is {self.epochs} and num_training_steps {self.num_training_steps}; give one of the two."
                )
            if not 0 < self.epochs < math.inf:
                raise ConfigError(f"epochs is {self.epochs}, but it must be above 0.")
        for name in ("eval_every", "eval_samples", "save_every", "keep_last"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 0 or above.")
        for strategy, every in (("eval_strategy", "eval_every"), ("save_strategy", "save_every")):
            refuse_unused(self, strategy)
            if getattr(self, strategy) == "no":
                setattr(self, strategy, "steps")
                setattr(self, every, 0)
        if self.load_best_model_at_end and (
            self.eval_strategy != self.save_strategy
            or not (self.eval_every and self.save_every)
            or self.save_every % self.eval_every
        ):
            raise ConfigError(
                "load_best_model_at_end compares checkpoints by their held-out loss, but not all are measured: give "
                "--eval_strategy and --save_strategy the same (not no), and --save_every a multiple of --eval_every."
            )
        if self.pure_bf16 and self.dtype != "bfloat16":
            raise ConfigError(f"pure_bf16 goes with --dtype bfloat16, but dtype is {self.dtype}; drop one of the two.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}, but it must be 0 or above and below 2^63.")

    @property
    def total_steps(self) -> int:
        """The steps of the run; with `epochs` known only of what `with_steps` returned."""
        assert self.epochs is None, "epochs are to be turned into steps first"
        return 10_000 if self.num_training_steps is None else self.num_training_steps

    def with_steps(self, samples_per_epoch: int | None, samples_per_step: int) -> "LoopSettings":
        """The same settings with numbers of steps in place of epochs.

        Raises:
            ConfigError: the data have no end that is known.
        """
        counted = self._counted_in_epochs
        if not counted:
            return self
        if samples_per_epoch is None:
            raise ConfigError(
                f"{counted[0]} is {getattr(self, counted[0])}, but text is read as training goes, and nobody knows "
                "where it ends; run `fivefold prepare` and give its folder as --data, or say --num_training_steps."
            )
        steps_per_epoch = samples_per_epoch / samples_per_step
        changes: dict[str, Any] = {}
        if self.epochs is not None:
            changes = {"num_training_steps": max(1, round(self.epochs * steps_per_epoch)), "epochs": None}
        for name in ("eval", "save"):
            if f"{name}_strategy" in counted:
                # Rounded up: a pass is over when it was looked at.
                changes |= {f"{name}_strategy": "steps", f"{name}_every": math.ceil(steps_per_epoch)}
        return replace(self, **changes)

    @property
    def _counted_in_epochs(self) -> list[str]:
        strategies = [name for name in ("eval_strategy", "save_strategy") if getattr(self, name) == "epoch"]
        return strategies if self.epochs is None else ["epochs", *strategies]


@dataclass
class BranchLoopSettings(LoopSettings):
    """The same with the defaults that people know who train branches."""

    output_dir: str = "out"
    """Folder of the run: settings, log, checkpoints, final model and report."""
    log_every: int = 50
    """Steps between two lines of log.jsonl."""
    save_every: int = field(default=500, metadata={"save_strategy": ("steps",)})
    """Steps between checkpoints; 0 writes only the final model."""


@dataclass
class ReferenceSettings:
    """What a model that learns from preferences is compared with."""

    reference: Literal["precomputed", "live"] = "precomputed"
    """precomputed: what the reference says of all answers is computed once, before training, and kept on disk; live:
    the reference stays in memory and is asked at every step."""
    reference_model: str | None = None
    """Folder or Hub id of the reference; by default --model, without adapter, as it is before training."""
    reference_cache: str | None = field(default=None, metadata={"reference": ("precomputed",)})
    """Folder for what the reference said; by default one in the user's cache."""
    kl_prompts: int = 16
    """Held-out prompts that the model answers twice each at every evaluation, by drawing, to measure how far it has
    gone from the reference; 0 for none."""
    kl_tokens: int = 64
    """Most tokens of such an answer."""

    def __post_init__(self) -> None:
        if self.kl_prompts < 0 or self.kl_tokens < 1:
            raise ConfigError(
                f"kl_prompts is {self.kl_prompts} and kl_tokens {self.kl_tokens}; give at least 0 prompts and 1 token."
            )
        refuse_unused(self, "reference")

    def check(self, loss_type: str, needs_reference: bool) -> None:
        """Refuse what has no use under a loss.

        Raises:
            ConfigError: there is something.
        """
        defaults = ReferenceSettings()
        unused = ("reference", "reference_cache")
        changed = [name for name in unused if getattr(self, name) != getattr(defaults, name)]
        if not needs_reference and changed:
            raise ConfigError(
                f"--{changed[0]} would change nothing with --loss_type {loss_type}, which compares with no reference; "
                "leave it out."
            )
        if self.reference_model is not None and not needs_reference and not self.kl_prompts:
            raise ConfigError(
                f"--reference_model would change nothing with --loss_type {loss_type} and --kl_prompts 0; leave it out."
            )
