"""Which model a run trains."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fivefold.choices import refuse_changed
from fivefold.errors import ConfigError

Family = Literal["t5", "llama"]


@dataclass
class ModelSettings:
    """Which model to train: a fresh one of some shape, or a trained one to go on with."""

    model_type: Family | None = None
    """t5 (encoder-decoder) or llama (decoder); by default the family of --model or of the file that --model_config
    names, else t5. A trained decoder may be of any kind that transformers opens."""
    model_config: str | None = None
    """Shape of a fresh model: a JSON file, or a preset such as small, base, modern_base, t5_v1_0_base, t5_mini, or for
    llama 60m, 130m, 350m, 1b; by default small for t5 and 60m for llama."""
    model: str | None = None
    """Folder or Hub id of a trained model to start from, instead of fresh weights."""
    vocab_size: int | None = None
    """Rows of the embedding table; for a preset the tokenizer's length rounded up to a multiple of 128."""
    dropout_rate: float | None = None
    """Dropout everywhere in a T5; otherwise as its configuration says. Decoders have none."""
    tie_word_embeddings: bool | None = None
    """Use the embedding table as output layer too; otherwise as the configuration says."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if self.dropout_rate is not None and not 0 <= self.dropout_rate < 1:
            raise ConfigError(f"dropout_rate is {self.dropout_rate}; it must be at least 0 and below 1.")


@dataclass
class TrainableSettings:
    """Which of a model's parameters train: all, unless something is said here."""

    freeze: list[str] = field(default_factory=list)
    """Parameters that stay as they are, by name: parts such as encoder, patterns such as *.q.weight, or embeddings (the
    table of tokens, and with it the output layer where the two are one)."""
    adapter: str | None = None
    """PEFT JSON file, such as an adapter_config.json: only the adapter that it describes trains, and only that is
    saved; --model stays where it is and as it is."""
    use_peft_lora: bool | None = None
    """Train LoRA by the flags below, which stand for such a file; to give one of them says the same."""
    lora_r: int | None = None
    """Rank of LoRA, by default 64."""
    lora_alpha: int | None = None
    """Scale of LoRA, a factor of alpha / r on what it adds, by default 16."""
    lora_dropout: float | None = None
    """Dropout on what LoRA reads, by default 0.1."""
    lora_target_modules: list[str] = field(default_factory=list)
    """Names of the layers that get LoRA, with blanks or commas between them; by default all-linear, every linear layer
    but the output layer."""

    def __post_init__(self) -> None:
        lora = [name for name, value in vars(self).items() if name.startswith("lora_") and value not in (None, [])]
        if lora and self.use_peft_lora is False:
            raise ConfigError(f"--{lora[0]} would change nothing with --use_peft_lora false; drop one of them.")
        if self.adapter and (lora or self.use_peft_lora):
            raise ConfigError(
                f"--{(lora or ['use_peft_lora'])[0]} would change nothing with --adapter {self.adapter}, which says "
                "all of an adapter; drop one of them."
            )
        self.use_peft_lora = True if lora else self.use_peft_lora
        if self.freeze and self.adapter_source:
            raise ConfigError(
                "--freeze would change nothing with an adapter, which leaves all of the model as it is; drop one."
            )

    @property
    def adapter_source(self) -> str | dict[str, Any] | None:
        """What describes the adapter to train: a file, or the fields of one; None without any."""
        if not self.use_peft_lora:
            return self.adapter
        names = [name.strip() for text in self.lora_target_modules for name in text.split(",") if name.strip()]
        return {
            "peft_type": "LORA",
            "r": 64 if self.lora_r is None else self.lora_r,
            "lora_alpha": 16 if self.lora_alpha is None else self.lora_alpha,
            "lora_dropout": 0.1 if self.lora_dropout is None else self.lora_dropout,
            "target_modules": "all-linear" if names in ([], ["all-linear"]) else names,
        }


@dataclass
class QuantisationSettings:
    """Whether the weights under an adapter are held in fewer bits, by bitsandbytes; for decoders."""

    use_4bit_quantization: bool = False
    """Hold the linear layers of --model, all but the output layer, in 4 bits while an adapter trains, as QLoRA does.
    The adapter is then used on the model as it lies in its folder."""
    use_8bit_quantization: bool = False
    """Hold them in 8 bits."""
    use_nested_quant: bool = False
    """Quantise the scales of the 4-bit weights, too, which saves 0.4 bits a weight."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Which sixteen values 4 bits stand for: quantiles of a normal distribution, or floating point."""
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Type of the products with 4-bit weights; by default that of --dtype."""
    bnb_4bit_quant_storage_dtype: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """As which type 4-bit weights lie in memory; the bytes are the same."""

    def __post_init__(self) -> None:
        if self.use_4bit_quantization and self.use_8bit_quantization:
            raise ConfigError("Weights have 4 or 8 bits; drop --use_4bit_quantization or --use_8bit_quantization.")
        if not self.use_4bit_quantization:
            of_4bit = [name for name in vars(self) if name not in ("use_4bit_quantization", "use_8bit_quantization")]
            refuse_changed(self, of_4bit, "without --use_4bit_quantization")

    @property
    def flag(self) -> str | None:
        """The flag that asks for fewer bits; None where none does."""
        names = [name for name in ("use_4bit_quantization", "use_8bit_quantization") if getattr(self, name)]
        return f"--{names[0]}" if names else None
