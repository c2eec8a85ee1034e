"""Settings to a T5."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from fivefold.errors import ConfigError, DataError
from fivefold.t5.config import T5Config, preset_names
from fivefold.t5.model import T5Model
from fivefold.t5.settings import ModelSettings

_VOCAB_MULTIPLE = 128  # T5's own 32,100 tokens became 32,128 rows

log = logging.getLogger("fivefold")


def build_config(settings: ModelSettings, num_tokens: int) -> T5Config:
    """The shape of the model to train.

    Args:
        num_tokens: length of the tokenizer.

    Raises:
        ModelError: no such preset, or a configuration that cannot be.
        DataError: the tokenizer has more tokens than the model has rows.
    """
    changes: dict[str, Any] = {
        name: value
        for name in ("vocab_size", "dropout_rate", "tie_word_embeddings")
        if (value := getattr(settings, name)) is not None
    }
    if "tie_word_embeddings" in changes:
        changes["scale_decoder_outputs"] = changes["tie_word_embeddings"]
    is_file = Path(settings.model_config).is_file()
    if not is_file:
        changes.setdefault("vocab_size", -(-num_tokens // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE)
        if (name := Path(settings.model_config).name.removesuffix(".json")) in preset_names():
            log.info("There is no file %s; using the preset %s.", settings.model_config, name)
    config = T5Config.from_name_or_file(settings.model_config, **changes)
    check_tokenizer_fits(config, num_tokens)
    return config


def build_model(settings: ModelSettings, num_tokens: int, seed: int) -> T5Model:
    """A fresh T5 whose weights follow from the seed, or the trained one that the settings name.

    Raises:
        ConfigError: settings for a fresh model beside a trained one.
        CheckpointError, ModelError, DataError: as `T5Model.from_pretrained` and `build_config`.
    """
    if settings.model is None:
        config = build_config(settings, num_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = T5Model(config)
    else:
        _refuse_shape(settings)
        changes = {} if settings.dropout_rate is None else {"dropout_rate": settings.dropout_rate}
        model = T5Model.from_pretrained(settings.model, dtype=torch.float32, **changes)
        check_tokenizer_fits(model.config, num_tokens)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def check_tokenizer_fits(config: T5Config, num_tokens: int) -> None:
    """Raise DataError if a token of the tokenizer has no row in the embedding table."""
    if num_tokens > config.vocab_size:
        raise DataError(
            f"The tokenizer has {num_tokens:,} tokens, but the model's vocabulary has {config.vocab_size:,} rows; "
            "use the tokenizer that the model was made with, or a larger --vocab_size for a fresh model."
        )


def _refuse_shape(settings: ModelSettings) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    changed = [
        name
        for name in ("model_config", "vocab_size", "tie_word_embeddings")
        if getattr(settings, name) != defaults[name]
    ]
    if changed:
        raise ConfigError(
            f"--model {settings.model} has its own shape, so --{changed[0]} cannot change it; drop one of the two."
        )
