"""What an evaluation leaves behind: numbers, and every answer that they come from."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from fivefold.errors import ConfigError
from fivefold.evaluation.settings import EvaluationSettings
from fivefold.models.answer_journal import AnswerJournal

_PACKAGES = ("fivefold", "torch", "transformers")


class Results:
    """The files of one evaluation: NAME.json, NAME_examples.jsonl, and NAME.partial while it runs.

    Args:
        name: of the evaluation, such as superglue.
        settings: of the command.

    Raises:
        ConfigError: results are there already, or those of an interrupted run, and nobody said what to do with them.
    """

    def __init__(self, name: str, settings: EvaluationSettings) -> None:
        self.name, self.folder = name, settings.folder
        self.file, self._partial = self.folder / f"{name}.json", self.folder / f"{name}.partial"
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--output_dir {self.folder} is a file; give a folder.")
        if self._partial.exists() and not (settings.resume or settings.overwrite):
            raise ConfigError(
                f"{self._partial} holds answers of an interrupted run; give --resume to go on, or --overwrite to begin "
                "anew."
            )
        if settings.resume and not self._partial.exists():
            raise ConfigError(f"--resume: there is no {self._partial} to go on with; leave --resume out to begin.")
        if self.file.exists() and not (settings.overwrite or settings.resume):
            raise ConfigError(f"{self.file} is there already; give --overwrite, or another --output_dir.")
        self._begins_anew = settings.overwrite and not settings.resume

    @contextmanager
    def journal(self, described: Mapping[str, Any]) -> Iterator[AnswerJournal]:
        """Answers so far, for as long as the evaluation runs.

        Args:
            described: what the answers depend on.

        Raises:
            KeyboardInterrupt: with a sentence on how to go on.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._begins_anew:
            self._partial.unlink(missing_ok=True)
        try:
            with AnswerJournal(self._partial, dict(described)) as journal:
                yield journal
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; the same command with --resume goes on with {self._partial}"
            ) from None

    def write(self, numbers: Mapping[str, Any], examples: Iterable[Mapping[str, Any]]) -> None:
        """Leave the numbers and the examples in whole files, and no journal."""
        versions = {name: metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
        summary = {"evaluation": self.name, **numbers, "versions": versions}
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        write_whole(self.folder / f"{self.name}_examples.jsonl", "".join(lines))
        write_whole(self.file, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
        self._partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.writing")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def digest(texts: Iterable[str]) -> str:
    """What tells some texts from others, for a journal."""
    whole = sha256()
    for text in texts:
        whole.update(text.encode() + b"\0")
    return whole.hexdigest()[:16]
