"""fivefold: small text-to-text and chat language models, from raw text to a chat window."""

import importlib
from typing import TYPE_CHECKING, Any

from fivefold.t5.auto_classes import register_when_imported

if TYPE_CHECKING:
    from fivefold.t5.config import T5Config
    from fivefold.t5.model import T5Decoder, T5Encoder, T5Model

__version__ = "0.1.0"

# Imported when first used: torch takes seconds, `fivefold --help` should not.
_HOMES = {
    "T5Config": "fivefold.t5.config",
    "T5Model": "fivefold.t5.model",
    "T5Encoder": "fivefold.t5.model",
    "T5Decoder": "fivefold.t5.model",
}
__all__ = ["T5Config", "T5Decoder", "T5Encoder", "T5Model", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fivefold' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


register_when_imported()
