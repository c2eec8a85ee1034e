"""Which model is evaluated, and where what comes of it goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fivefold.errors import ConfigError


@dataclass
class EvaluationSettings:
    """Which model, and where the results go."""

    model: str
    """Folder or Hub id of a model with its tokenizer, such as RUN/final; low-rank models and adapters, too."""
    output_dir: str | None = None
    """Folder for the results; by default RUN/eval for RUN/final, and eval/NAME for a model that is in no run."""
    batch_size: int = 16
    """Questions, texts or pairs that are read together, those of like length."""
    input_length: int | None = None
    """Most tokens that are read at once; by default what the tokenizer was made for and the model has positions for."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the model computes in; bfloat16 is faster, and turns some close decisions round."""
    limit: int | None = None
    """Only so many examples, the first ones."""
    resume: bool = False
    """Go on where an interrupted run of the same command stopped; the result is that of one that was not."""
    overwrite: bool = False
    """Replace results that are there already."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "input_length", "limit"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"--{name} is {number}; it must be at least 1.")

    @property
    def folder(self) -> Path:
        """Where results go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        run = Path(self.model).resolve().parent
        return run / "eval" if (run / "run.yaml").is_file() else Path("eval") / Path(self.model).name

    @property
    def described(self) -> dict[str, str | int | None]:
        """What answers depend on."""
        names = ("model", "dtype", "batch_size", "input_length", "limit")
        return {name: getattr(self, name) for name in names}
