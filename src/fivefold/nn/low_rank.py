"""A linear layer whose weight is kept as the product of two thin matrices."""

from torch import Tensor, nn

from fivefold.nn.linear import Linear


class LowRankLinear(nn.Module):
    """y = (x A^T) B^T + b: `left.weight` is B [out, rank], `right.weight` is A [rank, in], W = B A is never formed.

    Both factors are plain `nn.Linear`s, so that adapters, quantisers and hooks find them.

    Args:
        in_features: size of the last dimension of x.
        out_features: size of the last dimension of y.
        rank: of W; at most min(in_features, out_features) is of use.
        bias: whether there is a b [out], kept as `left.bias`.
    """

    # transformers' T5 asks `isinstance(layer.weight, Tensor)` before it casts; there is no such tensor here.
    weight = None

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.right = Linear(in_features, rank, bias=False)
        self.left = Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] through [..., rank]."""
        return self.left(self.right(x))

    def dense_weight(self) -> Tensor:
        """B A, [out, in]: for merging and for tests."""
        return self.left.weight @ self.right.weight

    def extra_repr(self) -> str:
        """What `print(model)` adds to the two factors."""
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"
