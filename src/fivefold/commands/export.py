"""Export a low-rank model as a dense one, in the standard form that other programs open."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fivefold.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

POSITIONAL = "model"
# Of the largest logit: float32 rounds at 6e-8, and each of a few dozen layers adds its share.
_TOLERANCE = 1e-5


@dataclass
class ExportSettings:
    """What to export, and in which form."""

    model: str
    """Folder of a low-rank model, such as RUN/final or RUN/last."""
    output_dir: str
    """Folder to write; it must not exist."""
    dense: bool = False
    """Multiply the factors of each layer; the only form there is so far, so always needed."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the written weights."""


def run(settings: ExportSettings, *, dry_run: bool) -> None:
    """Merge, write, open what was written, compare; nothing stays behind where one of them fails."""
    home = Path(settings.output_dir)
    if not settings.dense:
        raise ConfigError("The dense form is the only one there is now: add --dense.")
    if home.exists():
        raise ConfigError(f"--output_dir {home} exists already; name a new folder.")

    import torch

    from fivefold.lowrank.convert import factor_pairs, merge
    from fivefold.models.load import load_model
    from fivefold.tokenizer.load import TOKENIZER_FILES, load_tokenizer
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint

    source = Path(settings.model)
    if (source / MANIFEST).is_file():
        verify_checkpoint(source)
    model = load_model(settings.model).eval()
    num_layers = len(factor_pairs(model))
    if num_layers == 0:
        raise ConfigError(f"{source} is a dense model already: other programs open it as it is.")
    has_tokenizer = any((source / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = load_tokenizer(source) if has_tokenizer else None
    what = (
        f"{num_layers} low-rank layers merged, {settings.dtype}, {'with' if has_tokenizer else 'without a'} tokenizer"
    )
    if dry_run:
        print(f"would write {home}: {what}")
        return
    expected = _logits(model)
    merge(model)
    writing = home.with_name(f".{home.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        model.to(getattr(torch, settings.dtype)).save_pretrained(writing)  # type: ignore[arg-type]
        if tokenizer is not None:
            tokenizer.save_pretrained(writing)
        difference = _difference(_logits(load_model(str(writing)).eval()), expected)
        if not difference <= (_TOLERANCE if settings.dtype == "float32" else 1.0):  # written so that NaN fails too
            raise CheckpointError(
                f"The dense model differs from {source} by {difference:.1e} of the largest logit, more than rounding "
                "explains: its weights hold NaN or overflow the type."
            )
        writing.replace(home)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    print(f"wrote {home}: {what}")
    print(f"logits differ by at most {difference:.1e} of the largest one on a random batch")


def _logits(model: "PreTrainedModel") -> "Tensor":
    """[2, T, V] float32 for random tokens, the same ones for every model of a vocabulary."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, 16), generator=generator)
    targets = {"decoder_input_ids": tokens[:, :8]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, **targets).logits.float()


def _difference(ours: "Tensor", expected: "Tensor") -> float:
    """Largest difference, as a share of the largest expected number."""
    largest = expected.abs().max().clamp_min(1e-30)  # a fresh output layer may be zero
    return ((ours - expected).abs().max() / largest).item()
