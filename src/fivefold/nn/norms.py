"""Normalisations: root-mean-square, the same with less memory, conditional and grouped, and layer normalisation.

All of them take their statistics in float32 or wider. Under autocast the result is in the autocast dtype, so that the
several linear layers that read it do not each cast it again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fivefold.errors import ModelError

# Numbers handled at once: 1 MB in float32, about a CPU core's level-2 cache.
_CHUNK = 1 << 18


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4; T5's layer norm (no mean, no bias).
    Differs: rounds once, after the weight; transformers' T5 rounds to the input's dtype before it as well.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        wide = _wide(x, self.weight.shape[0])
        return F.rms_norm(wide, wide.shape[-1:], self.weight.to(wide.dtype), self.eps).to(_result_dtype(x))

    def extra_repr(self) -> str:
        """What `print(model)` shows in the brackets."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class FastRMSNorm(RMSNorm):
    """RMSNorm that trains faster on a CPU and keeps half the memory, a quarter of it for a half-precision x.

    Kept for the backward pass are x in its own dtype and 1 / rms(x), one float32 a row; RMSNorm keeps x and x / rms(x),
    both in float32. Rows are worked through in chunks that stay in a core's cache. Outputs, gradients, their gradients
    and checkpoints are RMSNorm's. On other devices torch's fused kernel does as much.

    Source: as RMSNorm; dropping what is cheap to work out again: Chen et al. 2016 (arXiv 1604.06174), section 4.
    Differs: from keeping the output, which the next linear layer keeps anyway, and dividing by the weight (Rota Bulo
    et al. 2018, arXiv 1712.02616): that fails where a weight is 0 and is inexact where the output is bfloat16.

    Args:
        dim: size of the last dimension.
        eps: added to the mean square.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        _check_width(x, self.weight.shape[0])
        return _FastRMSNorm.apply(x, self.weight, self.eps, _result_dtype(x))


class _FastRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        out_ND = torch.empty_like(x_ND, dtype=dtype)
        inverse_rms = x_ND.new_empty(len(x_ND), 1, dtype=wide)
        for rows in _chunks(x_ND):
            inverse_rms[rows] = _inverse_rms(x_ND[rows], eps)
            out_ND[rows] = (x_ND[rows] * inverse_rms[rows]).mul_(weight.to(wide))
        ctx.save_for_backward(x, weight, inverse_rms)
        ctx.eps = eps
        return out_ND.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, inverse_rms = ctx.saved_tensors
        if torch.is_grad_enabled():  # this will be differentiated again
            grads = _rms_norm_gradients(x, weight, grad_out, _inverse_rms(x, ctx.eps))
            return grads[0].to(x.dtype), grads[1].sum_to_size(weight.shape).to(weight.dtype), None, None
        x_ND, grad_ND = (tensor.reshape(-1, x.shape[-1]) for tensor in (x, grad_out))
        grad_x = torch.empty_like(x_ND)
        grad_weight = torch.zeros_like(weight, dtype=inverse_rms.dtype)
        for rows in _chunks(x_ND):
            grad_x[rows], of_weight = _rms_norm_gradients(x_ND[rows], weight, grad_ND[rows], inverse_rms[rows])
            grad_weight += of_weight.sum(0)
        return grad_x.view(x.shape), grad_weight.to(weight.dtype), None, None


def _rms_norm_gradients(x: Tensor, weight: Tensor, grad: Tensor, inverse_rms: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and, row by row, of the weight."""
    wide = inverse_rms.dtype
    grad = grad.to(wide) * inverse_rms
    of_weight = grad * x
    # The part of the gradient along x would only change the length of x, which the norm takes away.
    along_x = (of_weight * (weight.to(wide) / x.shape[-1])).sum(-1, keepdim=True) * inverse_rms.square()
    return torch.addcmul(grad * weight.to(wide), x.to(wide), along_x, value=-1), of_weight


def _chunks(x_ND: Tensor) -> list[slice]:
    step = max(1, _CHUNK // max(1, x_ND.shape[-1]))
    return [slice(start, start + step) for start in range(0, len(x_ND), step)]


class AdaptiveRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + scale(cond)): RMSNorm whose weight is a linear function of a condition.

    `scale` starts at zero, so a new layer is RMSNorm with weight 1; its bias is the part that no condition changes.

    Source: adaLN of Peebles and Xie 2022 (arXiv 2212.09748), section 3.2.
    Differs: no shift, since RMSNorm neither removes nor adds a mean; no SiLU in front: the caller's encoder of the
    condition ends as it likes.

    Args:
        dim: size of the last dimension of x.
        cond_dim: size of the last dimension of the condition.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, cond_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Linear(cond_dim, dim)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)
        self.eps = eps

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Normalise x under a condition.

        Args:
            x: [B, ..., dim].
            cond: [B, cond_dim], one for all positions, or [B, ..., cond_dim], one a position.

        Returns:
            [B, ..., dim].

        Raises:
            ModelError: the shape of x or of the condition is another.
        """
        wide = _wide(x, self.scale.out_features)
        one_for_all, one_a_position = ((*sizes, self.scale.in_features) for sizes in (x.shape[:1], x.shape[:-1]))
        if cond.shape not in (one_for_all, one_a_position):
            raise ModelError(
                f"x of shape {list(x.shape)} got a condition of {list(cond.shape)}; "
                f"give {list(one_for_all)} or {list(one_a_position)}."
            )
        scale = self.scale(cond).to(wide.dtype)
        if cond.dim() < x.dim():
            scale = scale.reshape(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
        return (F.rms_norm(wide, wide.shape[-1:], eps=self.eps) * (1 + scale)).to(_result_dtype(x))

    def extra_repr(self) -> str:
        """What `print(model)` shows beside the linear layer."""
        return f"eps={self.eps}"


class GroupRMSNorm(RMSNorm):
    """RMSNorm over each of `num_groups` equal runs of channels: no group's size can drown another's.

    With one group this is RMSNorm; with one group a head it normalises the heads of an attention's output apart.

    Source: the groups of Wu and He 2018 (arXiv 1803.08494), equation 7; over heads: Sun et al. 2023 (arXiv
    2307.08621), section 2.2.
    Differs: RMSNorm's statistics in place of mean and variance; no group reaches beyond its position.

    Args:
        dim: size of the last dimension.
        num_groups: divides dim.
        eps: added to the mean square of each group.

    Raises:
        ModelError: dim is not a multiple of num_groups.
    """

    def __init__(self, dim: int, num_groups: int, eps: float = 1e-6) -> None:
        if num_groups < 1 or dim % num_groups:
            raise ModelError(f"{dim} channels do not divide into {num_groups} groups; num_groups must divide dim.")
        super().__init__(dim, eps)
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        dim = self.weight.shape[0]
        groups = _wide(x, dim).unflatten(-1, (self.num_groups, dim // self.num_groups))
        normed = F.rms_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * self.weight.to(normed.dtype)).to(_result_dtype(x))

    def extra_repr(self) -> str:
        """What `print(model)` shows in the brackets."""
        return f"{self.weight.shape[0]}, num_groups={self.num_groups}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension.

    Source: Ba et al. 2016 (arXiv 1607.06450), equation 3.
    Differs: from torch's only in the dtype under autocast, where torch's gives float32 for a float32 input.

    Args:
        dim: size of the last dimension.
        eps: added to the variance.
        bias: whether there is one.
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(dim, eps, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        wide = _wide(input, self.weight.shape[0])
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        out = F.layer_norm(wide, wide.shape[-1:], self.weight.to(wide.dtype), bias, self.eps)
        return out.to(_result_dtype(input))


# Names as configurations write them. All can be called as (dim, eps=eps); 8 groups divide every width of T5.
NORMS: dict[str, Callable[..., nn.Module]] = {
    "rmsnorm": FastRMSNorm,
    "group_rmsnorm": partial(GroupRMSNorm, num_groups=8),
    "layernorm": LayerNorm,
}


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = wide.square().mean(-1, keepdim=True)
    # Where that is inf, x would become 0 and a model that blew up would look sound: NaN, which inf - inf is, shows it.
    return torch.rsqrt(mean_square + eps) + (mean_square - mean_square)


def _wide(x: Tensor, dim: int) -> Tensor:
    _check_width(x, dim)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_width(x: Tensor, dim: int) -> None:
    if x.shape[-1:] != (dim,):  # one channel would be broadcast in silence
        raise ModelError(f"A norm over {dim} channels got a tensor of shape {list(x.shape)}; pass [..., {dim}].")


def _result_dtype(x: Tensor) -> torch.dtype:
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):  # no autocast on meta
        return torch.get_autocast_dtype(device_type)
    return x.dtype
