"""Optimizers by name, over the parameters of a model that train."""

import torch
from torch import nn

from fivefold.errors import ConfigError
from fivefold.lowrank.convert import factor_pairs
from fivefold.lowrank.factor_optimizer import factor_groups
from fivefold.lowrank.optimizers import LOROAdamW, LOROMuon, Spectron
from fivefold.lowrank.settings import LoroSettings
from fivefold.optim.adamw_scaled import AdamWScaled
from fivefold.optim.galore import GaLoreAdamW, galore_groups
from fivefold.optim.lora import LoRAFA, freeze_first_factors, lora_pairs, lorafa_groups, loraplus_groups
from fivefold.optim.muon import MuonAdamW, muon_groups
from fivefold.optim.parameters import build_groups, parameter_kinds, query_lr_factors
from fivefold.training.settings import LORA_OPTIMIZERS, MOMENTUM_OPTIMIZERS, OptimizerSettings

FACTOR_OPTIMIZERS = ("loro_adamw", "loro_muon", "spectron")
"""Those that need low-rank layers."""


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, loro: LoroSettings | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters of `model` that train; only its matrices decay.

    adam is torch's Adam (weight decay as an L2 term in the gradient), adamw torch's AdamW, both in one fused kernel;
    loraplus is AdamW with LoRA+'s rates; adafactor is transformers' Adafactor set up as T5 was trained: decay
    1 - step^-0.8, updates clipped to an RMS of 1, steps multiplied by the parameter's RMS, learning rate from our own
    schedule. The others are in `optim` and `lowrank.optimizers`.
    Differs: T5's code factors the second moment of matrices from 128 x 128 on, transformers' of every matrix.

    Raises:
        ConfigError: an optimizer of factors for a model that has none, or LORO's settings for another optimizer.
        ModelError: no parameter of the model trains.
    """
    loro = loro or LoroSettings()
    check_optimizer(model, settings, loro)
    groups = _groups(model, settings, loro)
    # Every group brings its own rate; this one is for the log, see `set_lr`.
    lr, betas, eps, beta = settings.peak_lr, (settings.beta1, settings.beta2), settings.eps, settings.momentum
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=True)
        case "adamw" | "loraplus":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        case "adamw_scaled":
            return AdamWScaled(groups, lr=lr, betas=betas, eps=eps)
        case "adafactor":
            from transformers import Adafactor

            return Adafactor(groups, lr=lr, scale_parameter=True, relative_step=False, warmup_init=False)
        case "muon":
            return MuonAdamW(groups, lr=lr, momentum=beta, betas=betas, eps=eps)
        case "galore_adamw":
            return GaLoreAdamW(groups, lr=lr, betas=betas, eps=eps)
        case "lorafa":
            return LoRAFA(groups, lr=lr, betas=betas, eps=eps)
        case "loro_muon":
            return LOROMuon(groups, lr=lr, beta=beta, betas=betas, eps=eps)
        case "spectron":
            return Spectron(groups, lr=lr, beta=beta, betas=betas, eps=eps)
        case "loro_adamw":
            return LOROAdamW(
                groups,
                lr=lr,
                betas=betas,
                eps=eps,
                loro_type=loro.loro_type,
                loro_freq=loro.loro_freq,
                refresh=loro.loro_refresh,
                refresh_freq=loro.loro_refresh_freq,
                momentum=loro.momentum,
                scale_exact=loro.loro_scale_exact,
            )
        case name:
            raise ConfigError(f"There is no optimizer {name!r}; see --optimizer in --help.")


def _groups(model: nn.Module, settings: OptimizerSettings, loro: LoroSettings) -> list[dict]:
    is_t5 = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    dense_lr = settings.peak_dense_lr(is_t5=is_t5)
    rates = {"lr": settings.peak_lr, "dense_lr": dense_lr, "weight_decay": settings.weight_decay}
    lr_factors = query_lr_factors(model) if settings.optimizer in MOMENTUM_OPTIMIZERS else None
    if settings.optimizer in FACTOR_OPTIMIZERS:
        return factor_groups(model, **rates, lr_scale=loro.lr_scale, lr_factors=lr_factors)
    if settings.optimizer == "muon":
        return muon_groups(model, **rates, lr_factors=lr_factors)
    if settings.optimizer == "galore_adamw":
        projection = {
            "rank": settings.rank,
            "update_proj_gap": settings.update_proj_gap,
            "scale": settings.galore_scale,
        }
        return galore_groups(model, **rates, **projection)  # type: ignore[arg-type]
    if settings.optimizer == "loraplus":
        decay = settings.weight_decay
        return loraplus_groups(model, lr=settings.peak_lr, ratio=settings.lora_plus_ratio, weight_decay=decay)
    if settings.optimizer == "lorafa":
        freeze_first_factors(model)
        others = parameter_groups(model, **rates)
        return lorafa_groups(model, others, lr=settings.peak_lr, weight_decay=settings.weight_decay)
    return parameter_groups(model, **rates)


def check_optimizer(model: nn.Module, settings: OptimizerSettings, loro: LoroSettings) -> None:
    """Raise ConfigError for an optimizer that does not fit the model, or LORO's settings for another optimizer."""
    defaults = LoroSettings()
    changed = [name for name, value in vars(loro).items() if value != getattr(defaults, name)]
    if settings.optimizer != "loro_adamw" and changed:
        raise ConfigError(f"{settings.optimizer} has no {' or '.join(changed)}; that is of --optimizer loro_adamw.")
    if settings.optimizer in FACTOR_OPTIMIZERS and not factor_pairs(model):
        raise ConfigError(
            f"--optimizer {settings.optimizer} trains low-rank layers, but this model has none; give --loro_scope all, "
            "or another optimizer."
        )
    if settings.optimizer in LORA_OPTIMIZERS and not lora_pairs(model):
        raise ConfigError(
            f"--optimizer {settings.optimizer} trains the matrices A and B of a LoRA, but this model has none; give "
            "--adapter with a file of the peft_type LORA, or another optimizer."
        )


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float, dense_lr: float | None = None) -> list[dict]:
    """Split the parameters that train by learning rate and decay.

    Weight decay pulls the product of a matrix with its input towards zero. Norm weights and biases (tensors of fewer
    than two dimensions) are scales and offsets around 1 or 0, and the relative-position table is a matrix in shape only
    (one additive bias a bucket and head): these do not decay. A shared tensor counts once.

    Args:
        lr: of the matrices inside the network.
        dense_lr: of embeddings, output layer, norms and biases; `lr` if None.

    Returns:
        Groups with `lr`, `base_lr` (what `set_lr` multiplies) and `weight_decay`.
    Raises:
        ModelError: no parameter of the model trains.
    """
    dense_lr = lr if dense_lr is None else dense_lr
    hidden, tables, plain = parameter_kinds(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for params, key in ((hidden, (lr, weight_decay)), (tables, (dense_lr, weight_decay)), (plain, (dense_lr, 0.0))):
        groups.setdefault(key, []).extend(params)
    return build_groups((params, rate, decay, {}) for (rate, decay), params in groups.items())


def state_elements(model: nn.Module, settings: OptimizerSettings) -> int:
    """How many numbers the optimizer remembers, the count of each tensor's steps aside.

    Raises:
        ModelError: no parameter of the model trains.
    """
    total = 0
    for group in _groups(model, settings, LoroSettings()):
        params = group["params"]
        numbers = sum(param.numel() for param in params)
        if settings.optimizer == "adafactor":  # sums of rows and of columns in place of matrices
            total += sum(
                param.numel() if param.ndim < 2 else sum(param.numel() // side for side in param.shape[-2:])
                for param in params
            )
        elif settings.optimizer in MOMENTUM_OPTIMIZERS and (group.get("muon") or group.get("factors")):
            total += numbers
            if settings.optimizer == "spectron":
                total += sum(min(param.shape) for param in params)
        elif "scalings" in group:  # of B, and the inverse of A A^T
            total += sum(2 * param.numel() + param.shape[1] ** 2 for param in params[1::2])
        elif "rank" in group:
            sides = [(max(param.shape), min(param.shape)) for param in params]
            total += sum(min(settings.rank, short) * (2 * long + short) for long, short in sides)
        else:
            total += 2 * numbers
    return total


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's learning rate to `factor` times its own `base_lr`.

    Returns:
        The run's learning rate, the one the optimizer was built with times `factor`: groups such as the embeddings or a
        T5's queries may have another.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return optimizer.defaults["lr"] * factor
