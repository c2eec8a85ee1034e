"""Settings to a T5."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.errors import ConfigError
from fivefold.t5.config import T5Config, preset_names
from fivefold.t5.model import T5Model
from fivefold.t5.settings import ModelSettings
from fivefold.t5.weights import read_config
from fivefold.tokenizer.load import check_fits

_VOCAB_MULTIPLE = 128  # T5's own 32,100 tokens became 32,128 rows

log = logging.getLogger("fivefold")


def build_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """The shape of the model to train.

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
        changes.setdefault("vocab_size", -(-len(tokenizer) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE)
        if (name := Path(settings.model_config).name.removesuffix(".json")) in preset_names():
            log.info("There is no file %s; using the preset %s.", settings.model_config, name)
    config = T5Config.from_name_or_file(settings.model_config, **changes)
    check_fits(tokenizer, config.vocab_size)
    return config


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5Model:
    """A fresh T5 whose weights follow from the seed, or the trained one that the settings name.

    Raises:
        ConfigError: settings for a fresh model beside a trained one.
        CheckpointError, ModelError, DataError: as `T5Model.from_pretrained` and `build_config`.
    """
    if settings.model is None:
        config = build_config(settings, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = T5Model(config)
    else:
        _refuse_shape(settings)
        config = read_config(settings.model)
        if settings.dropout_rate is not None:
            config.dropout_rate = settings.dropout_rate
        model = T5Model.from_pretrained(settings.model, config=config, dtype=torch.float32)
        check_fits(tokenizer, model.config.vocab_size)
    if settings.gradient_checkpointing:
        checkpoint_blocks(model)
    return model


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Keep only the input of each block for the backward pass, which computes the rest again."""
    # transformers renamed the switch between 5.15 and 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


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
