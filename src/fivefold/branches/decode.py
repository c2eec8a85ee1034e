"""Write several branches of one main text at once: main is read once, each step is one forward pass for all of them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from fivefold.branches.attention import BRANCH_ATTENTION
from fivefold.branches.caches import SharedPrefixCache, expanded, keys_and_values
from fivefold.branches.plan import DecodingPlan
from fivefold.branches.rotary import positions_2d
from fivefold.branches.settings import BranchScheme
from fivefold.errors import ConfigError
from fivefold.nn.output_positions import output_only_at

CacheKind = Literal["auto", "shared", "flat", "expanded"]
Choose = Callable[[Tensor, list[int], int], list[int]]
"""From logits [R, V], the numbers of their branches and the step, from 0, to a token for each."""


class BranchToken(NamedTuple):
    """What one branch says next."""

    branch: int
    """From 1."""
    token_id: int


def greedy(logits: Tensor, branches: list[int], step: int) -> list[int]:
    """The likeliest token of each."""
    return logits.argmax(-1).tolist()


@torch.no_grad()
def decode_branches(
    model: Any,
    main_ids: Sequence[int],
    openings: Sequence[Sequence[int]],
    *,
    scheme: BranchScheme,
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    choose: Choose = greedy,
    cache: CacheKind = "auto",
) -> Iterator[BranchToken]:
    """Continue a main text in as many branches as there are openings, together.

    Args:
        model: prepared by `prepare_for_branches` for this scheme, in eval mode.
        main_ids: read once; may be empty where every opening has a token.
        openings: how each branch begins; empty ones begin with what main predicts.
        max_new_tokens: of each branch, end mark included.
        eos_ids: tokens that end a branch; it then leaves the batch.
        choose: picks the tokens.
        cache: shared keeps main's keys once beside the branches' own; flat is one sequence in an ordinary cache with a
            mask, for any model, and keeps what branches that have ended said; expanded repeats main for each branch;
            auto is shared where the model allows that, else flat.

    Yields:
        Tokens with their branches, a step at a time, in the order of the branches.

    Raises:
        ConfigError: a cache that this model or scheme does not allow, or a branch that has nothing to begin with.
    """
    if not openings or max_new_tokens < 1:
        return
    writer = open_writer(model, main_ids, openings, scheme, cache)
    live = list(range(len(openings)))
    left = [max_new_tokens] * len(openings)
    logits = writer.begin()
    for step in count():
        tokens = list(choose(logits, [number + 1 for number in live], step))
        for place, number in enumerate(live):
            if writer.unread[number]:
                tokens[place] = writer.unread[number].popleft()
                continue
            yield BranchToken(number + 1, tokens[place])
            left[number] = 0 if tokens[place] in eos_ids else left[number] - 1
        going = [place for place, number in enumerate(live) if left[number]]
        if not going:
            return
        live = [live[place] for place in going]
        logits = writer.step(tokens, going)


def open_writer(
    model: Any, main_ids: Sequence[int], openings: Sequence[Sequence[int]], scheme: BranchScheme, cache: CacheKind
) -> "Writer":
    """Read main, and be ready to read the openings; arguments and errors as `decode_branches`."""
    if not main_ids and not all(openings):
        raise ConfigError("There is no main text and a branch without opening: nothing predicts its first token.")
    kind = choose_cache(model, scheme, cache)
    return (_Flat if kind == "flat" else _Rows)(model, main_ids, openings, scheme, kind)


def choose_cache(model: Any, scheme: BranchScheme, cache: CacheKind) -> CacheKind:
    """The cache to use.

    Raises:
        ConfigError: there is no such one, or this model or scheme does not allow it.
    """
    if cache not in get_args(CacheKind):
        raise ConfigError(f"There is no cache {cache!r}; there are {', '.join(get_args(CacheKind))}.")
    is_columnar = scheme.branch_visibility == "columnar"
    takes_plans = model.config._attn_implementation == BRANCH_ATTENTION
    can_share = takes_plans and not getattr(model.config.get_text_config(), "num_kv_shared_layers", 0)
    if cache == "auto":
        return "shared" if can_share and not is_columnar else "flat"
    if is_columnar and cache != "flat":
        raise ConfigError(
            f"With columnar visibility branches see each other, which the cache {cache!r} keeps apart; take flat."
        )
    if cache == "shared" and not can_share:
        why = "has layers without keys of their own" if takes_plans else "takes masks alone"
        raise ConfigError(f"{type(model).__name__} {why}, so that main cannot be shared; take flat.")
    return cache


class Writer:
    """Reads main when it is made, then openings (`begin`), then a token of each branch at a time (`step`)."""

    def __init__(
        self,
        model: Any,
        main_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        scheme: BranchScheme,
        kind: CacheKind,
    ) -> None:
        self.model, self.scheme = model, scheme
        # Where branches see each other, a short opening's branch goes on while longer openings are still read.
        at_once = (min if scheme.branch_visibility == "columnar" else max)(map(len, openings))
        self.openings = [opening[:at_once] for opening in openings]
        self.unread = [deque(opening[at_once:]) for opening in openings]
        self.device = next(model.parameters()).device
        self.main_length = len(main_ids)
        self.cache = DynamicCache()  # without the configuration, lest it forget what has left a window
        self.after_main: Tensor | None = None
        self.numbers = torch.arange(1, len(openings) + 1, device=self.device)
        if main_ids:
            ids, times = self.tensor([main_ids]), torch.arange(len(main_ids), device=self.device)[None]
            arguments = {"past_key_values": self.cache, "position_ids": self.positions(0 * times, times)}
            self.after_main = self.logits(ids, torch.tensor([len(main_ids) - 1], device=self.device), arguments)

    def tensor(self, ids: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(row) for row in ids], device=self.device)

    def positions(self, branches: Tensor, times: Tensor) -> Tensor:
        return positions_2d(branches, times) if self.scheme.rope_2d_ratio else times

    def logits(self, ids: Tensor, places: Tensor, arguments: dict[str, Any]) -> Tensor:
        with output_only_at(self.model.get_output_embeddings(), places):
            return self.model(input_ids=ids, use_cache=True, **arguments).logits

    def seen(self, plan: DecodingPlan) -> dict[str, Any]:
        """What tells attention who sees whom."""
        if self.model.config._attn_implementation != BRANCH_ATTENTION:
            return {"attention_mask": plan.mask()}
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        return {"attention_mask": unread, "branches": plan}

    def begin(self) -> Tensor:
        """Read the openings; logits [R, V] of each branch's first own token."""
        if not any(self.openings):
            assert self.after_main is not None
            return self.after_main.expand(len(self.openings), -1)
        logits = self.read_openings()
        if self.after_main is not None:
            is_empty = torch.tensor([not opening for opening in self.openings], device=self.device)
            logits = torch.where(is_empty[:, None], self.after_main, logits)
        return logits

    def step(self, tokens: list[int], going: list[int]) -> Tensor:
        """Read a token of each live branch, of which those at these places go on; logits [R, V] of their next ones."""
        raise NotImplementedError

    def kv_bytes(self) -> int:
        """Of the keys and values that are remembered."""
        return kv_bytes(self.cache)

    def read_openings(self) -> Tensor:
        """Logits [R, V]; what stands for an empty opening means nothing."""
        raise NotImplementedError


class _Rows(Writer):
    """Branches are rows. Openings end together: shorter ones have padding before them, which nothing sees."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        kind, count = arguments[-1], len(self.openings)
        if self.main_length:
            self.cache = (SharedPrefixCache if kind == "shared" else expanded)(self.cache, count)
        self.padding = torch.zeros(count, 1, dtype=torch.long, device=self.device)
        self.length = 0

    def read_openings(self) -> Tensor:
        width = max(map(len, self.openings))
        self.padding = self.tensor([[width - len(opening)] for opening in self.openings])
        return self._read(self.tensor([[0] * (width - len(opening)) + list(opening) for opening in self.openings]))

    def step(self, tokens: list[int], going: list[int]) -> Tensor:
        if len(going) < len(tokens):
            self._keep(torch.tensor(going, device=self.device))
        return self._read(self.tensor([[tokens[place]] for place in going]))

    def _keep(self, rows: Tensor) -> None:
        self.numbers, self.padding = self.numbers[rows], self.padding[rows]
        if isinstance(self.cache, SharedPrefixCache):
            self.cache.keep(rows)
        elif self.length or self.main_length:
            self.cache.batch_select_indices(rows)

    def _read(self, ids: Tensor) -> Tensor:
        count, width = ids.shape
        slots = torch.arange(self.length + width, device=self.device)
        times = self.main_length + slots - self.padding
        queries = times[:, self.length :]
        is_earlier = slots <= slots[self.length :, None]
        # Padding sees itself, lest it have nothing to see and its numbers none.
        sees_own = is_earlier & ((slots >= self.padding)[:, None] | (slots == slots[self.length :, None]))
        main = torch.arange(self.main_length, device=self.device).expand(count, -1)
        sees = torch.cat([sees_own.new_ones(count, width, self.main_length), sees_own], 2)
        shared = self.cache if isinstance(self.cache, SharedPrefixCache) else None
        plan = DecodingPlan(sees, queries, torch.cat([main, times], 1), shared)
        positions = self.positions(self.numbers[:, None].expand(count, width), queries.clamp(min=0))
        places = torch.arange(1, count + 1, device=self.device) * width - 1
        arguments = {"past_key_values": self.cache, "position_ids": positions, **self.seen(plan)}
        self.length += width
        return self.logits(ids, places, arguments)


class _Flat(Writer):
    """Main and all branches are one sequence, in which a mask keeps them apart."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        main = torch.arange(self.main_length, device=self.device)
        self.owners, self.times = torch.zeros_like(main), main
        self.lengths = torch.full((len(self.openings),), self.main_length, device=self.device)

    def read_openings(self) -> Tensor:
        lengths = torch.tensor([len(opening) for opening in self.openings], device=self.device)
        owners = self.numbers.repeat_interleave(lengths)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        times = self.main_length + torch.arange(len(owners), device=self.device) - starts
        self.lengths = self.lengths + lengths
        last = (lengths.cumsum(0) - 1).clamp(min=0)
        return self._read([token for opening in self.openings for token in opening], owners, times, last)

    def step(self, tokens: list[int], going: list[int]) -> Tensor:
        # The last token of a branch is read, too: where branches see each other, it is seen.
        rows = torch.tensor(going, device=self.device)
        owners, times = self.numbers, self.lengths
        self.numbers, self.lengths = owners[rows], times[rows] + 1
        return self._read(tokens, owners, times, rows)

    def _read(self, ids: list[int], owners: Tensor, times: Tensor, places: Tensor) -> Tensor:
        self.owners, self.times = torch.cat([self.owners, owners]), torch.cat([self.times, times])
        queries = slice(len(self.owners) - len(ids), None)
        is_self = (
            torch.arange(len(self.owners), device=self.device)
            == torch.arange(len(self.owners) - len(ids), len(self.owners), device=self.device)[:, None]
        )
        is_earlier = self.times < times[:, None]
        if self.scheme.branch_visibility == "isolated":
            is_earlier &= (self.owners == 0) | (self.owners == owners[:, None])
        plan = DecodingPlan((is_earlier | is_self)[None], self.times[None, queries], self.times[None], None)
        arguments = {
            "past_key_values": self.cache,
            "position_ids": self.positions(owners, times)[None],
            **self.seen(plan),
        }
        return self.logits(self.tensor([ids]), places, arguments)


def kv_bytes(cache: DynamicCache) -> int:
    """What a cache remembers, in bytes."""
    if isinstance(cache, SharedPrefixCache):
        return cache.nbytes
    return sum(x.nbytes for both in keys_and_values(cache) for x in both)
