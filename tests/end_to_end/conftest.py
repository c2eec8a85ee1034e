"""One small trained run that the tests share: who wants to change it takes a copy."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fivefold.cli import main


@dataclass(frozen=True)
class SmallRun:
    """A folder with text, a tokenizer, prepared tokens, a model's shape and a finished run of 8 steps with dropout."""

    folder: Path

    @property
    def text(self) -> Path:
        """400 lines of invented words."""
        return self.folder / "text.txt"

    @property
    def tokenizer(self) -> Path:
        """500 tokens, 128 of them sentinels."""
        return self.folder / "tokenizer"

    @property
    def tokens(self) -> Path:
        """The text, prepared, a twentieth held out."""
        return self.folder / "tokens"

    @property
    def shape(self) -> Path:
        """Configuration of a model with 512 rows."""
        return self.folder / "model.json"

    @property
    def run(self) -> Path:
        """Checkpoints at 6 and 8, and the final model."""
        return self.folder / "run"

    def pretrain(self, **changes: object) -> list[str]:
        """The command that made the run, with flags changed; None leaves one out, True stands alone."""
        flags: dict[str, object] = {
            "data": self.tokens,
            "model_config": self.shape,
            "input_length": 32,
            "batch_size": 4,
            "num_training_steps": 8,
            "save_every": 3,
            "eval_every": 4,
            "log_every": 1,
            "dtype": "float32",
            "output_dir": self.run,
        }
        words = ["pretrain"]
        for name, value in (flags | changes).items():
            if value is not None:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words


@contextmanager
def one_thread() -> Iterator[None]:
    """Work in one thread: on matrices this small, two that wait for each other on a busy machine take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """The run, made once."""
    with one_thread():
        return _make(tmp_path_factory.mktemp("small_run"))


def _make(folder: Path) -> SmallRun:
    small = SmallRun(folder)
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 7))) for _ in range(300)]
    lines = [" ".join(words.choices(vocabulary, k=words.randint(3, 60))) for _ in range(400)]
    small.text.write_text("\n".join(lines))
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 512}
    small.shape.write_text(json.dumps(shape | {"dropout_rate": 0.1}))
    text, tokenizer, tokens = map(str, (small.text, small.tokenizer, small.tokens))
    assert main(["tokenizer", "--data", text, "--vocab_size", "500", "--output_dir", tokenizer]) == 0
    prepare = ["prepare", "--data", text, "--tokenizer", tokenizer, "--validation_frac", "0.05"]
    assert main([*prepare, "--output_dir", tokens]) == 0
    assert main(small.pretrain()) == 0
    return small
