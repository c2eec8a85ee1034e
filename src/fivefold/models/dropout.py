"""Dropout out of a model that has some."""

import logging

from torch import nn

log = logging.getLogger("fivefold")

# transformers' attention layers and our own layers keep a rate and drop by a function.
_RATES = ("dropout_rate", "attention_dropout", "attn_dropout", "hidden_dropout", "activation_dropout")


def turn_off_dropout(model: nn.Module) -> None:
    """Drop nothing while the model trains; its configuration, which a later run reads, keeps the rate."""
    found = False
    for module in model.modules():
        names = ("p",) if isinstance(module, nn.Dropout) else _RATES
        for name in names:
            rate = getattr(module, name, None)
            if isinstance(rate, float) and rate > 0:
                setattr(module, name, 0.0)
                found = True
    if found:
        log.info("dropout is off: two models are compared, and noise in one of them would pass for a difference.")
