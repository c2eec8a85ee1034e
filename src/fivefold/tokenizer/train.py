"""Learning a vocabulary from a stream of text, and putting a T5 tokenizer together around it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.sample import TextSample, draw_sample
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.special_tokens import (
    EOS,
    EOS_ID,
    LEADING_TOKENS,
    PAD,
    UNK,
    UNK_ID,
    sentinel_name,
    sentinels_needed,
)

if TYPE_CHECKING:
    from tokenizers.models import BPE, Unigram
    from transformers import PreTrainedTokenizerFast

LONGEST_PIECE_CHARACTERS = 16
FEWEST_PIECES = 64
# Of a small vocabulary, single characters may take this much. Tokens a character on held-out Chinese reviews, with 1/2,
# 3/4 and all: vocabulary 2,000 0.93, 0.90, 1.04; 4,000 0.75, 0.78, 1.01; from 8,000 on it hardly matters.
LARGEST_ALPHABET_FRACTION = 2 / 3
SCORE_DIGITS = 6
# The unigram trainer gives characters that it had dropped scores in this distance from each other.
DROPPED_SCORE_STEP = 1e-4
# Stands for characters that get no piece; a noncharacter, so no text loses anything by it.
GAP = "\uffff"


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer and what it was trained on."""

    tokenizer: "PreTrainedTokenizerFast"
    sample: TextSample


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> TrainedTokenizer:
    """Train a tokenizer on a stream of documents.

    The vocabulary is, in order: `<pad>`, `</s>`, `<unk>`, the 256 bytes, the learned pieces, the extra special tokens,
    and the sentinels, descending, so that `<extra_id_0>` has the highest id. It is smaller than asked for if the text
    holds no more pieces. The same texts and settings give the same tokenizer, to the byte.

    Source: Sennrich et al. 2016 (BPE); Kudo 2018 (unigram); Raffel et al. 2020, section 3.1.4 (sentinels).
    Differs: characters without a piece are spelled in bytes instead of becoming `<unk>`, so decoding gives back the
        NFKC form of any text exactly.

    Args:
        texts: documents, read once.
        settings: what to make; `output_dir` is not used here.

    Raises:
        ConfigError: settings that cannot work, such as a vocabulary too small for what is not learned.
        DataError: the texts are empty.

    Cost: about 170 bytes of memory and 3 microseconds (unigram: 30) a sampled character on two cores.
    """
    num_pieces = count_learned_pieces(settings)
    sample = draw_sample(
        texts,
        sample_characters=settings.sample_characters,
        read_characters=settings.read_characters,
        seed=settings.seed,
    )
    if not sample.chunks:
        raise DataError("the text to train the tokenizer on is empty: expected at least one character.")
    model = learn_model(sample.chunks, num_pieces, settings)
    return TrainedTokenizer(assemble(model, settings), sample)


def count_learned_pieces(settings: TokenizerSettings) -> int:
    """How many pieces there are to learn beside the fixed tokens.

    Raises:
        ConfigError: too few, or settings out of their range.
    """
    for name, least in (("max_length", 1), ("sample_characters", 1), ("read_characters", 1), ("num_sentinels", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}: expected {least} or more.")
    if not 0 < settings.character_coverage <= 1:
        raise ConfigError(
            f"--character_coverage is {settings.character_coverage}: expected a fraction above 0, up to 1."
        )
    appended = appended_tokens(settings)
    for token in settings.extra_special_tokens:
        if not token.strip() or appended.count(token) > 1 or token in LEADING_TOKENS:
            raise ConfigError(
                f"--extra_special_tokens has {token!r}, which is blank, taken or given twice: leave it out."
            )
    fixed = len(LEADING_TOKENS) + len(appended)
    if settings.vocab_size < fixed + FEWEST_PIECES:
        raise ConfigError(
            f"--vocab_size is {settings.vocab_size}, but special tokens, bytes and sentinels alone take {fixed}: "
            f"expected at least {fixed + FEWEST_PIECES}."
        )
    return settings.vocab_size - fixed


def appended_tokens(settings: TokenizerSettings) -> list[str]:
    """The tokens behind the learned pieces, in the order of their ids."""
    count = sentinels_needed(settings.max_length) if settings.num_sentinels is None else settings.num_sentinels
    return settings.extra_special_tokens + [sentinel_name(number) for number in reversed(range(count))]


def learn_model(chunks: list[str], num_pieces: int, settings: TokenizerSettings) -> "BPE | Unigram":
    """Learn pieces from chunks of text and put special tokens and bytes before them."""
    from tokenizers import models

    from fivefold.tokenizer.pipeline import build_normalizer

    normalizer = build_normalizer()
    chunks = [normalizer.normalize_str(chunk) for chunk in chunks]
    frequent, rare = split_characters(chunks, settings.character_coverage, int(num_pieces * LARGEST_ALPHABET_FRACTION))
    # Cut out here and not by the trainers, which would join what stands on both sides or fail for want of room.
    gaps = {ord(character): GAP for character in rare}
    learned = run_trainer((chunk.translate(gaps) for chunk in chunks), num_pieces, settings.algorithm)
    if settings.algorithm == "bpe":
        pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
        vocab = {token: id_ for id_, token in enumerate(LEADING_TOKENS + pieces)}
        return models.BPE(vocab, [tuple(merge) for merge in learned["merges"]], unk_token=UNK, byte_fallback=True)
    scores = [(token, 0.0) for token in LEADING_TOKENS] + order_scores(dict(learned["vocab"]), frequent)
    return models.Unigram(scores, unk_id=UNK_ID, byte_fallback=True)


def split_characters(chunks: list[str], coverage: float, most: int) -> tuple[list[str], list[str]]:
    """Which characters get a piece and which do not, each from the most frequent to the rarest."""
    counts = Counter[str]()
    for chunk in chunks:
        counts.update(chunk)
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    wanted = coverage * counts.total()
    covered = number = 0
    while number < min(most, len(characters)) and covered < wanted:
        covered += counts[characters[number]]
        number += 1
    return characters[:number], characters[number:]


def run_trainer(chunks: Iterable[str], num_pieces: int, algorithm: str) -> dict[str, Any]:
    """The model that the tokenizers library learns, as it writes it to JSON."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from fivefold.tokenizer.pipeline import build_pre_tokenizer

    if algorithm == "bpe":
        learner = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=num_pieces, min_frequency=2, max_token_length=LONGEST_PIECE_CHARACTERS, show_progress=False
        )
    else:
        learner = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=num_pieces, max_piece_length=LONGEST_PIECE_CHARACTERS, show_progress=False
        )
    gaps = pre_tokenizers.Split(GAP, "removed")
    learner.pre_tokenizer = pre_tokenizers.Sequence([gaps, build_pre_tokenizer()])  # type: ignore[assignment]
    learner.train_from_iterator(chunks, trainer)
    return json.loads(learner.to_str())["model"]


def order_scores(scores: dict[str, float], characters: list[str]) -> list[tuple[str, float]]:
    """Unigram pieces from the likeliest to the least likely, freed of what differs from run to run.

    The trainer drops characters that longer pieces make needless, and takes them back at the end with the lowest
    scores, in random order: here they come in the order of their frequency. Other scores differ in their last digits.

    Args:
        scores: log probability of each piece.
        characters: from the most frequent to the rarest.
    """
    highest = min(scores.values()) + DROPPED_SCORE_STEP * (len(characters) + 1)
    taken_back = [piece for piece in characters if scores.get(piece, highest) < highest]
    scores |= zip(taken_back, sorted((scores[piece] for piece in taken_back), reverse=True), strict=True)
    rounded = [(piece, round(score, SCORE_DIGITS)) for piece, score in scores.items()]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))


def assemble(model: "BPE | Unigram", settings: TokenizerSettings) -> "PreTrainedTokenizerFast":
    """A tokenizer as T5's are: the model between its normalizer and decoder, `</s>` behind every text."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from fivefold.tokenizer.pipeline import build_decoder, build_normalizer, build_pre_tokenizer

    backend = Tokenizer(model)
    backend.normalizer = build_normalizer()  # type: ignore[assignment]
    backend.pre_tokenizer = build_pre_tokenizer()  # type: ignore[assignment]
    backend.decoder = build_decoder()  # type: ignore[assignment]
    backend.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    appended = appended_tokens(settings)
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in [PAD, EOS, UNK, *appended]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=appended,
        model_max_length=settings.max_length,
        clean_up_tokenization_spaces=False,
    )
