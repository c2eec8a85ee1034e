"""Answers written so far, on disk: what an interrupted run need not write again."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from fivefold.errors import CheckpointError, ConfigError


class AnswerJournal:
    """A file of answers, a line for each batch of them; a last line that was cut short does not count.

    Args:
        path: of the file, made if missing.
        described: whose answers these are and to what; a file begun with something else is not gone on with.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: it was begun with other settings.
    """

    def __init__(self, path: Path, described: dict[str, Any]) -> None:
        self.path = path
        self._answers: dict[tuple[str | int, ...], list[Any]] = {}
        whole = self._read(json.loads(json.dumps(described))) if path.exists() else 0
        # Unbuffered: a line goes out whole in one write.
        self._file = path.open("ab", buffering=0)
        os.truncate(path, whole)
        if not whole:
            self._write(described)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, *batch: str | int) -> list[Any] | None:
        """The answers to a batch, if it was answered before.

        Args:
            batch: what tells it from the others, such as the numbers of its prompts.
        """
        return self._answers.get(batch)

    def add(self, *batch: str | int, answers: Sequence[Any]) -> None:
        """Keep the answers to a batch: texts, or whatever else JSON can hold."""
        self._write({"batch": batch, "answers": list(answers)})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def _read(self, described: dict[str, Any]) -> int:
        """Take in what the file holds; the number of bytes that are whole lines."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in content[:whole].splitlines()]
            for line in lines[1:]:
                self._answers[tuple(line["batch"])] = line["answers"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}); delete it to begin anew.") from error
        if lines and lines[0] != described:
            name = next(name for name in described if lines[0].get(name) != described[name])
            raise ConfigError(
                f"{self.path} was begun with {name} {lines[0].get(name)}, which is {described[name]} now; give the "
                "same, or delete it to begin anew."
            )
        return whole
