"""The geometry of rank-r matrices W = left right: bases, tangent vectors, ways back. On stacks of pairs, in float32.

Shapes: left [..., m, r], right [..., r, n], W [..., m, n], which is never formed. In the LORO paper left is B (M in its
code) and right is A (N^T). A gradient G of W comes as the gradients of its factors: G right^T [..., m, r] and left^T G
[..., r, n].
"""

from typing import NamedTuple

import torch
from torch import Tensor

DAMPING = 1e-5
"""Part of a factor's norm below which its singular values are damped: float32 keeps five digits up to condition 1e2,
and nothing blows up beyond."""


class Factors(NamedTuple):
    """A stack of pairs, or of two tensors that are shaped like their gradients."""

    left: Tensor
    """[..., m, r]."""
    right: Tensor
    """[..., r, n]."""


class Point(NamedTuple):
    """W = U core V^T with orthonormal U and V, by QR of its factors: left = U R_left and right^T = V R_right."""

    left_basis: Tensor
    """U [..., m, r]."""
    left_triangle: Tensor
    """R_left [..., r, r]."""
    right_basis: Tensor
    """V [..., n, r]."""
    right_triangle: Tensor
    """R_right [..., r, r]."""

    @property
    def core(self) -> Tensor:
        """[..., r, r], not diagonal."""
        return self.left_triangle @ self.right_triangle.mT

    @property
    def is_singular(self) -> Tensor:
        """[...], whether a factor is singular, or so nearly that `DAMPING` tells."""
        return _is_singular(self.left_triangle) | _is_singular(self.right_triangle)


class Tangent(NamedTuple):
    """U inner V^T + outer_left V^T + U outer_right^T, where U^T outer_left = 0 and V^T outer_right = 0."""

    inner: Tensor
    """[..., r, r]."""
    outer_left: Tensor
    """[..., m, r]."""
    outer_right: Tensor
    """[..., n, r]."""

    def times(self, factor: float) -> "Tangent":
        """The tangent vector, longer or shorter."""
        return Tangent(*(factor * part for part in self))


def decompose(factors: Factors) -> Point:
    """Orthonormal bases of the column and row space of W; well defined for singular factors too."""
    return Point(*torch.linalg.qr(factors.left), *torch.linalg.qr(factors.right.mT))


def damped_inverse(triangle: Tensor, damping: float) -> Tensor:
    """R^T (R R^T + d^2 I)^-1 with d = damping ||R||, by a QR that does not square the condition of R.

    Args:
        triangle: R [..., r, r]; may be singular, even zero, if damping is above 0.
        damping: 0 gives the inverse itself.

    Returns:
        [..., r, r], of norm at most 1 / (2 d).
    """
    identity = torch.eye(triangle.shape[-1], dtype=triangle.dtype, device=triangle.device).expand_as(triangle)
    if damping == 0:
        return torch.linalg.solve_triangular(triangle, identity, upper=True)
    norm = torch.linalg.matrix_norm(triangle, keepdim=True).clamp_min(torch.finfo(triangle.dtype).tiny ** 0.5)
    orthogonal, upper = torch.linalg.qr(torch.cat([triangle.mT, damping * norm * identity], -2))
    return orthogonal[..., : triangle.shape[-1], :] @ torch.linalg.solve_triangular(upper, identity, upper=True).mT


def project(point: Point, gradient: Factors, damping: float = DAMPING) -> Tangent:
    """The tangent vector nearest to G: U U^T G + G V V^T - U U^T G V V^T, from the factors' gradients alone.

    Differs: LORO reads U^T G V off one of the two gradients. Here it is the mean of both readings, which are the same
    unless Adam has scaled the two apart.

    Args:
        gradient: (G right^T, left^T G).
        damping: of the solves that lead from these to G V and G^T U, see `damped_inverse`.
    """
    grad_v = gradient.left @ damped_inverse(point.right_triangle, damping)  # G V
    grad_u = gradient.right.mT @ damped_inverse(point.left_triangle, damping)  # G^T U
    inner_v, inner_u = point.left_basis.mT @ grad_v, grad_u.mT @ point.right_basis
    outer_left = grad_v - point.left_basis @ inner_v
    return Tangent((inner_v + inner_u) / 2, outer_left, grad_u - point.right_basis @ inner_u.mT)


def as_gradient(point: Point, tangent: Tangent, factors: Factors) -> Factors:
    """What the gradients of other factors would be if G were this tangent vector; the reverse of `project`.

    Projected at the other point they give the vector's transport there, by projection. Where both pairs have the same
    product W, that is the exact change of basis.

    Returns:
        (G right^T, left^T G).
    """
    seen_left = factors.left.mT @ point.left_basis
    seen_right = point.right_basis.mT @ factors.right.mT
    left = point.left_basis @ (tangent.inner @ seen_right + tangent.outer_right.mT @ factors.right.mT)
    right = (seen_left @ tangent.inner + factors.left.mT @ tangent.outer_left) @ point.right_basis.mT
    return Factors(left + tangent.outer_left @ seen_right, right + seen_left @ tangent.outer_right.mT)


def truncate(point: Point, step: Tangent, keep: float = 1.0) -> Factors:
    """The best rank-r approximation of keep W - step, which has rank 2r, by the SVD of a 2r x 2r core.

    Source: LORO (Mo, Huang and Pan, ICLR 2025), eq. 10.

    Returns:
        Balanced factors, see `balanced_factors`.
    """
    core = point.core
    rank = core.shape[-1]
    rest_left, triangle_left = torch.linalg.qr(step.outer_left)
    rest_right, triangle_right = torch.linalg.qr(step.outer_right)
    upper = torch.cat([keep * core - step.inner, -triangle_right.mT], -1)
    lower = torch.cat(
        [-triangle_left, triangle_left.new_zeros(*triangle_left.shape[:-1], triangle_right.shape[-2])], -1
    )
    turn_left, values, turn_right = _svd(torch.cat([upper, lower], -2))
    root = values[..., None, :rank].sqrt()
    left = torch.cat([point.left_basis, rest_left], -1) @ (turn_left[..., :rank] * root)
    right = torch.cat([point.right_basis, rest_right], -1) @ (turn_right.mT[..., :rank] * root)
    new = Factors(left, right.mT)
    has_zero = _are_zero(values[..., :rank], 2 * rank).any(-1)
    if has_zero.any():
        # Where a step has fewer than r directions, the rest of its basis is not orthogonal to U or V.
        refilled = balance(decompose(new))
        new = Factors(*(torch.where(has_zero[..., None, None], *each) for each in zip(refilled, new, strict=True)))
    return new


def balance(point: Point) -> Factors:
    """The same W in balanced factors, see `balanced_factors`.

    Source: the half of LORO's retraction that moves no weight; arXiv:2505.22922 joins it with momentum restarts.
    """
    turn_left, values, turn_right = _svd(point.core)
    inner = balanced_factors(turn_left, values, turn_right.mT)
    return Factors(point.left_basis @ inner.left, (point.right_basis @ inner.right.mT).mT)


def balanced_factors(left_vectors: Tensor, values: Tensor, right_vectors: Tensor) -> Factors:
    """U S V^T to the factors U S^1/2 and S^1/2 V^T: left^T left = right right^T, diagonal.

    A direction whose singular value is zero would be zero in both factors and get no gradient, ever: its row in the
    right factor is made as large as that of the smallest nonzero direction, its column in the left one stays zero, and
    so does its part of the product.

    Args:
        left_vectors: U [..., m, k].
        values: S [..., k], 0 and above; what is below the rounding errors of the largest counts as zero.
        right_vectors: V [..., n, k].
    """
    are_zero = _are_zero(values, max(left_vectors.shape[-2], right_vectors.shape[-2]))
    smallest = values.masked_fill(are_zero, torch.inf).amin(-1, keepdim=True)
    smallest = smallest.masked_fill(smallest.isinf(), 1.0)  # where all of them are zero
    right_lengths = torch.where(are_zero, smallest, values).sqrt()[..., None, :]
    return Factors(left_vectors * (values[..., None, :] / right_lengths), (right_vectors * right_lengths).mT)


def _are_zero(values: Tensor, size: int) -> Tensor:
    # The usual size * eps would take directions for zero that are not: those that should be zero came out at a third of
    # this at most, for sizes from 8 to 1376.
    return values <= size**0.5 * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # LAPACK raises on what is not finite; such a pair keeps its factors, as its result is not finite either.
    finite = matrix.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    left, values, right = torch.linalg.svd(torch.where(finite, matrix, 0))
    return left, torch.where(finite.squeeze(-1), values, torch.nan), right


def _is_singular(triangle: Tensor) -> Tensor:
    # The smallest diagonal entry of R is an upper bound of its smallest singular value.
    smallest = triangle.diagonal(dim1=-2, dim2=-1).abs().amin(-1)
    return ~(smallest > DAMPING * torch.linalg.matrix_norm(triangle))
