"""Where the tokens of one side stand: what its self-attention layers are told of it, whichever scheme tells it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.nn.alibi import AdaptiveALiBi, ALiBi
from fivefold.nn.flash_attention import BlockBias
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.nn.rope import RoPE, rotate

# By what `T5Config.position` calls them. T5's own bias has its tables inside the attention layers.
_PARTS: dict[str, type[nn.Module] | None] = {
    "relative_bias": None,
    "rope": RoPE,
    "alibi": ALiBi,
    "adaptive_alibi": AdaptiveALiBi,
    "none": None,
}


def build_position(
    name: str, settings: dict[str, Any] | None, *, head_dim: int, num_heads: int, is_causal: bool
) -> nn.Module | None:
    """The part that tells one side's positions; None for "relative_bias" and "none".

    An encoder's ALiBi falls half as fast behind a token as before it, or it could not tell left from right.

    Raises:
        ModelError: no such scheme, or settings that its part does not take.
    """
    if name not in _PARTS:
        raise ModelError(f"T5Config: position is {name!r}; use one of {', '.join(_PARTS)}.")
    part, settings = _PARTS[name], dict(settings or {})
    if part is None:
        if settings:
            raise ModelError(f"T5Config: position {name!r} takes no position_settings; drop {settings}.")
        return None
    if part is ALiBi and not is_causal:
        settings.setdefault("after_factor", 0.5)
    if part is AdaptiveALiBi:
        settings.setdefault("is_bidirectional", not is_causal)
    try:
        return part(head_dim if part is RoPE else num_heads, **settings)
    except TypeError as error:
        raise ModelError(f"T5Config: position_settings {settings} do not fit {part.__name__}: {error}.") from None


class Position(NamedTuple):
    """What a self-attention layer is told."""

    bias: Tensor | BlockBias | None = None
    """[1, H, Q, K], to add to the scores, -inf where a causal layer may not look; or what makes one, without -inf."""
    query_turn: tuple[Tensor, Tensor] | None = None
    """Cosines and sines [Q, P] to rotate queries by."""
    key_turn: tuple[Tensor, Tensor] | None = None
    """Those for the keys: the new ones, or if `turns_cached_keys` all of them."""
    turns_cached_keys: bool = False
    is_causal: bool = False
    """Whether the layer hides the future itself; in a matrix that is done."""
    first_query: int = 0

    def turn_queries(self, query_BHQD: Tensor) -> Tensor:
        """Queries as they meet the keys."""
        return query_BHQD if self.query_turn is None else rotate(query_BHQD, *self.query_turn)

    def turn_keys(self, key_BHKD: Tensor, *, is_cached: bool) -> Tensor:
        """Keys turned before (`is_cached` False) or after they went into the cache, whichever is theirs."""
        if self.key_turn is None or is_cached != self.turns_cached_keys:
            return key_BHKD
        return rotate(key_BHKD, *self.key_turn)


def position_of(
    part: nn.Module | None, query_len: int, key_len: int, first_query: int, *, is_causal: bool, like: Tensor
) -> Position:
    """What one side's layers are told by its part; `like` has their device and dtype."""
    if isinstance(part, RoPE):
        wide = torch.promote_types(like.dtype, torch.float32)
        seq_len = first_query + query_len
        query_turn = part.cos_sin(torch.arange(first_query, seq_len, device=like.device), seq_len, wide)
        # A base that follows the length turns all keys anew with every token that is added.
        turns_cached_keys = part.scaling == "ntk"
        key_turn = query_turn
        if turns_cached_keys and first_query:
            key_turn = part.cos_sin(torch.arange(key_len, device=like.device), seq_len, wide)
        return Position(None, query_turn, key_turn, turns_cached_keys, is_causal, first_query)
    if part is None:
        return Position(is_causal=is_causal, first_query=first_query)
    return Position(bias=hide_future(part(query_len, key_len, first_query), first_query, is_causal=is_causal))


def relative_position(
    table: RelativePositionBias, query_len: int, key_len: int, first_query: int, *, is_causal: bool, by_distance: bool
) -> Position:
    """What layers with T5's own bias are told: a matrix, or `by_distance` what a kernel makes it of."""
    if by_distance:
        return Position(table.by_distance(), is_causal=is_causal, first_query=first_query)
    return Position(hide_future(table(query_len, key_len, first_query), first_query, is_causal=is_causal))


def hide_future(bias: Tensor, first_query: int, *, is_causal: bool) -> Tensor:
    """The bias [1, H, Q, K] with -inf for keys behind the query, once for all layers that share it."""
    if not is_causal:
        return bias
    hidden = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(first_query + 1)
    return bias.masked_fill(hidden, float("-inf"))
