"""A factored model to other ranks."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fivefold.errors import ModelError
from fivefold.lowrank.convert import (
    Report,
    build_report,
    count_parameters,
    factor_pairs,
    plain_factors,
    seeded_generator,
)
from fivefold.lowrank.spectrum import factored_svd
from fivefold.lowrank.tangent import balanced_factors
from fivefold.lowrank.targets import kind_of, name_patterns


@torch.no_grad()
def change_rank(
    model: PreTrainedModel, *, attn_rank: int | None = None, mlp_rank: int | None = None, seed: int = 0
) -> Report:
    """Give every factored layer another rank, in place; layers that have it already are not touched.

    A smaller rank keeps the best approximation of the product. A larger one keeps the product: each new direction has a
    zero column in the left factor, and in the right one a row that is orthogonal to all others and as large as that
    of the smallest present direction. So it adds nothing yet, but the left factor's gradient along it is not zero.
    Either way the factors come out balanced (B^T B = A A^T, but for the new directions). Parameters are new objects:
    build the optimizer afterwards.

    Args:
        model: as `convert` or `load_factored` left it.
        attn_rank: of attention projections, capped at each matrix's smaller side; None leaves each its own.
        mlp_rank: of feed-forward layers, likewise.
        seed: with a layer's place in the row, all that the new directions depend on.

    Raises:
        ModelError: no factored layers, one of unknown kind, adapters on a factor, or weights that are not finite. The
            model is unchanged then.
    """
    pairs = factor_pairs(model)
    if not pairs:
        raise ModelError(f"{type(model).__name__} is dense: convert it to low rank before changing a rank.")
    patterns = model.config.low_rank.get("targets") or name_patterns(model)
    asked: dict[str, int] = {}
    changed: dict[tuple[int, int], tuple[nn.Parameter, nn.Parameter]] = {}  # once for layers that share their factors
    for index, (name, layer) in enumerate(pairs):
        kind = kind_of(name, patterns)
        if kind is None:
            raise ModelError(f"{name} is known neither as attention nor as feed-forward: its new rank is unclear.")
        asked[name] = (attn_rank if kind == "attn" else mlp_rank) or layer.rank
        left, right = plain_factors(name, layer)
        rank = min(asked[name], layer.out_features, layer.in_features)
        if rank == layer.rank or (id(left), id(right)) in changed:
            continue
        if not (left.isfinite().all() and right.isfinite().all()):
            raise ModelError(f"{name} holds NaN or infinite weights; go back to an earlier checkpoint.")
        new_left, new_right = _with_rank(left, right, rank, seeded_generator(seed, index))
        changed[id(left), id(right)] = (
            nn.Parameter(new_left.to(left).contiguous(), left.requires_grad),
            nn.Parameter(new_right.to(right).contiguous(), right.requires_grad),
        )
    before = count_parameters(model)
    for _, layer in pairs:
        left, right = changed.get(
            (id(layer.left.weight), id(layer.right.weight)), (layer.left.weight, layer.right.weight)
        )
        layer.left.weight, layer.right.weight = left, right
        layer.rank = layer.left.in_features = layer.right.out_features = len(right)
    model.config.low_rank["ranks"] = {name: layer.rank for name, layer in pairs}
    return build_report(model, before, asked)


def _with_rank(left: Tensor, right: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors [out, rank] and [rank, in] of the nearest product."""
    left_vectors, values, right_vectors = (part[..., :rank] for part in factored_svd(left, right))
    num_new = rank - len(values)
    if num_new > 0:
        random = torch.randn(right.shape[1], num_new, generator=generator, dtype=torch.float64).to(right.device)
        # QR leaves the leading columns as they are, up to sign, and makes the others orthogonal to them.
        new_vectors = torch.linalg.qr(torch.cat([right_vectors, random], dim=1)).Q[:, -num_new:]
        right_vectors = torch.cat([right_vectors, new_vectors], dim=1)
        left_vectors = nn.functional.pad(left_vectors, (0, num_new))
        values = nn.functional.pad(values, (0, num_new))
    return balanced_factors(left_vectors, values, right_vectors)
