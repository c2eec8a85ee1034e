"""How the two factors of a layer start."""

import math

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.lowrank.settings import INITS
from fivefold.lowrank.tangent import balanced_factors
from fivefold.nn.low_rank import LowRankLinear


@torch.no_grad()
def initialise_factors(
    layer: LowRankLinear,
    dense: nn.Linear | None,
    init: str,
    *,
    initializer_range: float | None = None,
    generator: torch.Generator,
) -> None:
    """Write a layer's factors B [out, rank] and A [rank, in]; the bias is left alone.

    With m outputs, n inputs and rank r:

    | init | factors | variance of an element of B A |
    | --- | --- | --- |
    | xavier | normal, variance 2/(m+r) and 2/(n+r) | 4r / ((m+r)(n+r)) |
    | xavorth | orthonormal columns and rows, times the deviations of xavier | |
    | auto | normal, equal deviations | initializer_range^2; as dense where there is none |
    | kaiming | normal, variance 2/r each | 4/r |
    | orth | orthonormal columns and rows | r / (mn) |
    | randn_X, const_X | normal of deviation X; everywhere X | r X^4; 0 |
    | dense | normal, equal deviations | that of the elements of the dense weight |
    | spectral, spectral_X | truncated SVD of the dense weight, or of X times it, singular values split evenly | |

    Source: Mo, Huang and Pan, Parameter and Memory Efficient Pretraining via Low-rank Riemannian Optimization (ICLR
        2025), the first six rows as their code has them; spectral: Khodak et al. 2021 (arXiv 2105.01029).
    Differs: orthonormal factors are so for bfloat16 weights too, where the published code drops them; auto is there for
        models without an initializer_range too, such as T5.

    Args:
        layer: overwritten; its rank at most min(in, out).
        dense: the layer it stands for; only dense, spectral and auto without initializer_range look at it.
        init: a name from the table.
        initializer_range: deviation of a fresh dense weight, for auto; None for a model whose layers differ in it.
        generator: the only source of randomness; numbers are drawn in float32 on its device, whatever the layer's.

    Raises:
        ModelError: no such init, a dense layer that is missing, zero or not finite, or factors that would be zero.

    Cost: spectral takes one full SVD of the dense weight: about a second for 1024 x 2736 on one CPU core.
    """
    left, right = layer.left.weight, layer.right.weight
    name, _, number = init.partition("_")
    if name == "spectral":
        weight = _weight(dense, init) * (float(number) if number else 1.0)
        left_vectors, values, right_vectors_t = torch.linalg.svd(weight, full_matrices=False)
        rank = layer.rank
        factors = balanced_factors(left_vectors[:, :rank], values[:rank], right_vectors_t[:rank].T)
    else:
        draw = {"orth": _orthonormal, "xavorth": _orthonormal, "const": _ones}.get(name, _normal)
        scales = _scales(layer, dense, init, initializer_range)
        factors = (scales[0] * draw(left.shape, generator), scales[1] * draw(right.shape, generator))
    if not factors[0].any() and not factors[1].any():
        raise ModelError(f"the init {init!r} makes both factors zero, and such a layer never learns.")
    left.copy_(factors[0])
    right.copy_(factors[1])


def _scales(
    layer: LowRankLinear, dense: nn.Linear | None, init: str, initializer_range: float | None
) -> tuple[float, float]:
    """What to multiply the drawn factors by: deviations, lengths of orthonormal columns and rows, or the constant."""
    rank = layer.rank
    match init.split("_"):
        case ["xavier" | "xavorth"]:
            return math.sqrt(2 / (layer.out_features + rank)), math.sqrt(2 / (layer.in_features + rank))
        case ["auto"] if initializer_range is not None:
            scale = (initializer_range**2 / rank) ** 0.25
        case ["kaiming"]:  # the published factors are [features, rank], so that torch takes the rank for the fan-in
            scale = math.sqrt(2 / rank)
        case ["orth"]:
            scale = 1.0
        case ["randn" | "const", number]:
            scale = float(number)
        case ["auto" | "dense"]:
            scale = (_weight(dense, init).var().item() / rank) ** 0.25
        case _:
            raise ModelError(f"there is no init {init!r}, only {', '.join(INITS)}, randn_X, const_X and spectral_X.")
    return scale, scale


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def _orthonormal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(shape, device=generator.device, dtype=torch.float32), generator=generator)


def _ones(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.ones(shape, device=generator.device)


def _weight(dense: nn.Linear | None, init: str) -> Tensor:
    """[out, in], float32 or wider."""
    if dense is None:
        raise ModelError(f"the init {init!r} starts from a dense layer, and there is none; use xavier.")
    weight = dense.weight.detach()
    if not weight.isfinite().all():
        raise ModelError(f"the init {init!r} starts from a dense layer, and this one holds NaN or infinite weights.")
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
