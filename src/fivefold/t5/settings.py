"""Which model a run trains."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class ModelSettings:
    """Which model to train: a fresh one of some shape, or a trained one to go on with."""

    model_type: Literal["t5"] = "t5"
    """Family of the model."""
    model_config: str = "small"
    """Shape of a fresh model: a JSON file, or a preset such as small, base, t5_v1_0_base, t5_mini."""
    model: str | None = None
    """Folder or Hub id of a trained model to start from, instead of fresh weights."""
    vocab_size: int | None = None
    """Rows of the embedding table; for a preset the tokenizer's length rounded up to a multiple of 128."""
    dropout_rate: float | None = None
    """Dropout everywhere in the model; otherwise as the configuration says."""
    tie_word_embeddings: bool | None = None
    """Use the embedding table as output layer too; otherwise as the configuration says."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
