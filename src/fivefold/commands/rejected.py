"""Fill missing rejected answers with a model's own, for `fivefold dpo`; what is like the chosen answer is left out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import ConfigError, DataError
from fivefold.models.decoding import RejectedDecoding

if TYPE_CHECKING:
    from fivefold.data.preferences import Preference


@dataclass
class RejectedSettings:
    """Whose answers to write, and which of them serve."""

    model: str
    """Folder or Hub id of the model that answers, mostly the one that DPO is going to train, such as SFT/final."""
    output_file: str
    """JSON lines of prompt (messages), chosen and rejected, in the order of the data. Answers so far stand beside it,
    in OUTPUT_FILE.partial, until all are written."""
    resume: bool = False
    """Go on with OUTPUT_FILE.partial; the result is that of a run that was never interrupted."""
    batch_size: int = 16
    """Prompts answered at the same time."""
    input_length: int | None = None
    """Most tokens of a prompt that the model reads, the oldest turns going first; by default what its tokenizer was
    made for and what it has positions for, less --max_new_tokens in a decoder."""
    num_candidates: int | None = None
    """Answers drawn for a prompt until one serves, at most; by default 4, and 1 with --no_do_sample. The first that
    serves is taken, not the worst: pairs should hold what the model says."""
    max_similarity: float = 0.9
    """Drop answers that share more than this of their character trigrams with the chosen one. 1 drops equal ones only:
    for short answers that differ in the one word that counts."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size is {self.batch_size}; it must be at least 1.")
        if self.input_length is not None and self.input_length < 1:
            raise ConfigError(f"--input_length is {self.input_length}; it must be at least 1.")
        if self.num_candidates is not None and self.num_candidates < 1:
            raise ConfigError(f"--num_candidates is {self.num_candidates}; it must be at least 1.")
        if not 0 <= self.max_similarity <= 1:
            raise ConfigError(f"--max_similarity is {self.max_similarity}; it must be from 0 to 1.")


def run(settings: RejectedSettings, corpus: CorpusSettings, decoding: RejectedDecoding, *, dry_run: bool) -> None:
    """Read all prompts, let the model answer those without a rejected answer, and write the pairs."""
    num_candidates = settings.num_candidates or (4 if decoding.do_sample else 1)
    if num_candidates > 1 and not decoding.do_sample:
        raise ConfigError("--num_candidates changes nothing without drawing: leave out --no_do_sample, or it.")
    target = Path(settings.output_file)
    partial = target.with_name(f"{target.name}.partial")
    _check_place(target, partial, settings.resume)

    from fivefold.data.preferences import read_preferences
    from fivefold.data.record_shapes import check_record_settings
    from fivefold.models.answer_journal import AnswerJournal
    from fivefold.models.answers import Answerer
    from fivefold.models.rejected_answers import fill_rejected
    from fivefold.serving.open_model import open_model
    from fivefold.serving.progress import progress

    check_record_settings(corpus)
    model, tokenizer = open_model(settings.model)
    answerer = Answerer(model, tokenizer, settings.input_length)
    answerer.room(decoding.max_new_tokens)
    preferences = list(read_preferences(corpus, needs_rejected=False))
    missing = sum(preference.rejected is None for preference in preferences)
    print(f"{len(preferences):,} prompts, {missing:,} without a rejected answer", file=sys.stderr)
    if not missing:
        raise DataError(
            f"All {len(preferences):,} prompts have a rejected answer: fivefold dpo reads them as they are."
        )
    if dry_run:
        print(f"would write {target}")
        return
    chosen = {"model": settings.model, "data": _digest(preferences), "batch_size": settings.batch_size}
    lengths = {"input_length": settings.input_length, "num_candidates": num_candidates}
    described = chosen | lengths | {"max_similarity": settings.max_similarity} | asdict(decoding)
    try:
        with AnswerJournal(partial, described) as journal, progress("answers") as show_progress:
            filled = fill_rejected(
                preferences,
                answerer,
                decoding,
                journal,
                batch_size=settings.batch_size,
                num_candidates=num_candidates,
                max_similarity=settings.max_similarity,
                show_progress=show_progress,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command with --resume goes on with {partial}") from None
    if not filled.pairs:
        partial.unlink()
        raise DataError(f"No pair is left of {filled}; raise --max_similarity or --temperature.")
    _write(filled.pairs, target)
    partial.unlink()
    if cut := answerer.chat_format.cuts.prompts:
        print(f"prompts cut to fit  {cut:,}")
    print(f"{filled}")
    print(f"wrote {len(filled.pairs):,} pairs to {target}")


def _check_place(target: Path, partial: Path, resume: bool) -> None:
    if target.is_dir() or not target.parent.is_dir():
        problem = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"--output_file {target} {problem}; give a file name in a folder that exists.")
    if target.exists():
        raise ConfigError(f"--output_file {target} exists already; delete it, or give another name.")
    if partial.exists() and not resume:
        raise ConfigError(f"{partial} holds answers of an interrupted run; give --resume to go on, or delete it.")
    if resume and not partial.exists():
        raise ConfigError(f"--resume: there is no {partial} to go on with; leave --resume out to begin.")


def _digest(preferences: "Sequence[Preference]") -> str:
    digest = sha256()
    for preference in preferences:
        digest.update(repr((preference.prompt, preference.chosen, preference.rejected)).encode())
    return f"{len(preferences)} prompts {digest.hexdigest()[:16]}"


def _write(pairs: "Sequence[Preference]", target: Path) -> None:
    fresh = target.with_name(f".{target.name}.writing")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
