"""Generate text from text: a T5 answers, and fills in blanks written ___; a decoder continues."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fivefold.errors import ConfigError, DataError


@dataclass
class GenerateSettings:
    """What to generate from, and with which model."""

    model: str
    """Folder or Hub id of a model with its tokenizer, such as RUN/final or RUN/last."""
    text: list[str] = field(default_factory=list)
    """Inputs; without --text and --input_file they are read from standard input, one a line."""
    input_file: str | None = None
    """Text file with one input a line."""
    output_file: str | None = None
    """Write JSON lines of input and output here instead of printing the outputs."""
    batch_size: int = 8
    """Inputs generated from together."""


@dataclass
class DecodingSettings:
    """How tokens are chosen."""

    max_new_tokens: int = 64
    """Most tokens of an output."""
    num_beams: int = 1
    """Beams of the search; 1 is greedy, or sampling."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float = 1.0
    """Divides the logits before drawing; needs --do_sample."""
    top_k: int = 0
    """Draw only from this many likeliest tokens; 0 for all; needs --do_sample."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability; needs --do_sample."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that stand already; 1 for none."""
    no_repeat_ngram_size: int = 0
    """Never write the same run of this many tokens twice; 0 for no such rule."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError("--max_new_tokens and --num_beams must be at least 1.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; it must be at least 0 and below 2^63.")
        if not self.repetition_penalty > 0 or self.no_repeat_ngram_size < 0:
            raise ConfigError("--repetition_penalty must be above 0 and --no_repeat_ngram_size at least 0.")
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError("--temperature must be above 0, --top_p in (0, 1] and --top_k at least 0.")
        if not self.do_sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise ConfigError("--temperature, --top_k and --top_p change how tokens are drawn: add --do_sample.")

    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate()`."""
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            **(sampling if self.do_sample else {}),
        }


def run(settings: GenerateSettings, decoding: DecodingSettings, *, dry_run: bool) -> None:
    """Generate for every input, in order."""
    inputs = _read_inputs(settings)
    if settings.batch_size < 1:
        raise ConfigError(f"--batch_size is {settings.batch_size}; it must be at least 1.")
    target = None if settings.output_file is None else Path(settings.output_file)
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        problem = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"--output_file {target} {problem}; give a file name in a folder that exists.")

    import torch

    from fivefold.models.generation import check_inputs, generate
    from fivefold.models.load import load_model
    from fivefold.tokenizer.load import check_fits, load_tokenizer
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint

    if (Path(settings.model) / MANIFEST).is_file():
        verify_checkpoint(Path(settings.model))
    model = load_model(settings.model)
    tokenizer = load_tokenizer(settings.model)
    check_fits(tokenizer, model.config.vocab_size)
    check_inputs(model, inputs)
    if dry_run:
        print(f"{len(inputs)} inputs for {settings.model}, {model.num_parameters():,} parameters")
        return
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()  # type: ignore[arg-type]
    torch.manual_seed(decoding.seed)
    results = generate(model, tokenizer, inputs, settings.batch_size, **decoding.arguments())
    if target is None:
        for result in results:
            print(result["output"], flush=True)
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _read_inputs(settings: GenerateSettings) -> list[str]:
    if settings.text and settings.input_file:
        raise ConfigError("Inputs were given by --text and by --input_file; give one of them.")
    file = settings.input_file
    if file is not None and not Path(file).is_file():
        raise DataError(f"--input_file {file}: there is no such file.")
    try:
        if settings.text:
            inputs = settings.text
        elif file is not None:
            inputs = Path(file).read_text(encoding="utf-8").splitlines()
        else:
            inputs = sys.stdin.read().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file or 'standard input'} is not UTF-8 text ({error.reason}); convert it first.") from None
    if not any(line.strip() for line in inputs):
        raise DataError("There is no input text; give some with --text, --input_file or on standard input.")
    return inputs
