"""Muon on the manifold of rank-r matrices W = left right: the step of `loro_muon`, for stacks of factor pairs.

Bases are read off r x r Gram matrices by Cholesky, so that what is long is multiplied and only once factored: two
thirds of the time of the same step by QRs. Squaring halves the digits: float32 sees singular values of a factor down to
some 2e-3 of the largest; below, the damping takes over and the step fades out instead of blowing up.
"""

import math

import torch
from torch import Tensor

from fivefold.lowrank.polar import polar, tiny
from fivefold.lowrank.tangent import Factors

# Added to a Gram matrix, in units of its rounding errors: more than those of its Cholesky factor ever were.
_SHIFT = 8


def manifold_muon_step(
    factors: Factors, momentum: Factors, direction: Factors, lr: float, weight_decay: float = 0.0, num_rounds: int = 6
) -> tuple[Factors, Factors, Tensor]:
    """W moves by the orthogonalised tangent vector nearest to X, and back to rank r; the momentum comes along.

    With U, V orthonormal bases of W, a tangent vector is [U Q] C [V P]^T, where Q and P are orthonormal too and C, the
    core, is 2r x 2r: its polar factor is all there is to orthogonalise. The step's size is Muon's, 0.2 sqrt(max(m, n))
    lr: at full rank an RMS like Adam's. The way back is a projector splitting, as near as a truncated SVD up to third
    order in the step: U' spans W' V, and W' becomes U' U'^T W'. Momentum is carried by projection on the tangent space.
    Source: our own; Riemannion (arXiv:2507.12142) is its relative for LoRA, Lubich and Oseledets (2014) split so.
    Cost: some 20 products with thin matrices, one QR of [m, r], no SVD.

    Args:
        factors: left [..., m, r] and right [..., r, n].
        momentum: (M right^T, left^T M) of the momentum M.
        direction: (X right^T, left^T X) of what moves W: the momentum, or a look ahead from it.
        num_rounds: of Newton-Schulz.

    Returns:
        New factors, left with orthogonal columns of one length and as large together as right; the momentum as they
        see it; whether each pair was so near to singular that the damping tells [...].
    """
    left, right = factors.left, factors.right.mT
    gram_left, gram_right = left.mT @ left, right.mT @ right
    triangle_u, triangle_v = _triangle(gram_left), _triangle(gram_right)
    to_u, to_v = _inverse(triangle_u), _inverse(triangle_v)  # left to_u = U, right to_v = V

    grad_v, grad_u = direction.left @ to_v, direction.right.mT @ to_u  # X V, X^T U
    inner = to_u.mT @ (left.mT @ grad_v)  # U^T X V
    outer_left, outer_right = grad_v - left @ (to_u @ inner), grad_u - right @ (to_v @ inner.mT)
    triangle_left, triangle_right = _triangle(outer_left.mT @ outer_left), _triangle(outer_right.mT @ outer_right)
    core = _core(inner, triangle_left, triangle_right)
    core = polar(core, num_rounds) * (0.2 * lr * math.sqrt(max(left.shape[-2], right.shape[-2])))
    # The polar factor's lower right corner points out of the tangent space; it is left out.
    rank = inner.shape[-1]
    step_left = torch.linalg.solve_triangular(triangle_left, core[..., rank:, :rank], upper=True)
    step_right = torch.linalg.solve_triangular(triangle_right, core[..., :rank, rank:].mT, upper=True)

    kept = (1 - lr * weight_decay) * triangle_v.mT - to_u @ core[..., :rank, :rank]
    basis, triangle = torch.linalg.qr(left @ kept - outer_left @ step_left)  # of W' V
    turn = to_u.mT @ (left.mT @ basis)  # U^T U'
    new_right = right @ (to_v @ triangle.mT) - outer_right @ (step_right @ turn)
    scale = (torch.linalg.matrix_norm(new_right, keepdim=True) / rank**0.5).clamp_min(tiny(left)).sqrt()
    new_left, new_right = basis * scale, new_right / scale

    seen_v, seen_u = triangle.mT / scale, turn * scale  # V^T new_right, U^T new_left
    inner = to_u.mT @ (left.mT @ momentum.left) @ to_v
    carried_left = momentum.left @ (to_v @ seen_v) + left @ (
        to_u @ (to_u.mT @ (momentum.right @ new_right) - inner @ seen_v)
    )
    carried_right = momentum.right.mT @ (to_u @ seen_u) + right @ (
        to_v @ (to_v.mT @ (momentum.left.mT @ new_left) - inner.mT @ seen_u)
    )
    is_singular = _is_singular(gram_left, triangle_u) | _is_singular(gram_right, triangle_v)
    return Factors(new_left, new_right.mT), Factors(carried_left, carried_right.mT), is_singular


def _triangle(gram: Tensor) -> Tensor:
    """Upper R with R^T R = gram + a shift that covers its rounding errors."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    triangle, failed = torch.linalg.cholesky_ex(gram + _shift(gram) * identity, upper=True)
    return torch.where(failed[..., None, None] == 0, triangle, torch.nan)


def _shift(gram: Tensor) -> Tensor:
    return _SHIFT * torch.finfo(gram.dtype).eps * torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(tiny(gram))


def _is_singular(gram: Tensor, triangle: Tensor) -> Tensor:
    # The smallest entry of the diagonal bounds the smallest singular value from above; of two equal columns it is the
    # root of twice the shift, give or take rounding.
    return ~(triangle.diagonal(dim1=-2, dim2=-1).amin(-1).square() > 3 * _shift(gram)[..., 0, 0])


def _inverse(triangle: Tensor) -> Tensor:
    identity = torch.eye(triangle.shape[-1], dtype=triangle.dtype, device=triangle.device)
    return torch.linalg.solve_triangular(triangle, identity.expand_as(triangle), upper=True)


def _core(inner: Tensor, triangle_left: Tensor, triangle_right: Tensor) -> Tensor:
    upper, lower = torch.cat([inner, triangle_right.mT], -1), torch.cat([triangle_left, torch.zeros_like(inner)], -1)
    return torch.cat([upper, lower], -2)
