"""Whether a model can be trained on in 4 or 8 bits."""

from dataclasses import replace
from importlib.util import find_spec

from fivefold.adapters.config import read_adapter_config
from fivefold.adapters.folder import base_model
from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LowRankSettings
from fivefold.lowrank.store import is_factored
from fivefold.models.quantised import check_bitsandbytes
from fivefold.models.settings import ModelSettings, QuantisationSettings, TrainableSettings
from fivefold.training.settings import LoopSettings


def for_training(
    quantisation: QuantisationSettings,
    model: ModelSettings,
    low_rank: LowRankSettings,
    trainable: TrainableSettings,
    loop: LoopSettings,
) -> QuantisationSettings:
    """The same settings with the type of products filled in.

    Args:
        model: as `resolve_model` returns it.

    Raises:
        ConfigError: nothing would learn, or these weights cannot be quantised.
    """
    if (flag := quantisation.flag) is None:
        return quantisation
    if trainable.adapter_source is None:
        raise ConfigError(f"{flag} needs an adapter, since quantised weights cannot learn; give --adapter or --lora_r.")
    if model.model is None:
        raise ConfigError(f"{flag} is for a trained decoder; name one with --model.")
    if model.model_type == "t5":
        raise ConfigError(f"{flag} is for decoders, and {model.model} is a T5; leave it out.")
    if low_rank.loro_scope is not None or is_factored(base_model(model.model) or model.model):
        raise ConfigError(f"{flag} is for full-rank layers, and low-rank ones are small already; leave it out.")
    if base_model(model.model) is not None:
        raise ConfigError(
            f"{flag} is for a model's own weights, and {model.model} is an adapter; `fivefold export {model.model} "
            "--merge` puts it into the weights first."
        )
    if loop.pure_bf16:
        raise ConfigError(f"--pure_bf16 would cast what {flag} has quantised; drop one of the two.")
    kind = str(read_adapter_config(trainable.adapter_source, is_t5=False, say=False).peft_type.value)
    if find_spec(f"peft.tuners.{kind.lower()}.bnb") is None:
        raise ConfigError(f"{flag}: peft has no {kind} for quantised layers; give a LORA, or leave it out.")
    check_bitsandbytes()
    if quantisation.use_8bit_quantization:
        return quantisation
    return replace(quantisation, bnb_4bit_compute_dtype=quantisation.bnb_4bit_compute_dtype or loop.dtype)
