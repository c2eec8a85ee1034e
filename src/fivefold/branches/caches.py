"""What branches that are being written remember: main's keys and values once, each branch's own beside them.

Shapes: B rows of the cache, J heads of keys and values, R branches, M tokens of main, T tokens of a branch, D channels.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache

_GROWTH = 32
"""Tokens a branch for which room is made at a time."""


class SharedPrefixCache(DynamicCache):
    """Main's keys and values as they were computed, and R branches' own in room that grows.

    Args:
        main: what reading main left, of one row.
        num_branches: R.
    """

    def __init__(self, main: DynamicCache, num_branches: int) -> None:
        super().__init__()
        self.main: list[tuple[Tensor, Tensor]] = keys_and_values(main)
        self._own = [tuple(x.new_empty(num_branches, x.shape[1], 0, x.shape[3]) for x in both) for both in self.main]
        self._used = [0] * len(self.main)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Take the branches' next keys and values [R, J, n, D]; give all of their own, [R, J, T, D]."""
        used = self._used[layer_idx]
        needed = used + key_states.shape[2]
        if needed > self._own[layer_idx][0].shape[2]:
            room = -(-needed // _GROWTH) * _GROWTH
            self._own[layer_idx] = tuple(_with_room(x[:, :, :used], room) for x in self._own[layer_idx])
        keys, values = self._own[layer_idx]
        keys[:, :, used:needed], values[:, :, used:needed] = key_states, value_states
        self._used[layer_idx] = needed
        return keys[:, :, :needed], values[:, :, :needed]

    def keep(self, rows: Tensor) -> None:
        """Let go of all branches but these."""
        self._own = [tuple(x[rows] for x in both) for both in self._own]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of main and of a branch."""
        return self.main[layer_idx][0].shape[2] + self._used[layer_idx]

    @property
    def nbytes(self) -> int:
        """Of all that is remembered."""
        return sum(x.nbytes for both in (*self.main, *self._own) for x in both)


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, [B, J, M, D]."""
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def expanded(main: DynamicCache, num_branches: int) -> DynamicCache:
    """Main's keys and values again for each branch."""
    cache = DynamicCache()
    for number, both in enumerate(keys_and_values(main)):
        keys, values = (x.repeat_interleave(num_branches, 0) for x in both)
        cache.update(keys, values, number)
    return cache


def _with_room(x: Tensor, room: int) -> Tensor:
    larger = x.new_empty(*x.shape[:2], room, x.shape[3])
    larger[:, :, : x.shape[2]] = x
    return larger
