"""Generate text from text: a T5 answers, and fills in blanks written ___; a decoder continues."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fivefold.errors import ConfigError, DataError
from fivefold.models.decoding import DecodingSettings


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
    from fivefold.serving.open_model import open_model

    model, tokenizer = open_model(settings.model)
    check_inputs(model, inputs)
    if dry_run:
        print(f"{len(inputs)} inputs for {settings.model}, {model.num_parameters():,} parameters")
        return
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
