"""Factored models on disk: folders that load strictly here and that nothing else mistakes for a dense model.

    config.json             model_type "low_rank_<type>" and, under "low_rank", the rank of each factored layer
    low_rank.safetensors    every tensor under its first name, so tied ones once
    generation_config.json

transformers draws at random whatever weights it misses, so neither the type nor the weight file's name may mean
anything to it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fivefold.errors import CheckpointError, FivefoldError, ModelError
from fivefold.lowrank.replace import empty_factors, factor_pairs, replace_modules
from fivefold.lowrank.targets import linear_layers
from fivefold.t5.config import T5_TYPES, T5Config
from fivefold.t5.model import T5Model

_PREFIX = "low_rank_"
_WEIGHTS, _DENSE_WEIGHTS = "low_rank.safetensors", "model.safetensors"


def save_model(model: PreTrainedModel, folder: str | Path) -> None:
    """Write configuration, weights and generation settings; a dense model's as transformers has them.

    Args:
        model: factored by `convert` or dense, weights in the dtype they have in memory.
        folder: made if need be. Its config.json comes last, so a folder without one is not complete.

    Raises:
        CheckpointError: a factored model was to go where a dense one lies.
    """
    folder = Path(folder)
    ranks = {name: layer.rank for name, layer in factor_pairs(model)}
    if not ranks:
        model.save_pretrained(folder)
        return
    if (folder / _DENSE_WEIGHTS).exists():
        raise CheckpointError(f"{folder} holds a dense model already; a low-rank one needs a folder of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    stored = {name: tensors[name].contiguous() for name in _names_once(model)}
    save_file(stored, folder / _WEIGHTS, metadata={"format": "pt"})
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    config = model.config.to_diff_dict()
    config["model_type"] = _PREFIX + config["model_type"]
    config["architectures"] = [f"LowRank{type(model).__name__}"]
    config["low_rank"] = config.get("low_rank", {}) | {"ranks": ranks}
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config["tie_word_embeddings"] = _is_tied(model)  # what the tensors say: some T5s call themselves tied and are not
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_factored(folder: str | Path) -> bool:
    """Whether a local folder holds a model that `save_model` wrote in factored form."""
    try:
        model_type = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(model_type, str) and model_type.startswith(_PREFIX)


def weights_file(folder: str | Path) -> Path:
    """Where a folder's weights lie, factored or dense, for loading into a model that is built already."""
    return Path(folder) / (_WEIGHTS if is_factored(folder) else _DENSE_WEIGHTS)


def load_factored(folder: str | Path) -> PreTrainedModel:
    """Rebuild a factored model: fivefold's `T5Model`, or transformers' decoder of the stored type.

    Returns:
        In evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: no factored model, damaged, or weights that are missing, surplus or of another shape.
        ModelError: a type of model that fivefold cannot build.
    """
    folder = Path(folder)
    if not is_factored(folder):
        raise CheckpointError(f"{folder} holds no low-rank model: its config.json is missing or names another type.")
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        model = _build_dense(data)
        ranks = {str(name): int(rank) for name, rank in data["low_rank"]["ranks"].items()}
        linear = linear_layers(model)
        dense = {name: linear[name] for name in ranks}
    except FivefoldError:
        raise
    except Exception as error:  # a damaged configuration leads to whatever the library then stumbles over
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"{folder / 'config.json'} describes no model that can be built ({reason}).") from error
    factored = empty_factors(dense, ranks)
    replace_modules(model, {dense[name]: layer for name, layer in factored.items()})
    load_weights(model, folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    refuse_dense_form(model)
    return model.eval()


@torch.no_grad()
def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Copy a folder's weights into a model of the same shape, all of them or none.

    Raises:
        CheckpointError: unreadable, or tensors that are missing, surplus or of another shape.
    """
    file = weights_file(folder)
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as weights ({' '.join(str(error).split())}).") from error
    tensors = model.state_dict()
    expected = {name: tensors[name] for name in _names_once(model)}
    problems = [
        *(f"{name} is missing" for name in expected if name not in stored),
        *(f"{name} has no place in the model" for name in stored if name not in expected),
        *(
            f"{name} has the shape {list(stored[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in stored and stored[name].shape != tensor.shape
        ),
    ]
    if problems:
        more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise CheckpointError(f"The weights in {file} do not fit the model: {problems[0]}{more}.")
    for name, tensor in expected.items():
        tensor.copy_(stored[name])


def refuse_dense_form(model: PreTrainedModel) -> None:
    """Let a factored model's `save_pretrained` be `save_model`: the inherited one would call it a dense model."""
    # A partial, unlike a closure, is copied and pickled with the model.
    model.save_pretrained = partial(save_model, model)  # type: ignore[method-assign]


def _build_dense(data: dict[str, Any]) -> PreTrainedModel:
    model_type = data["model_type"].removeprefix(_PREFIX)
    data = data | {"model_type": model_type}
    # All weights come from the file: none are drawn, which takes minutes in a large model.
    with torch.random.fork_rng(devices=[]), no_init_weights():
        if model_type in T5_TYPES:
            model = T5Model(T5Config.from_dict(data))
        elif model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            config = CONFIG_MAPPING[model_type].from_dict(data)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            raise ModelError(f"fivefold builds T5s and transformers' decoders, and {model_type!r} is neither.")
    model.tie_weights()  # drawing the weights would have done it
    return model


def _names_once(model: nn.Module) -> list[str]:
    """Names of the state's tensors, a tied parameter only under its first one."""
    first = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    return [name for name in model.state_dict() if name not in tied]


def _is_tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight
