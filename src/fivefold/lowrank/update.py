"""One step of a stack of factor pairs, as pure functions: LORO's two and Spectron's.

Shapes and words as in `lowrank.tangent`. A direction is what is subtracted from a factor, shaped like it: its gradient,
or what Adam makes of it. Everything is computed in the type of the tensors: give float32 or wider.
"""

import torch
from torch import Tensor

from fivefold.lowrank.polar import polar
from fivefold.lowrank.tangent import DAMPING, Factors, Point, project, truncate


def lazy_step(
    factors: Factors, direction: Factors, lr: float, weight_decay: float = 0.0, lr_scale: float = 1.0
) -> Factors:
    """Each factor moves by itself, left - s lr d_left and right - s lr d_right, after decoupled decay.

    Source: LORO (Mo, Huang and Pan, ICLR 2025), eq. 12, where s is r/d.

    Args:
        lr_scale: s, of the step alone: how fast factors decay follows `lr`.
    """
    keep, step = 1 - lr * weight_decay, lr * lr_scale
    return Factors(*(keep * factor - step * move for factor, move in zip(factors, direction, strict=True)))


def exact_step(
    point: Point,
    direction: Factors,
    lr: float,
    weight_decay: float = 0.0,
    lr_scale: float = 1.0,
    damping: float = DAMPING,
) -> Factors:
    """The best rank-r approximation of W - s lr P(G), where P projects onto the tangent space at W.

    Source: LORO, eq. 10 and Algorithm 1.
    Differs: weight decay is honoured: W shrinks as in a lazy step, where each of its factors does.
    Cost: O((m + n) r^2 + r^3) a pair, with an SVD of 2r x 2r.

    Args:
        point: where the factors stand, from `tangent.decompose`.
        direction: (G right^T, left^T G), or Adam's version of them.
        lr_scale: s, of the step alone, as in a lazy step.
        damping: see `tangent.project`.
    """
    step = project(point, direction, damping).times(lr * lr_scale)
    return truncate(point, step, keep=(1 - lr * weight_decay) ** 2)


def spectron_step(
    factors: Factors, momentum: Factors, lr: float, probes: Factors, weight_decay: float = 0.0
) -> tuple[Factors, Factors]:
    """Each factor moves by its orthogonalised momentum, so far that W changes by at most about lr in spectral norm.

    The step is lr / (sigma(left) + sigma(right) + 1), the sigmas by one round of power iteration.
    Source: Spectron (Janson, Oyallon and Belilovsky, arXiv:2602.12429).

    Args:
        momentum: averages of the factors' gradients.
        probes: vectors of the power iteration, [..., r, 1] each, of length 1, kept from step to step.

    Returns:
        New factors and new probes.
    """
    seen = Factors(factors.left @ probes.left, factors.right.mT @ probes.right)
    sigma_left, sigma_right = (torch.linalg.vector_norm(vector, dim=-2, keepdim=True) for vector in seen)
    step = lr / (sigma_left + sigma_right + 1)
    keep = 1 - step * weight_decay
    moved = Factors(*(keep * factor - step * polar(average) for factor, average in zip(factors, momentum, strict=True)))
    fresh = Factors(factors.left.mT @ seen.left, factors.right @ seen.right)
    return moved, Factors(*map(_direction_or, fresh, probes))


def _direction_or(vector: Tensor, fallback: Tensor) -> Tensor:
    """The vector with length 1, or where it is zero, as behind a factor that is, the fallback."""
    norm = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
    return torch.where(norm > 0, vector / norm, fallback)
