"""T5's relative position bias: one learned number a head for each bucket of distances."""

import math

import torch
from torch import Tensor, nn

from fivefold.nn.flash_attention import DistanceBias


def _bucket_table(num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Bucket of every distance 0..max_distance; anything farther shares the last entry."""
    # Made where it is used, every time: a table kept on the CPU would make a GPU wait for each copy of it.
    distance = torch.arange(max_distance + 1, device=device)
    num_exact = num_buckets // 2
    # float64: in bfloat16 six entries of the usual table (32 buckets, 128) come out wrong, also under autocast.
    position = torch.log(distance.clamp(min=1).double() / num_exact) / math.log(max_distance / num_exact)
    # Where a bucket begins at a whole distance, one device's logarithm may fall just short of it.
    coarse = num_exact + (position * (num_buckets - num_exact) + 1e-9).long()
    return torch.where(distance < num_exact, distance, coarse.clamp(max=num_buckets - 1))


def relative_position_bucket(
    relative_position: Tensor, *, num_buckets: int = 32, max_distance: int = 128, is_bidirectional: bool = True
) -> Tensor:
    """Bucket of each relative position: exact for short distances, logarithmic up to `max_distance`, then one for all.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1.

    Args:
        relative_position: integers, key position minus query position, any shape.
        num_buckets: buckets in all; a bidirectional table uses half of them for keys after the query.
        max_distance: distances from here on share one bucket.
        is_bidirectional: if False, keys after the query all fall into bucket 0 (a causal mask hides them anyway).

    Returns:
        int64 of the same shape, in [0, num_buckets).
    """
    if is_bidirectional:
        num_buckets //= 2
        after_query = (relative_position > 0).long() * num_buckets
        distance = relative_position.abs()
    else:
        after_query = 0
        distance = (-relative_position).clamp(min=0)
    table = _bucket_table(num_buckets, max_distance, relative_position.device)
    return table[distance.clamp(max=max_distance)] + after_query


class RelativePositionBias(nn.Embedding):
    """A learned bias for each (bucket, head), laid out as a matrix to add to attention scores.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1. The weight is [num_buckets, num_heads].
    """

    def __init__(self, num_buckets: int, num_heads: int, max_distance: int, *, is_bidirectional: bool) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance = max_distance
        self.is_bidirectional = is_bidirectional

    def forward(self, query_len: int, key_len: int, first_query: int = 0) -> Tensor:  # type: ignore[override]
        """Bias of queries first_query..first_query+query_len-1 towards keys 0..key_len-1.

        Returns:
            [1, num_heads, query_len, key_len], in the weight's dtype.
        """
        device = self.weight.device
        query = torch.arange(first_query, first_query + query_len, device=device)
        key = torch.arange(key_len, device=device)
        return self._of(key[None, :] - query[:, None]).permute(2, 0, 1).unsqueeze(0).contiguous()

    def by_distance(self) -> DistanceBias:
        """The same bias for any lengths, as one number for each head and distance: for kernels that take no matrix."""
        reach = self.max_distance
        return DistanceBias(self._of(torch.arange(-reach, reach + 1, device=self.weight.device)).T.contiguous())

    def _of(self, relative_position: Tensor) -> Tensor:
        bucket = relative_position_bucket(
            relative_position,
            num_buckets=self.num_embeddings,
            max_distance=self.max_distance,
            is_bidirectional=self.is_bidirectional,
        )
        return super().forward(bucket)
