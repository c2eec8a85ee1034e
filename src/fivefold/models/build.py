"""Settings to a model of any family, dense or low rank."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fivefold.choices import refuse_changed
from fivefold.errors import ConfigError
from fivefold.llama import config as llama
from fivefold.lowrank.change_rank import change_rank
from fivefold.lowrank.convert import Report, convert, factor_pairs
from fivefold.lowrank.settings import DEFAULT_RANK, LowRankSettings
from fivefold.lowrank.targets import Kind, Scope, kind_of
from fivefold.models.family import complete
from fivefold.models.load import load_model
from fivefold.models.settings import ModelSettings, QuantisationSettings
from fivefold.t5.config import T5Config, preset_names
from fivefold.t5.model import T5Model
from fivefold.tokenizer.load import check_fits

_VOCAB_MULTIPLE = 128  # T5's own 32,100 tokens became 32,128 rows

log = logging.getLogger("fivefold")


def build_model(
    settings: ModelSettings,
    low_rank: LowRankSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    *,
    default_init: str,
    quantisation: QuantisationSettings | None = None,
) -> tuple[PreTrainedModel, Report | None]:
    """A fresh model whose weights follow from the seed, or the trained one that the settings name, factored if asked.

    Args:
        settings: family and shape, or where the trained model is.
        low_rank: which layers become products of thin matrices; a model that is low rank already changes its ranks.
        tokenizer: whose ids the model must have rows for; None where a dry run cannot have it: the preset's own rows.
        seed: of the fresh weights and factors.
        default_init: how factors start if `low_rank` does not say.
        quantisation: of a trained decoder, see `commands.stages.quantised`.

    Returns:
        The model, in float32 where it is not quantised, and what was factored, or None if nothing was.

    Raises:
        ConfigError: settings that contradict each other.
        CheckpointError, ModelError: a model that cannot be read, built or factored.
        DataError: the tokenizer has ids beyond the model's rows.
    """
    settings = complete(settings)
    if settings.model is None:
        model = _fresh(build_config(settings, tokenizer), seed)
    else:
        model = load_model(settings.model, quantisation)
        if settings.dropout_rate is not None:
            _set_dropout(model, settings.dropout_rate)
        if tokenizer is not None:
            check_fits(tokenizer, model.config.vocab_size)
    report = _factor(model, low_rank, seed, default_init)
    if settings.gradient_checkpointing:
        checkpoint_blocks(model)
    return model, report


def build_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase | None) -> T5Config | LlamaConfig:
    """The shape of a fresh model; settings as `models.family.complete` gives them.

    Raises:
        ConfigError: a preset of the other family.
        ModelError: no such preset, or a configuration that cannot be.
        DataError: the tokenizer has more tokens than the model has rows.
    """
    name = str(settings.model_config)
    changes: dict[str, Any] = {
        name: value
        for name in ("vocab_size", "dropout_rate", "tie_word_embeddings")
        if (value := getattr(settings, name)) is not None
    }
    if not Path(name).is_file():
        _say_preset(name, is_llama=settings.model_type == "llama")
        if tokenizer is not None:
            changes.setdefault("vocab_size", _rows_for(tokenizer))
    if settings.model_type == "llama":
        config: T5Config | LlamaConfig = _llama_config(name, changes, tokenizer)
    else:
        if "tie_word_embeddings" in changes:
            changes["scale_decoder_outputs"] = changes["tie_word_embeddings"]
        config = T5Config.from_name_or_file(name, **changes)
    if tokenizer is not None:
        check_fits(tokenizer, config.vocab_size)
    return config


def check_length(model: PreTrainedModel, input_length: int) -> None:
    """Refuse samples longer than the model has positions; those of T5's own bias and of ALiBi have no end.

    Raises:
        ConfigError: they are.
    """
    most = num_positions(model)
    if most is not None and input_length > most:
        raise ConfigError(
            f"input_length is {input_length}, but the model has {most} positions; give that at most, or a "
            "--model_config file with a larger max_position_embeddings (a T5's position_settings: max_seq_length)."
        )


def num_positions(model: PreTrainedModel) -> int | None:
    """How long a sample may be; None where there is no end to it."""
    config = model.config
    return config.longest_input() if isinstance(config, T5Config) else getattr(config, "max_position_embeddings", None)


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Keep only the input of each block for the backward pass, which computes the rest again."""
    # transformers renamed the switch between 5.15 and 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _say_preset(name: str, *, is_llama: bool) -> None:
    """Name the preset that stands in for a file which is not there, or the family that has a preset of this name."""
    stem, llama_name = Path(name).name.removesuffix(".json"), llama.preset_name(name)
    is_preset = llama_name in llama.preset_names() if is_llama else stem in preset_names()
    if is_preset and name.endswith(".json"):
        log.info("There is no file %s; using the preset %s.", name, llama_name if is_llama else stem)
    if not is_llama and not is_preset and llama_name in llama.preset_names():
        raise ConfigError(f"--model_config {name} is the LLaMA preset {llama_name}; give --model_type llama with it.")


def _llama_config(name: str, changes: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> LlamaConfig:
    if tokenizer is None:
        return llama.from_name_or_file(name, **changes)
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        changes[token] = getattr(tokenizer, token)
    if changes["pad_token_id"] == changes["eos_token_id"]:
        changes["pad_token_id"] = None  # the row of a padding token is never trained
    config = llama.from_name_or_file(name, **changes)
    # GaLore's files have 32,000 rows, to which t5-base, their tokenizer, adds 100 sentinels that no text holds.
    ordinary = set(tokenizer.get_vocab().values()).difference(tokenizer.all_special_ids)
    if "vocab_size" not in changes and max(ordinary) < config.vocab_size < len(tokenizer):
        log.info("%s has %s rows, the tokenizer %s tokens; making room.", name, config.vocab_size, len(tokenizer))
        config.vocab_size = _rows_for(tokenizer)
    return config


def _rows_for(tokenizer: PreTrainedTokenizerBase) -> int:
    return -(-len(tokenizer) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def _fresh(config: T5Config | LlamaConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5Model(config) if isinstance(config, T5Config) else LlamaForCausalLM(config)


def _set_dropout(model: PreTrainedModel, dropout_rate: float) -> None:
    holders: list[Any] = [model.config, *(module for module in model.modules() if hasattr(module, "dropout_rate"))]
    for holder in holders:
        holder.dropout_rate = dropout_rate


def _factor(model: PreTrainedModel, low_rank: LowRankSettings, seed: int, default_init: str) -> Report | None:
    scope = low_rank.loro_scope
    if scope is None:
        others = (field.name for field in fields(low_rank) if field.name != "loro_scope")
        refuse_changed(low_rank, others, "without --loro_scope")
        return None
    if low_rank.loro_mlp_dense:
        if scope == "mlp":
            raise ConfigError(
                "--loro_scope mlp factors the feed-forward layers, which --loro_mlp_dense keeps; drop one."
            )
        scope = "attn"
    factored: set[Kind | None] = {kind_of(name, model.config.low_rank["targets"]) for name, _ in factor_pairs(model)}
    kinds = factored or ({"attn", "mlp"} if scope == "all" else {scope})
    for kind in ("attn", "mlp"):
        if kind not in kinds and getattr(low_rank, f"loro_{kind}_rank") is not None:
            log.info("--loro_%s_rank changes nothing: those layers stay full rank.", kind)
    if factored:
        return _change_rank(model, low_rank, scope, seed, factored)
    return convert(
        model,
        scope=scope,
        attn_rank=low_rank.loro_attn_rank or DEFAULT_RANK,
        mlp_rank=low_rank.loro_mlp_rank or DEFAULT_RANK,
        init=low_rank.loro_init or default_init,
        attn_targets=low_rank.loro_attn_targets,
        mlp_targets=low_rank.loro_mlp_targets,
        seed=seed,
    )


def _change_rank(
    model: PreTrainedModel, low_rank: LowRankSettings, scope: Scope, seed: int, kinds: set[Kind | None]
) -> Report:
    unused = ("loro_init", "loro_attn_targets", "loro_mlp_targets")
    refuse_changed(low_rank, unused, "in a model that is low rank already")
    if scope != "all" and kinds != {scope}:
        raise ConfigError(
            f"--loro_scope {scope} leaves out layers that the model has at low rank; give all, and those ranks "
            "that are to change."
        )
    return change_rank(model, attn_rank=low_rank.loro_attn_rank, mlp_rank=low_rank.loro_mlp_rank, seed=seed)
