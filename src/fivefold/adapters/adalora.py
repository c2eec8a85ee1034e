"""AdaLoRA's two rules beyond its layers: ranks that matter least are taken away, and the factors stay orthogonal.

Source: Zhang et al. 2023 (AdaLoRA), section 3.2 and equation 4. The scores and the schedule are peft's `RankAllocator`.
Differs: peft applies the second rule only where the model computes the loss itself, and leaves calling the first one to
the training loop.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.adapters.attach import holds_adapter
from fivefold.errors import ConfigError

_STEPS, _MASK = "adalora_steps", "adalora_mask"
# What the allocator calls its running means, to what they are called in the optimizer's state.
_MEANS = {"exp_avg_ipt": "adalora_importance", "exp_avg_unc": "adalora_uncertainty"}

log = logging.getLogger("fivefold")


def is_adalora(model: Any) -> bool:
    """Whether a model is wrapped in an AdaLoRA adapter that trains."""
    return holds_adapter(model) and hasattr(model.base_model, "rankallocator")


def prune_ranks(model: Any, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
    """After each of the optimizer's steps, take away the ranks that the schedule has no room for any more.

    All that the schedule remembers lies in the optimizer's state, so that a resumed run goes on as if never stopped.
    The factors keep their shape: of a rank that is taken away, the singular value is 0.

    Args:
        model: of which `is_adalora` holds, not wrapped for several processes.
        optimizer: over its parameters.
        total_steps: of the run.

    Raises:
        ConfigError: `tinit` and `tfinal` leave no steps for it.
    """
    allocator, config = model.base_model.rankallocator, model.peft_config[model.active_adapter]
    if config.tinit + config.tfinal >= total_steps:
        raise ConfigError(
            f"AdaLoRA's tinit {config.tinit} and tfinal {config.tfinal} leave none of the run's {total_steps:,} steps "
            "to reduce ranks in; lower them, or train longer."
        )
    allocator.set_total_step(total_steps)
    last = total_steps - config.tfinal
    factors = {name: factor for name, factor in model.base_model.model.named_parameters() if "lora_" in name}
    values = {name: factor for name, factor in factors.items() if "lora_E" in name}
    counter = next(iter(values.values()))

    @torch.no_grad()
    def prune(*_: object) -> None:
        state = optimizer.state
        step = state[counter].get(_STEPS, 0) + 1
        state[counter][_STEPS] = step
        if step > last:
            for value in values.values():
                value.mul_(state[value][_MASK])
            return
        for theirs, ours in _MEANS.items():
            means = {name: state[one].get(ours, torch.zeros_like(one)) for name, one in factors.items()}
            setattr(allocator, theirs, means)
        allocator.ipt = dict(factors)
        allocator.update_and_allocate(model.base_model.model, step, force_mask=step == last)
        for theirs, ours in _MEANS.items():
            for name, mean in getattr(allocator, theirs).items():
                state[factors[name]][ours] = mean
        if step == last:
            for value in values.values():
                state[value][_MASK] = (value != 0).to(value.dtype)
            kept, there = (sum(map(int, counts)) for counts in zip(*map(_ranks, values.values()), strict=True))
            log.info("AdaLoRA keeps %s of %s ranks", f"{kept:,}", f"{there:,}")

    optimizer.register_step_post_hook(prune)


def orthogonality(model: Any) -> Tensor:
    """The penalty: `orth_reg_weight` times the mean, over factors P and Q, of the norms of P^T P - 1 and Q Q^T - 1.

    Args:
        model: of which `is_adalora` holds, wrapped for several processes or not.
    """
    bare = getattr(model, "module", model)
    distances = []
    for name, factor in bare.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            distances.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return bare.peft_config[bare.active_adapter].orth_reg_weight * torch.stack(distances).mean()


def _ranks(value: nn.Parameter) -> tuple[int, int]:
    return int(value.count_nonzero()), value.numel()
