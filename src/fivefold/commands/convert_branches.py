"""Turn conversations, or questions on passages, into main texts with branches for `fivefold parallel`."""

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import ConfigError, DataError


@dataclass
class ConvertSettings:
    """What becomes a branch."""

    output_file: str
    """JSON lines to write: {"main", "branches"}, or with --by text {"text"}."""
    by: Literal["answers", "questions", "items", "turns", "text"] = "answers"
    """answers: several answers to one prompt; questions: those on one passage (records of passage or context, question,
    answer); items: the lines of answers that are lists; turns: the exchanges of one conversation, each for itself;
    text: no branches, each conversation as one text."""
    min_branches: int = 2
    """Leave out main texts with fewer branches; what is left out is counted."""
    prompt_format: str = "{prompt}\n"
    """How a prompt is written, for answers and items; a chat model's own marks can stand around it."""
    question_format: str = "Question: {question}\nAnswer:"
    """How a branch begins, for questions and turns; it is read, and the answer behind it learned."""
    overwrite: bool = False
    """Replace the output file."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.min_branches < 1:
            raise ConfigError(f"min_branches is {self.min_branches}; give a whole number of at least 1.")
        for name, part in (("prompt_format", "{prompt}"), ("question_format", "{question}")):
            if part not in getattr(self, name):
                raise ConfigError(f"{name} {getattr(self, name)!r} has no {part}, where that goes; put it in.")


def run(settings: ConvertSettings, corpus: CorpusSettings, *, dry_run: bool) -> None:
    """Read all, and write the rows in the order in which their main texts come first."""
    target = Path(settings.output_file)
    if not target.parent.is_dir():
        raise ConfigError(f"--output_file {target} lies in a folder that does not exist; make it first.")
    if target.is_dir() or (target.exists() and not settings.overwrite):
        raise ConfigError(f"--output_file {target} is there already; give another name, or --overwrite.")
    if not corpus.data:
        raise ConfigError("--data is missing: name conversations, or passages with questions.")
    counts = Counter[str]()
    rows = _rows(settings, corpus, counts)
    if dry_run:
        deque(rows, maxlen=0)
    else:
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    done = f"{'would write' if dry_run else 'wrote'} {counts['rows']:,} rows"
    if settings.by != "text":
        done += f" with {counts['branches']:,} branches"
    if counts["left out"]:
        done += f"; {counts['left out']:,} main texts with fewer than {settings.min_branches} branches left out"
    print(done)


def _rows(settings: ConvertSettings, corpus: CorpusSettings, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    from fivefold.data import branch_conversion as convert

    formats = convert.Formats(settings.prompt_format, settings.question_format)
    if settings.by == "questions":
        questions = (record[convert.PASSAGE_QUESTION] for record in convert.open_passage_questions(corpus))
        found = convert.by_passage(questions, formats)
    else:
        conversations = _conversations(corpus, reads_text=settings.by == "text")
        if settings.by == "text":
            for messages in conversations:
                counts["rows"] += 1
                yield {"text": "\n".join(message["content"] for message in messages)}
            return
        ways = {"answers": convert.by_answers, "items": convert.by_items, "turns": convert.by_turns}
        found = ways[settings.by](conversations, formats)
    for main, branches in found:
        if len(branches) < settings.min_branches:
            counts["left out"] += 1
            continue
        counts["rows"] += 1
        counts["branches"] += len(branches)
        yield {
            "main": main,
            "branches": [branch._asdict() if branch.answer_offset else branch.text for branch in branches],
        }
    if not counts["rows"]:
        raise DataError(
            f"Not one main text has {settings.min_branches} branches --by {settings.by}; choose another way, or give "
            "--min_branches 1."
        )


def _conversations(corpus: CorpusSettings, *, reads_text: bool) -> Iterator[list[dict[str, str]]]:
    from fivefold.data.conversations import MESSAGES, TEXT, open_conversations

    for record in open_conversations(corpus):
        if record[MESSAGES][0]["role"] == TEXT and not reads_text:
            raise DataError(f"--data {' '.join(corpus.data)} holds plain text, which has no answers; say --by text.")
        yield record[MESSAGES]
