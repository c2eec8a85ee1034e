"""Texts in, texts out: several continuations of one main text, written together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.branches.decode import CacheKind, decode_branches, greedy
from fivefold.branches.settings import BranchScheme
from fivefold.data.branch_samples import begin_ids
from fivefold.errors import ConfigError
from fivefold.models.build import num_positions
from fivefold.models.decoding import DecodingSettings
from fivefold.models.seeded_sampling import SeededSampling
from fivefold.models.text_stream import TextStream


class BranchPiece(NamedTuple):
    """What has been added to one branch's text."""

    branch: int
    """From 1."""
    text: str


def write_branches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    main: str,
    openings: Sequence[str],
    scheme: BranchScheme,
    decoding: DecodingSettings,
    cache: CacheKind = "auto",
) -> Iterator[BranchPiece]:
    """Continue a main text once for each opening.

    Args:
        model: prepared for the scheme.
        decoding: without beams and penalties. Each branch draws by its own number, so that what it says does not depend
            on the others.

    Raises:
        ConfigError: it would be longer than the model has positions, or a branch has nothing to begin with.
    """
    main_ids, *opened = (tokenizer(text, add_special_tokens=False).input_ids for text in (main, *openings))
    main_ids = [*begin_ids(tokenizer), *main_ids]
    longest = len(main_ids) + max(map(len, opened), default=0) + decoding.max_new_tokens
    most = num_positions(model)
    if most is not None and longest > most:
        raise ConfigError(
            f"Main text, a branch and --max_new_tokens are {longest:,} tokens together, but the model has {most:,} "
            "positions; shorten one of them."
        )

    def draw(logits: Tensor, branches: list[int], step: int) -> list[int]:
        return greedy(SeededSampling(decoding, branches, step=step)(logits.new_empty(0), logits), branches, step)

    streams = [TextStream(tokenizer) for _ in openings]
    tokens = decode_branches(
        model,
        main_ids,
        opened,
        scheme=scheme,
        max_new_tokens=decoding.max_new_tokens,
        eos_ids=end_ids(model, tokenizer),
        choose=draw if decoding.do_sample else greedy,
        cache=cache,
    )
    for branch, token in tokens:
        if piece := streams[branch - 1].push(token):
            yield BranchPiece(branch, piece)
    for branch, stream in enumerate(streams, 1):
        if piece := stream.finish():
            yield BranchPiece(branch, piece)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the model's own, of which chat models have several, and the tokenizer's."""
    config = model.generation_config
    own = None if config is None else config.eos_token_id
    found = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    return [end for end in found if isinstance(end, int)]
