"""The shape of a T5, in Hugging Face's names, and the built-in presets."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from fivefold.errors import ModelError
from fivefold.nn.attention import check_kernel
from fivefold.nn.gated_product import ACTIVATIONS
from fivefold.nn.glu import GLU_ACTIVATIONS
from fivefold.nn.norms import NORMS
from fivefold.nn.rope import RoPE
from fivefold.t5.position import build_position

# Model types that are a T5 here; the last is our own, for what transformers' T5s cannot compute.
T5_TYPES = ("t5", "mt5", "umt5", "fivefold_t5")

_PRESETS = resources.files("fivefold.t5") / "presets"
# Classes of ours, as transformers names those that open the same weights (umT5's with a prefix).
_ARCHITECTURES = {"T5Model": "T5ForConditionalGeneration", "T5Encoder": "T5EncoderModel"}


class T5Config(PreTrainedConfig):
    """A T5 encoder-decoder of version 1.0 or 1.1, flan-T5, mT5 or umT5, or one put together from other parts.

    Field names are transformers' own where it has one. Two meanings are kept apart here that transformers mixes:
    `tie_word_embeddings` says whether the output layer is the embedding table, `scale_decoder_outputs` whether the
    decoder's output is multiplied by d_model**-0.5 before it (v1.0: both, v1.1 and later: neither).

    Args:
        vocab_size: rows of the embedding table; at least the tokenizer's length.
        d_model: width of the residual stream.
        d_kv: width of one head; the inner width num_heads * d_kv need not be d_model.
        d_ff: inner width of the feed-forward layers.
        num_layers: encoder blocks.
        num_decoder_layers: decoder blocks; as many as the encoder's if None.
        feed_forward_proj: "relu", "gated-gelu", "gated-silu", ...: activation, gated or not.
        relative_bias_per_layer: every layer has its own position bias (umT5) instead of sharing the first layer's.
        initializer_factor: multiplies the standard deviation of every fresh weight.
        position: "relative_bias" (T5's own), "rope", "alibi", "adaptive_alibi" or "none": how self-attention tells
            where a token stands; cross-attention never does.
        position_settings: keyword arguments of `RoPE`, `ALiBi` or `AdaptiveALiBi`, such as {"scaling": "ntk"}.
        norm: a name in `fivefold.nn.norms.NORMS`.
        feed_forward: a name in `fivefold.nn.glu.GLU_ACTIVATIONS`, such as "swiglu", in place of `feed_forward_proj`.
        attention: a kernel of `fivefold.nn.attention`.
        qk_norm: queries and keys are normalised in each head, and their products divided by sqrt(d_kv).
        num_key_value_heads: heads of keys and values, which groups of query heads share; num_heads if None.

    Raises:
        ModelError: values that are out of range or do not go together.
    """

    model_type = "t5"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers reads it off the class
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_bias_per_layer: bool = False
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0
    position: str = "relative_bias"
    position_settings: dict[str, Any] | None = None
    norm: str = "rmsnorm"
    feed_forward: str | None = None
    attention: str = "auto"
    qk_norm: bool = False
    num_key_value_heads: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.feed_forward is not None:
            self.feed_forward_proj = _proj_of(self.feed_forward, self.feed_forward_proj)
            self.feed_forward = None  # said once, in the name that transformers reads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_heads
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "key_heads")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ModelError(f"T5Config: {name} is {getattr(self, name)}; it must be at least 1.")
        if self.activation not in ACTIVATIONS:
            raise ModelError(
                f"T5Config: feed_forward_proj is {self.feed_forward_proj!r}; use one of "
                f"{', '.join(sorted(ACTIVATIONS))}, alone or after 'gated-'."
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ModelError(f"T5Config: dropout_rate is {self.dropout_rate}; it must be at least 0 and below 1.")
        if self.norm not in NORMS:
            raise ModelError(f"T5Config: norm is {self.norm!r}; use one of {', '.join(NORMS)}.")
        if self.num_heads % self.key_heads:
            raise ModelError(
                f"T5Config: num_key_value_heads is {self.key_heads}; it must divide num_heads, {self.num_heads}."
            )
        check_kernel(self.attention)
        if self.relative_bias_per_layer and self.position != "relative_bias":
            raise ModelError(
                f"T5Config: relative_bias_per_layer goes with the position 'relative_bias', not {self.position!r}."
            )
        for is_causal in (False, True):
            self.build_position(is_causal=is_causal)  # says itself what does not fit

    def longest_input(self) -> int | None:
        """The longest input that the positions are made for; None if there is no end."""
        part = self.build_position(is_causal=False)
        return part.max_seq_length if isinstance(part, RoPE) and part.scaling == "none" else None

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """As transformers', which makes caches with this many layers and would take the encoder's number."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder:
            config.num_layers = self.num_decoder_layers
        return config

    def build_position(self, *, is_causal: bool) -> nn.Module | None:
        """The part that tells one side's positions; None for "relative_bias" and "none"."""
        sizes = {"head_dim": self.d_kv, "num_heads": self.num_heads}
        return build_position(self.position, self.position_settings, is_causal=is_causal, **sizes)

    @property
    def is_standard(self) -> bool:
        """Whether transformers' T5 or umT5 computes the same."""
        return (
            self.position == "relative_bias"
            and self.norm == "rmsnorm"
            and not self.qk_norm
            and self.num_key_value_heads == self.num_heads
        )

    @property
    def activation(self) -> str:
        """Name of the feed-forward activation, without "gated-"."""
        return self.feed_forward_proj.removeprefix("gated-")

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layers have two input projections."""
        return self.feed_forward_proj.startswith("gated-")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "T5Config":
        """Read a dictionary as transformers writes it, of version 4 or 5, for T5, mT5 or umT5."""
        config_dict = dict(config_dict)
        model_type = config_dict.pop("model_type", cls.model_type)
        if model_type not in T5_TYPES:
            raise ModelError(f"Got a configuration of model type {model_type!r}; T5Config reads {', '.join(T5_TYPES)}.")
        config_dict.setdefault("relative_bias_per_layer", model_type == "umt5")
        for derived in ("is_gated_act", "dense_act_fn"):  # written by transformers, follow from feed_forward_proj
            config_dict.pop(derived, None)
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary for config.json, which transformers 4 and 5 open as the same model, if it knows it."""
        output = super().to_dict()
        output.pop("feed_forward")
        if not self.is_standard:
            output["model_type"] = T5_TYPES[-1]
            return output
        prefix = "UM" if output.pop("relative_bias_per_layer") else ""
        output["model_type"] = f"{prefix.lower()}t5"
        output["is_gated_act"] = self.is_gated
        output["dense_act_fn"] = "gelu_new" if self.activation == "gelu" else self.activation
        if output.get("architectures"):
            names = output["architectures"]
            output["architectures"] = [
                prefix + _ARCHITECTURES[name] if name in _ARCHITECTURES else name for name in names
            ]
        return output

    @classmethod
    def get_config(cls, size: str, version: str = "1.1", **changes: Any) -> "T5Config":
        """A published shape: small, base, large, xl (3B) or xxl (11B), of version "1.0" or "1.1".

        Of version "modern" small, base and large: shapes of 1.1 with the parts that did best in docs/methods/parts.md.

        Args:
            changes: fields to set differently, such as vocab_size.

        Raises:
            ModelError: no such size or version.
        """
        size = {"3b": "xl", "11b": "xxl"}.get(size.lower(), size.lower())
        family = "modern" if version == "modern" else f"t5_v{version.replace('.', '_')}"
        return cls.get_preset(f"{family}_{size}", **changes)

    @classmethod
    def get_preset(cls, name: str, **changes: Any) -> "T5Config":
        """A built-in preset by its file name without ".json", such as "t5_v1_1_small"; see `preset_names`."""
        file = _PRESETS / f"{name}.json"
        if not file.is_file():
            raise ModelError(f"There is no T5 preset {name!r}; there are {', '.join(preset_names())}.")
        fields = json.loads(file.read_text())
        # The same layer by two names: the one given now stands for both.
        for name, other in (("feed_forward", "feed_forward_proj"), ("feed_forward_proj", "feed_forward")):
            if name in changes:
                fields.pop(other, None)
        return cls(**(fields | changes))

    @classmethod
    def from_name_or_file(cls, name: str, **changes: Any) -> "T5Config":
        """A JSON file if there is one of that name, else the preset its last part names ("small" means v1.1 small)."""
        path = Path(name)
        if path.is_file():
            try:
                fields = json.loads(path.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ModelError(
                    f"{path} is not valid JSON ({error}); a model configuration is a JSON object."
                ) from None
            if not isinstance(fields, dict):
                raise ModelError(f"{path} holds a {type(fields).__name__}; a model configuration is a JSON object.")
            return cls.from_dict(fields | changes)
        preset = path.name.removesuffix(".json")
        if preset not in preset_names():
            preset = f"t5_v1_1_{preset}"
        if preset not in preset_names():
            raise ModelError(
                f"--model_config {name!r} is neither a file nor a preset; the presets are {', '.join(preset_names())}."
            )
        return cls.get_preset(preset, **changes)


class CombinedT5Config(T5Config):
    """The same under the model type that transformers' auto classes know combined parts by."""

    model_type = T5_TYPES[-1]


AutoConfig.register(CombinedT5Config.model_type, CombinedT5Config)


def _proj_of(feed_forward: str, feed_forward_proj: str) -> str:
    """The `feed_forward_proj` of a gated linear unit by its paper's name."""
    if feed_forward not in GLU_ACTIVATIONS:
        raise ModelError(
            f"T5Config: feed_forward is {feed_forward!r}; use one of {', '.join(GLU_ACTIVATIONS)}; others are "
            "feed_forward_proj's."
        )
    names = {function: name for name, function in ACTIVATIONS.items()}
    proj = f"gated-{names[GLU_ACTIVATIONS[feed_forward]]}".replace("gelu_new", "gelu")
    if feed_forward_proj not in ("relu", proj):  # the first is the default
        raise ModelError(
            f"T5Config: feed_forward {feed_forward!r} means feed_forward_proj {proj!r}, but that is "
            f"{feed_forward_proj!r}; give one of the two."
        )
    return proj


def preset_names() -> list[str]:
    """Names of the built-in presets, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _PRESETS.iterdir() if file.name.endswith(".json"))
