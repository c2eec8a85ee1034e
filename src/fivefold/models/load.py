"""A stored model of any family, whole or not at all."""

import textwrap
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fivefold.adapters.folder import base_model, with_adapter
from fivefold.errors import CheckpointError
from fivefold.lowrank.store import is_factored, load_factored
from fivefold.models.family import stored_family
from fivefold.models.quantised import keep_differentiable, quantised_loading
from fivefold.models.settings import QuantisationSettings
from fivefold.t5.model import T5Model
from fivefold.t5.weights import check_loaded, library_report_off


def load_model(name_or_path: str, quantisation: QuantisationSettings | None = None) -> PreTrainedModel:
    """Open a T5 or a decoder, dense or low rank, in float32 on the CPU.

    Args:
        name_or_path: folder or Hub id; a folder of an adapter gives its base model with the adapter added to it.
        quantisation: of a decoder that is no adapter and not low rank.

    Raises:
        CheckpointError: no model there, unreadable, or weights that do not fit its configuration.
        ModelError: neither a T5 nor a decoder, or an adapter that cannot be added to weights.
    """
    if (base := base_model(name_or_path)) is not None:
        return with_adapter(load_model(base), name_or_path)
    if is_factored(name_or_path):
        return load_factored(name_or_path)
    if stored_family(name_or_path) == "t5":
        return T5Model.from_pretrained(name_or_path, dtype=torch.float32)
    return _load_decoder(name_or_path, quantisation)


def _load_decoder(name_or_path: str, quantisation: QuantisationSettings | None) -> PreTrainedModel:
    how = {} if quantisation is None else quantised_loading(quantisation)
    try:
        with library_report_off():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that we say what does not fit, in one sentence
                **how,
            )
    except Exception as error:  # a damaged folder leads to whatever the library then stumbles over
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise CheckpointError(f"{name_or_path} cannot be opened ({reason}); fetch or save the model again.") from error
    model, info = loaded
    check_loaded(name_or_path, info)
    if quantisation is not None:
        keep_differentiable(model)
    return model
