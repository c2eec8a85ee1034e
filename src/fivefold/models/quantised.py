"""Decoders whose linear layers bitsandbytes holds in 4 or 8 bits: they read and pass gradients on, an adapter learns.

Source: QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314; LLM.int8, https://arxiv.org/abs/2208.07339.
All else (embeddings, norms, output layer) is opened in float32, so that nothing of peft's
`prepare_model_for_kbit_training` is left to do.
"""

import warnings
from typing import Any

import torch
from torch import nn

from fivefold.errors import ConfigError
from fivefold.models.settings import QuantisationSettings
from fivefold.nn.quantised import is_quantised


def check_bitsandbytes() -> None:
    """Raise ConfigError where bitsandbytes cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=DeprecationWarning)
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Quantised weights need bitsandbytes ({error}): pip install 'fivefold[qlora]', or leave them out."
        ) from None


def quantised_loading(settings: QuantisationSettings) -> dict[str, Any]:
    """What `from_pretrained` has to be told.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    check_bitsandbytes()
    config = BitsAndBytesConfig(
        load_in_4bit=settings.use_4bit_quantization,
        load_in_8bit=settings.use_8bit_quantization,
        bnb_4bit_use_double_quant=settings.use_nested_quant,
        bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=settings.bnb_4bit_compute_dtype,
        bnb_4bit_quant_storage=settings.bnb_4bit_quant_storage_dtype,
    )
    return {"quantization_config": config, "device_map": {"": torch.device("cpu")}}  # or it goes to a GPU by itself


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit weights as they are when the model is measured.

    On CPUs with AVX512-BF16 bitsandbytes otherwise packs them anew at the first product outside training, for good and
    for a kernel that passes no gradient on: a run that is measured would train on with wrong gradients.
    """
    for module in model.modules():
        if is_quantised(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
