"""Rotary positions in two dimensions, branch and time, in any of transformers' decoders.

A call's `position_ids` carry both: `positions_2d(branches, times)`. Positions that carry no branch are the model's own,
so that `generate` and every other use of the model stay what they were.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.branches.settings import RopeMode
from fivefold.errors import ConfigError, ModelError

# Times lie in the lower bits, and above them the branch's number + 1: 0 there is a position without branch.
_TIME_BITS = 32


def positions_2d(branches: Tensor, times: Tensor) -> Tensor:
    """Position ids that say the branch, too.

    Args:
        branches: int64, 0 for main; what lies below that is padding and counts as main.
        times: int64 of the same shape, from 0.
    """
    return ((branches.clamp(min=0) + 1) << _TIME_BITS) + times


class Interleaved2DRoPE(nn.Module):
    """A model's own rotary embedding, some of whose pairs of channels turn by branch.

    Differs: from the scheme it is named after, whose other pairs turn by the place in the row; here they turn by time,
    which is what the model has learned.

    Args:
        rotary: the model's own module, from which all angles come.
        pair_indices: pairs that turn by branch, counted from 1, the fastest one, as `inv_freq` is.
        stride: positions between neighbouring branches.
        mode: "replace" turns these pairs by branch * stride alone; "offset" by time + branch * stride, so that main is
            just as in the model itself.
    """

    def __init__(self, rotary: nn.Module, pair_indices: Sequence[int], stride: int = 128, mode: RopeMode = "replace"):
        """Take the place of `rotary`."""
        super().__init__()
        self.rotary, self.pair_indices, self.stride, self.mode = rotary, tuple(pair_indices), stride, mode
        self._channels: dict[Any, Tensor] = {}

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own angles, but for the pairs of branches where positions carry one."""
        times = position_ids & ((1 << _TIME_BITS) - 1)
        numbers = (position_ids >> _TIME_BITS) - 1
        own = self.rotary(x, times, *args, **kwargs)
        turned = numbers * self.stride + (times if self.mode == "offset" else 0)
        other = _angles(self.rotary, x, torch.where(numbers < 0, times, turned), *args, **kwargs)
        moves = self._moving_channels(x, *args, **kwargs) & (numbers >= 0).unsqueeze(-1)
        if isinstance(own, Tensor):
            return torch.where(moves, other, own)
        return tuple(torch.where(moves, theirs, ours) for theirs, ours in zip(other, own, strict=True))

    def _moving_channels(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[D], whether an output channel belongs to one of the pairs; the layout differs from family to family."""
        key = (*args, *kwargs.values(), x.device)
        if key not in self._channels:
            speeds = _speeds(self.rotary, x, *args, **kwargs)
            pairs = _pairs(speeds)
            chosen = pairs[[index - 1 for index in self.pair_indices if index <= len(pairs)]]
            self._channels[key] = torch.isin(speeds, chosen)
        return self._channels[key]


def auto_pair_indices(model: nn.Module, ratio: float) -> list[int]:
    """The slowest pairs, as many as a share of all, for the branches.

    Args:
        model: with rotary positions.
        ratio: from 0, none, to less than 1: time must keep a pair, or nothing would tell the order of tokens.

    Returns:
        Numbers from 1, the fastest pair.

    Raises:
        ConfigError: a ratio out of range, so large that it leaves time no pair, or so small that it gives none.
        ModelError: the model has no rotary positions.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"rope_2d_ratio is {ratio}; give a share from 0 to below 1, such as 0.5.")
    total = _num_pairs(model)
    count = round(total * ratio)
    if ratio and not count:
        raise ConfigError(
            f"rope_2d_ratio {ratio} gives none of the {total} pairs to the branches; give more, or 0 for no 2D RoPE."
        )
    if count == total:
        raise ConfigError(
            f"rope_2d_ratio {ratio} gives all {total} pairs to the branches, and time would have no order; give less, "
            "such as 0.5."
        )
    return list(range(total - count + 1, total + 1))


def patch_model_with_interleaved_2d_rope(
    model: nn.Module, pair_indices: Sequence[int], stride: int = 128, mode: RopeMode = "replace"
) -> None:
    """Let branches turn some pairs of a model's rotary embeddings, wherever in the model these are.

    Raises:
        ModelError: the model has none, or has been patched.
    """
    for parent, name, rotary in _rotaries(model):
        if isinstance(rotary, Interleaved2DRoPE):
            raise ModelError(f"{type(model).__name__} has 2D RoPE already; open the model anew.")
        setattr(parent, name, Interleaved2DRoPE(rotary, pair_indices, stride, mode))


def _rotaries(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Each rotary embedding with its owner and its name there."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Interleaved2DRoPE) or "RotaryEmbedding" in type(child).__name__
        if not isinstance(parent, Interleaved2DRoPE)
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no rotary position embeddings (RoPE), so that branches cannot have positions "
            "of their own; give --no_patch_rope, or another model."
        )
    return found


def _num_pairs(model: nn.Module) -> int:
    rotary = _rotaries(model)[0][2]
    rotary = rotary.rotary if isinstance(rotary, Interleaved2DRoPE) else rotary
    device = next(model.parameters()).device
    kinds = [name.removesuffix("_inv_freq") for name, _ in rotary.named_buffers() if name.endswith("_inv_freq")]
    kinds = [kind for kind in kinds if not kind.endswith("original") and kind != "original"]
    return len(_pairs(_speeds(rotary, torch.zeros(1, device=device), *kinds[:1])))


def _pairs(speeds: Tensor) -> Tensor:
    """The speed of each pair of channels, fastest first; channels that stand still belong to none."""
    return speeds[speeds > 0].unique().flip(0)


@torch.no_grad()
def _speeds(rotary: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """[D], the angle by which each output channel turns at time 1."""
    one = torch.ones(1, 1, dtype=torch.long, device=x.device)
    angles = _angles(rotary, x.new_zeros(1, 1, 1, dtype=torch.float32), one, *args, **kwargs)
    return (angles.angle() if isinstance(angles, Tensor) else torch.atan2(angles[1], angles[0])).flatten()


def _angles(rotary: nn.Module, x: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
    """As the module computes them, but without its looking for the longest sequence so far in these positions."""
    with torch.no_grad():
        return inspect.unwrap(type(rotary).forward)(rotary, x, positions, *args, **kwargs)
