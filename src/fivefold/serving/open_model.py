"""A trained model and its tokenizer, checked and where the work is done."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_model(name_or_path: str, dtype: str = "float32") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Open a model to generate with, on the GPU where there is one.

    Args:
        name_or_path: folder or Hub id, such as RUN/final; an adapter's folder, which may leave the tokenizer to the
            folder of its base model.
        dtype: in which it computes.

    Raises:
        CheckpointError, ConfigError, DataError, ModelError: as `load_model`, `load_tokenizer` and `verify_checkpoint`,
            or the two do not fit.
    """
    import torch

    from fivefold.adapters.folder import base_model
    from fivefold.models.load import load_model
    from fivefold.tokenizer.load import TOKENIZER_FILES, check_fits, load_tokenizer
    from fivefold.training.checkpoint import MANIFEST, verify_checkpoint

    base = base_model(name_or_path)
    for folder in filter(None, (name_or_path, base)):
        if (Path(folder) / MANIFEST).is_file():
            verify_checkpoint(Path(folder))
    model = load_model(name_or_path)
    has_own = base is None or any((Path(name_or_path) / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = load_tokenizer(name_or_path if has_own else base)  # type: ignore[arg-type]
    check_fits(tokenizer, model.config.vocab_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device, getattr(torch, dtype)).eval(), tokenizer  # type: ignore[arg-type]
