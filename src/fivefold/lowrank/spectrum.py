"""The singular values of a layer, and how many of them count."""

import torch
from torch import Tensor, nn

from fivefold.nn.low_rank import LowRankLinear


@torch.no_grad()
def singular_values(layer: LowRankLinear | nn.Linear) -> Tensor:
    """Singular values of a layer's weight, from large to small; NaN throughout if the weight is not finite.

    Returns:
        [rank] float64 for a factored layer, whose product is never formed; [min(out, in)] for a dense one, in float32
        or wider.

    Cost: O((out + in) rank^2) for a factored layer.
    """
    if isinstance(layer, LowRankLinear):
        # B = Q R and A^T = Q' R' with orthonormal Q, Q': B A has the singular values of R R'^T.
        factors = (layer.left.weight.double(), layer.right.weight.double().T)
        matrix = torch.linalg.qr(factors[0], mode="r").R @ torch.linalg.qr(factors[1], mode="r").R.T
    else:
        matrix = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32))
    if not matrix.isfinite().all():  # the library would raise
        return matrix.new_full((min(matrix.shape),), torch.nan)
    return torch.linalg.svdvals(matrix)


@torch.no_grad()
def factored_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of B A from its factors; the product is never formed.

    Args:
        left: B [out, rank], finite.
        right: A [rank, in], finite.

    Returns:
        (U, S, V) in float64: [out, k], [k] from large to small, [in, k], with k the rank or a smaller side.

    Cost: O((out + in) rank^2 + rank^3).
    """
    left_basis, left_core = torch.linalg.qr(left.double())
    right_basis, right_core = torch.linalg.qr(right.double().T)
    inner_left, values, inner_right_t = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return left_basis @ inner_left, values, right_basis @ inner_right_t.T


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum: k equal ones give k, one alone gives 1.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality (EUSIPCO 2007), definition 1.

    Args:
        values: [k], 0 and above; all zero gives 0.
    """
    total = values.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(values / total).sum().exp().item()


def stable_rank(values: Tensor) -> float:
    """Squared Frobenius norm over squared largest singular value; all zero gives 0.

    Args:
        values: [k], 0 and above.
    """
    largest = values.max()
    return ((values / largest) ** 2).sum().item() if largest != 0 else 0.0
