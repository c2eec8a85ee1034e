"""Settings to what a decoder learns of main texts and their branches."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import are_local
from fivefold.data.branch_records import BRANCHED, BranchedText, open_branches
from fivefold.data.branch_samples import BranchEncoder, encoded, grouped
from fivefold.data.branch_source import BranchSource, StreamedBranchSource
from fivefold.data.build import EVALUATION_SEED
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.random_bits import Purpose, random_bits, random_keys
from fivefold.data.settings import BranchDataSettings
from fivefold.data.source import Source
from fivefold.errors import DataError


class BranchData(NamedTuple):
    """What to train on and what to measure on."""

    training: Source
    validation: BranchSource | None


def build_branches(
    corpus: CorpusSettings,
    data: BranchDataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_positions: int | None,
    needs_end: bool,
    seed: int,
) -> BranchData:
    """Read main texts and branches, hold some out, and encode them.

    A record is held out by a hash of its main text, or of the text itself where it has no other.

    Args:
        max_positions: that the model has; None where that does not matter.
        needs_end: whether the samples of a stream are to be counted, which takes a pass over local files.
        seed: the run's seed.

    Raises:
        ConfigError, DataError: settings or data that do not work.
    """
    encode = BranchEncoder(tokenizer, data, max_positions)
    pad_id = encode.end_id  # a padding token's embedding may be zero, which Gemma 3n cannot differentiate
    frac = data.validation_frac
    if data.validation_data:
        apart = replace(corpus, data=data.validation_data, data_split=data.validation_split)
        held_out = list(islice(_texts(apart), data.validation_documents))
        digests = {text_digest(_decisive(text)) for text in held_out}
    else:
        candidates = (text for text in _texts(corpus) if is_held_out(_decisive(text), frac))
        held_out = list(islice(candidates, data.validation_documents)) if frac else []
        digests = set()
        if frac and not held_out:
            raise DataError(
                f"No record was held out by validation_frac {frac}; give a larger share, --validation_data, or 0 to "
                "hold none out."
            )

    def may_train(text: BranchedText) -> bool:
        if data.validation_data:
            return text_digest(_decisive(text)) not in digests
        return not is_held_out(_decisive(text), frac)

    validation = None
    if held_out:
        samples = list(grouped(encoded(held_out, encode), data, EVALUATION_SEED))[: data.validation_documents]
        validation = BranchSource(samples, data, pad_id=pad_id, seed=EVALUATION_SEED, shuffle=False)
    if data.use_streaming:
        stream = StreamedBranchSource(open_branches(corpus), encode, may_train, data, pad_id=pad_id, seed=seed)
        if needs_end and are_local(corpus):
            stream.count_samples()
        return BranchData(stream, validation)
    encode.num_branches = encode.num_cut = 0
    read = list(encoded(filter(may_train, _texts(corpus)), encode))
    order = random_bits(random_keys(seed, Purpose.DOCUMENT_ORDER, 0), len(read))[0].argsort()
    samples = list(grouped((read[place] for place in order), data, seed))
    if not samples:
        raise DataError("There is nothing to train on: everything is held out, or the data are empty.")
    note = (
        f"{len(samples):,} samples of {encode.num_branches:,} branches, {sum(one.num_tokens for one in samples):,} "
        f"tokens; {encode.num_cut:,} branches cut"
    )
    return BranchData(BranchSource(samples, data, pad_id=pad_id, seed=seed, note=note), validation)


def _texts(corpus: CorpusSettings) -> Iterator[BranchedText]:
    return (record[BRANCHED] for record in open_branches(corpus))


def _decisive(text: BranchedText) -> str:
    return text.main or text.branches[0].text
