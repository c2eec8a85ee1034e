"""How tokens are chosen, verb by verb."""

from dataclasses import dataclass, fields
from typing import Any

from fivefold.errors import ConfigError

_OF_DRAWING = ("temperature", "top_k", "top_p")


@dataclass
class DecodingSettings:
    """How tokens are chosen."""

    max_new_tokens: int = 64
    """Most tokens of an output."""
    num_beams: int = 1
    """Beams of the search; 1 is greedy, or sampling."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: float = 1.0
    """Divides the logits before drawing; needs --do_sample."""
    top_k: int = 0
    """Draw only from this many likeliest tokens; 0 for all; needs --do_sample."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability; needs --do_sample."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that stand already, a decoder's prompt included; 1 for none."""
    no_repeat_ngram_size: int = 0
    """Never write the same run of this many tokens twice; 0 for no such rule."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError("--max_new_tokens and --num_beams must be at least 1.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; it must be at least 0 and below 2^63.")
        if not self.repetition_penalty > 0 or self.no_repeat_ngram_size < 0:
            raise ConfigError("--repetition_penalty must be above 0 and --no_repeat_ngram_size at least 0.")
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError("--temperature must be above 0, --top_p in (0, 1] and --top_k at least 0.")
        defaults = {field.name: field.default for field in fields(self)}
        if not self.do_sample and any(getattr(self, name) != defaults[name] for name in _OF_DRAWING):
            raise ConfigError("--temperature, --top_k and --top_p change how tokens are drawn: add --do_sample.")

    def arguments(self) -> dict[str, Any]:
        """Arguments of `generate()`."""
        sampling = {name: getattr(self, name) for name in _OF_DRAWING}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            **(sampling if self.do_sample else {}),
        }


@dataclass
class ChatDecoding(DecodingSettings):
    """How an answer of a chat is chosen: drawn, but not from the unlikely, and kept from going in circles."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    do_sample: bool = True
    """Draw tokens: the likeliest ones one after another lead small models into loops. --no_do_sample takes those."""
    temperature: float = 0.7
    """Divides the logits before drawing; below 1 the likely gets likelier, which small models need to make sense."""
    top_p: float = 0.9
    """Draw only from the likeliest tokens that together have this probability: the rest is where nonsense begins."""
    repetition_penalty: float = 1.1
    """Divides the logits of tokens that stand already, a decoder's prompt included: enough against loops, while names
    and numbers can still be said again; 1 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams > 1:
            raise ConfigError(
                "--num_beams must be 1 here: a search settles the first word with the last one, so that nothing could "
                "be shown before; fivefold generate has it."
            )


@dataclass
class RejectedDecoding(DecodingSettings):
    """How a model's own answers are chosen that are to be told from better ones."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    do_sample: bool = True
    """Draw tokens: what the model says by itself, in its variety, is what it should learn to say less often."""
    top_p: float = 0.95
    """Draw only from the likeliest tokens that together have this probability; needs --do_sample."""
    repetition_penalty: float = 1.1
    """Divides the logits of tokens that stand already, a decoder's prompt included; 1 for none."""
    no_repeat_ngram_size: int = 4
    """Never write the same run of this many tokens twice: rejected answers that loop teach nothing but not to loop; 0
    for no such rule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.do_sample and self.num_beams > 1:
            raise ConfigError("--num_beams searches for the likeliest answer: add --no_do_sample, or leave it out.")
