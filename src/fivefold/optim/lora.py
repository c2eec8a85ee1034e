"""LoRA+ and LoRA-FA: optimizers that know the two factors of an adapter, B A added to a layer's matrix."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.optim.adamw import adamw_step
from fivefold.optim.parameters import build_groups

EMBEDDING_LR = 1e-6
"""LoRA+'s rate of an embedding's adapter, the authors' and peft's."""


class LoraPair(NamedTuple):
    """The factors of a layer's update, scaling * B A."""

    first: nn.Parameter
    """A, [r, in]."""
    second: nn.Parameter
    """B, [out, r]."""
    scaling: float


class LoRAFA(torch.optim.Optimizer):
    """AdamW, of LoRA's factors on B alone: on the gradient that makes B A move most like the whole matrix would.

    With A fixed, B's gradient is scaling G A^T for the gradient G of the matrix; B (A A^T)^-1 / scaling^2 times as much
    moves the product by G's projection on the rows of A. Layers keep B A x for B's gradient, not the input x.

    Source: Zhang et al. 2023 (arXiv:2308.03303); the projection: peft.
    Differs: from peft's class, whose state is by name, so that it stays on the CPU when a run goes on on a GPU; which
    multiplies in bfloat16 where it can, and takes a DoRA's magnitude for the next layer's A. An embedding's A starts at
    0 and would stay there, so these adapters learn as under AdamW. Decay and eps are as in torch.

    Args:
        params: groups of parameters; with `scalings`, of A, B, A, B, ... in turn; see `lorafa_groups`.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        # `fused` makes torch's load_state_dict put the step count beside the parameter, where the kernel wants it.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a closure, if given, recomputes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, scalings = group["params"], group.get("scalings")
            if scalings is None:
                learn = {param: param.grad for param in params if param.grad is not None}
            else:
                pairs = zip(params[::2], params[1::2], scalings, strict=True)
                learn = {pair[1]: self._projected(*pair) for pair in pairs if pair[1].grad is not None}
            adamw_step(list(learn), list(learn.values()), [self.state[param] for param in learn], group)
        return loss

    def _projected(self, first: Tensor, second: Tensor, scaling: float) -> Tensor:
        """B's gradient times (A A^T)^-1 / scaling^2; the inverse is kept, for A stays."""
        state, grad = self.state[second], second.grad
        assert grad is not None
        if "inverse" not in state:
            gram = (first @ first.mT).float()
            inverse = torch.linalg.pinv(gram + 1e-8 * torch.eye(len(gram), device=gram.device), hermitian=True)
            state["inverse"] = inverse / scaling**2
        return (grad.float() @ state["inverse"].float()).to(grad.dtype)


def lora_pairs(model: nn.Module) -> list[LoraPair]:
    """The factors of every LoRA in the linear layers of a model; none of other kinds of adapters."""
    pairs = []
    for module in model.modules():
        scalings: Any = getattr(module, "scaling", None)
        firsts, seconds = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if isinstance(scalings, dict) and isinstance(firsts, nn.ModuleDict) and isinstance(seconds, nn.ModuleDict):
            for name, first in firsts.items():
                pairs.append(LoraPair(first.weight, seconds[name].weight, scalings[name]))  # type: ignore[arg-type]
    return [pair for pair in pairs if pair.second.requires_grad and pair.second.ndim == 2]


def freeze_first_factors(model: nn.Module) -> None:
    """Freeze A of every LoRA, as LoRA-FA does."""
    for pair in lora_pairs(model):
        pair.first.requires_grad_(False)


def lorafa_groups(model: nn.Module, others: list[dict[str, Any]], *, lr: float, weight_decay: float) -> list[dict]:
    """Groups for `LoRAFA`: the factors of LoRA, A of which are frozen, and the other parameters that train.

    Args:
        others: groups of all that train with A frozen, from which B is taken out.
        lr: of the factors.
        weight_decay: of B.
    """
    pairs = lora_pairs(model)
    seconds = {id(pair.second) for pair in pairs}
    factors = [factor for pair in pairs for factor in (pair.first, pair.second)]
    groups = build_groups([(factors, lr, weight_decay, {"scalings": [pair.scaling for pair in pairs]})])
    for group in others:
        if rest := [param for param in group["params"] if id(param) not in seconds]:
            groups.append({**group, "params": rest})
    return groups


def loraplus_groups(model: nn.Module, *, lr: float, ratio: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW in which B learns `ratio` times as fast as A, so that both move the product alike.

    Source: Hayou et al. 2024 (arXiv:2402.12354), section 4; which parameters count as which: peft.
    Differs: no tensor of fewer than two dimensions decays, here as elsewhere, a DoRA's magnitude among them.

    Args:
        lr: of A and of whole matrices that train beside the adapter.
        ratio: by which B, biases, norms and magnitudes are faster; embeddings' adapters learn at `EMBEDDING_LR`.
        weight_decay: of what has two dimensions or more.
    """
    kinds: dict[tuple[float, float], list[Tensor]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_fast = "lora_B" in name or param.ndim < 2
            rate = EMBEDDING_LR if "lora_embedding_" in name else lr * ratio if is_fast else lr
            kinds.setdefault((rate, weight_decay if param.ndim >= 2 else 0.0), []).append(param)
    return build_groups((params, rate, decay, {}) for (rate, decay), params in kinds.items())
