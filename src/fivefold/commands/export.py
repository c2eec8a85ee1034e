"""Export a low-rank model or an adapter as a dense model, in the standard form that other programs open."""

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
_ADAPTER_TOLERANCE = 1e-4  # the methods that turn weights round more often


@dataclass
class ExportSettings:
    """What to export, and in which form."""

    model: str
    """Folder of a low-rank model or of an adapter, such as RUN/final or RUN/last."""
    output_dir: str
    """Folder to write; it must not exist."""
    merge: bool = False
    """Add an adapter to the weights of its base model; a low-rank one stays so without --dense."""
    dense: bool = False
    """Multiply the factors of each low-rank layer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the written weights."""


def run(settings: ExportSettings, *, dry_run: bool) -> None:
    """Merge, write, open what was written, compare; nothing stays behind where one of them fails."""
    home = Path(settings.output_dir)
    if not settings.dense and not settings.merge:
        raise ConfigError("Say in which form: --dense for a low-rank model, --merge for an adapter, or both.")
    if home.exists():
        raise ConfigError(f"--output_dir {home} exists already; name a new folder.")

    import torch

    from fivefold.adapters.folder import base_model, merge_adapter, open_adapter
    from fivefold.lowrank.convert import factor_pairs, merge
    from fivefold.models.load import load_model
    from fivefold.tokenizer.load import TOKENIZER_FILES, load_tokenizer
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint

    source = Path(settings.model)
    if (source / MANIFEST).is_file():
        verify_checkpoint(source)
    base = base_model(source)
    _check_forms(settings, base)
    adapted = None if base is None else open_adapter(load_model(base), source)
    model = load_model(settings.model).eval() if adapted is None else adapted
    num_layers = len(factor_pairs(model))
    if settings.dense and num_layers == 0:
        raise ConfigError(f"{source} is a dense model already: leave --dense out{'' if base else ', and open it'}.")
    has_tokenizer = next((at for at in (source, Path(base or source)) if _holds_any(at, TOKENIZER_FILES)), None)
    tokenizer = None if has_tokenizer is None else load_tokenizer(has_tokenizer)
    parts = [f"the adapter merged into {base}"] if base else []
    parts += [f"{num_layers} low-rank layers {'merged' if settings.dense else 'kept'}"] if num_layers else []
    what = f"{', '.join(parts)}, {settings.dtype}, {'without a' if tokenizer is None else 'with'} tokenizer"
    if dry_run:
        print(f"would write {home}: {what}")
        return
    expected = _logits(model)
    if adapted is not None:
        model = merge_adapter(adapted)
    if settings.dense:
        merge(model)
    writing = home.with_name(f".{home.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        model.to(getattr(torch, settings.dtype)).save_pretrained(writing)  # type: ignore[arg-type]
        if tokenizer is not None:
            tokenizer.save_pretrained(writing)
        difference = _difference(_logits(load_model(str(writing)).eval()), expected)
        tolerance = _TOLERANCE if base is None else _ADAPTER_TOLERANCE
        if not difference <= (tolerance if settings.dtype == "float32" else 1.0):  # written so that NaN fails too
            raise CheckpointError(
                f"The written model differs from {source} by {difference:.1e} of the largest logit, more than rounding "
                "explains: its weights hold NaN or overflow the type."
            )
        writing.replace(home)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    print(f"wrote {home}: {what}")
    print(f"logits differ by at most {difference:.1e} of the largest one on a random batch")


def _check_forms(settings: ExportSettings, base: str | None) -> None:
    if settings.merge and base is None:
        raise ConfigError(f"--merge is for adapters, and {settings.model} is none; leave it out.")
    if base is not None and not settings.merge:
        raise ConfigError(f"{settings.model} is an adapter of {base}; add --merge to put it into the weights.")


def _holds_any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


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
