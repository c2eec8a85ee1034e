"""Who sees whom in a batch of rows [main | branch | branch | ...]."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from fivefold.branches.settings import Visibility
from fivefold.errors import ConfigError

if TYPE_CHECKING:
    from fivefold.branches.caches import SharedPrefixCache


class RowPlan(NamedTuple):
    """Where one row's main text and branches lie; what is behind them is padding."""

    main_length: int
    starts: tuple[int, ...]
    """Of each branch in the row."""
    lengths: tuple[int, ...]


@dataclass(eq=False)
class BranchPlan:
    """What attention has to know of a batch, made once for all layers.

    Args:
        branches: [B, N], 0 for main, -1 for padding.
        times: [B, N].
        visibility: isolated, a token sees main and the earlier tokens of its own branch; columnar, all tokens that are
            earlier in time, of other branches, too. Main sees main.
    """

    branches: Tensor
    times: Tensor
    visibility: Visibility = "isolated"
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _blocks: dict[int | None, BlockMask] = field(default_factory=dict)
    _rows: list[RowPlan] | None = None

    @property
    def rows(self) -> list[RowPlan]:
        """Of each row; the branches of a row lie behind main, each in one piece."""
        if self._rows is None:
            self._rows = [_row_plan(row) for row in self.branches.tolist()]
        return self._rows

    @property
    def latest(self) -> int:
        """The highest time."""
        return max(row.main_length + max(row.lengths, default=0) for row in self.rows)

    def check_fits(self, rows: int, width: int) -> None:
        """Refuse a batch of another shape, of which rows or tokens would silently see nothing.

        Raises:
            ConfigError: it is one.
        """
        if self.branches.shape != (rows, width):
            planned = " x ".join(map(str, self.branches.shape))
            raise ConfigError(
                f"The call has {rows} x {width} tokens, but its branches are those of a batch of {planned}; ask "
                "branch_arguments anew for each batch."
            )

    def mask(self, window: int | None = None) -> Tensor:
        """[B, 1, N, N] bool, true where a query (first N) sees a key. Padding sees itself alone.

        Args:
            window: how far back in time a query sees, itself included; None for as far as there is.
        """
        if window not in self._masks:
            visible = columnar_mask(self.times) if self.visibility == "columnar" else isolated_mask(self.branches)
            if window is not None:
                visible &= self.times.unsqueeze(2) - self.times.unsqueeze(1) < window
            is_padding = self.branches < 0
            visible &= ~(is_padding.unsqueeze(2) | is_padding.unsqueeze(1))
            self._masks[window] = visible.logical_or_(_diagonal(self.times)).unsqueeze(1)
        return self._masks[window]

    def blocks(self, window: int | None = None) -> BlockMask:
        """The same for FlexAttention, which skips the blocks of tokens that see none of each other."""
        if window not in self._blocks:
            branches, times = self.branches, self.times

            def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                ours, theirs = branches[row, query], branches[row, key]
                elapsed = times[row, query] - times[row, key]
                if self.visibility == "columnar":
                    visible = elapsed > 0
                else:
                    visible = ((theirs == ours) | (theirs == 0)) & (query >= key)
                if window is not None:
                    visible = visible & (elapsed < window)
                return (visible & (ours >= 0) & (theirs >= 0)) | (query == key)

            rows, width = branches.shape
            self._blocks[window] = create_block_mask(sees, rows, None, width, width, device=str(branches.device))
        return self._blocks[window]


@dataclass(eq=False)
class DecodingPlan:
    """The same for tokens that go on from a cache: R rows of n of them, over K keys.

    Args:
        sees: [R, n, K] bool, as far as no window hides.
        query_times: [R, n].
        key_times: [R, K].
        shared: the cache that holds main's keys, the first of the K, for all rows once; None for an ordinary one.
    """

    sees: Tensor
    query_times: Tensor
    key_times: Tensor
    shared: "SharedPrefixCache | None"
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None = None) -> Tensor:
        """[R, 1, n, K] bool, as `BranchPlan.mask`."""
        if window not in self._masks:
            sees = self.sees
            if window is not None:
                sees = sees & (self.query_times.unsqueeze(2) - self.key_times.unsqueeze(1) < window)
            self._masks[window] = sees.unsqueeze(1)
        return self._masks[window]


def isolated_mask(branches: Tensor) -> Tensor:
    """[B, N, N] bool: a token sees main and its own branch, both as far as they lie before it in the row."""
    queries, keys = branches.unsqueeze(2), branches.unsqueeze(1)
    places = torch.arange(branches.shape[1], device=branches.device)
    return ((keys == queries) | (keys == 0)) & (places[:, None] >= places)


def columnar_mask(times: Tensor) -> Tensor:
    """[B, N, N] bool: a token sees itself and whatever is earlier in time, in whichever branch."""
    return (times.unsqueeze(1) < times.unsqueeze(2)) | _diagonal(times)


def _diagonal(times: Tensor) -> Tensor:
    return torch.eye(times.shape[1], dtype=torch.bool, device=times.device)


def _row_plan(branches: list[int]) -> RowPlan:
    starts = [place for place, one in enumerate(branches) if place == 0 or one != branches[place - 1]]
    ends = [*starts[1:], len(branches)]
    pieces = [(start, end - start) for start, end in zip(starts, ends, strict=True) if branches[start] > 0]
    main_length = branches.count(0)
    return RowPlan(main_length, tuple(start for start, _ in pieces), tuple(length for _, length in pieces))
