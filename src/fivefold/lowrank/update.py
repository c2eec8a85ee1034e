"""One step of a stack of factor pairs, as pure functions: LORO's two, Muon on the manifold, Spectron's.

Shapes and words as in `lowrank.tangent`. A direction is what is subtracted from a factor, shaped like it: its gradient,
or what Adam makes of it. Everything is computed in the type of the tensors: give float32 or wider.
"""

import math

import torch
from torch import Tensor

from fivefold.lowrank.tangent import Factors, Point, Tangent, project, split, truncate

# The quintic of Muon's reference implementation: five rounds take singular values in 0.01 .. 1 to about 0.7 .. 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def lazy_step(factors: Factors, direction: Factors, lr: float, weight_decay: float = 0.0) -> Factors:
    """Each factor moves by itself, left - lr d_left and right - lr d_right, after decoupled decay.

    Source: LORO (Mo, Huang and Pan, ICLR 2025), eq. 12; its r/d is a factor on `lr`.
    """
    keep = 1 - lr * weight_decay
    return Factors(*(keep * factor - lr * move for factor, move in zip(factors, direction, strict=True)))


def exact_step(point: Point, direction: Factors, lr: float, weight_decay: float = 0.0) -> Factors:
    """The best rank-r approximation of W - lr P(G), where P projects onto the tangent space at W.

    Source: LORO, eq. 10 and Algorithm 1.
    Differs: weight decay is honoured: W shrinks as in a lazy step, where each of its factors does.
    Cost: O((m + n) r^2 + r^3) a pair, with an SVD of 2r x 2r.

    Args:
        point: where the factors stand, from `tangent.decompose`.
        direction: (G right^T, left^T G), or Adam's version of them.
    """
    return truncate(point, project(point, direction).times(lr), keep=(1 - lr * weight_decay) ** 2)


def manifold_muon_step(
    point: Point, direction: Factors, lr: float, weight_decay: float = 0.0, num_rounds: int = 6
) -> Factors:
    """Muon on the manifold of rank-r matrices: W moves by the orthogonalised tangent vector of the momentum, and back.

    A tangent vector is [U Q_2] C [V Q_1]^T with orthonormal Q's and a 2r x 2r core C, so that C's polar factor is all
    there is to orthogonalise. The step's size is Muon's, 0.2 sqrt(max(m, n)) lr: at full rank an RMS like Adam's.
    Source: our own; Riemannion (arXiv:2507.12142) is its relative for LoRA.
    Cost: O((m + n) r^2 + r^3) a pair: QRs and products of thin matrices, no SVD.

    Args:
        point: where the factors stand.
        direction: (X right^T, left^T X) of the momentum X.
        num_rounds: of Newton-Schulz.
    """
    tangent = project(point, direction)
    rest_left, triangle_left = torch.linalg.qr(tangent.outer_left)
    rest_right, triangle_right = torch.linalg.qr(tangent.outer_right)
    rank = point.core.shape[-1]
    corner = triangle_left.new_zeros(*triangle_left.shape[:-1], triangle_right.shape[-2])
    upper, lower = torch.cat([tangent.inner, triangle_right.mT], -1), torch.cat([triangle_left, corner], -1)
    core = polar(torch.cat([upper, lower], -2), num_rounds)
    # The polar factor's lower right corner points out of the tangent space; it is left out.
    step = Tangent(
        core[..., :rank, :rank], rest_left @ core[..., rank:, :rank], rest_right @ core[..., :rank, rank:].mT
    )
    size = 0.2 * math.sqrt(max(rest_left.shape[-2], rest_right.shape[-2]))
    return split(point, step.times(lr * size), keep=1 - lr * weight_decay)


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


def polar(matrix: Tensor, num_rounds: int = 5) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T, by Newton-Schulz iteration; zero stays zero.

    Source: Muon (Jordan et al., 2024).
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    a, b, c = _QUINTIC
    stack = x.reshape(-1, *x.shape[-2:])
    for _ in range(num_rounds):
        gram = stack @ stack.mT
        # a x + (b gram + c gram^2) x, with the sums inside the products: a tenth faster on a CPU
        stack = torch.baddbmm(stack, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), stack, beta=a)
    x = stack.reshape(x.shape)
    return x.mT if is_tall else x


def _direction_or(vector: Tensor, fallback: Tensor) -> Tensor:
    """The vector with length 1, or where it is zero, as behind a factor that is, the fallback."""
    norm = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
    return torch.where(norm > 0, vector / norm, fallback)
