"""The terms of a loss."""

from dataclasses import dataclass, field, replace
from typing import Literal

from fivefold.choices import refuse_unused
from fivefold.errors import ConfigError

# Tulu 3 gives 5 where rewards are divided by the tokens, SimPO's authors 2 to 2.5.
_CUSTOMARY_BETA = {"sigmoid_norm": 5.0, "simpo": 2.0}

WITHOUT_REFERENCE = ("simpo", "orpo")
"""Losses that compare a model with no other one."""

# Under which choices a setting counts, see `fivefold.choices`.
_SMOOTHED = {"loss_type": ("conservative", "robust")}
_HAVE_BETA = {"loss_type": ("sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "simpo")}


@dataclass
class LossSettings:
    """What is added to plain cross-entropy while training; held-out losses are always plain."""

    z_loss: float | None = None
    """Weight of log(Z)^2, which keeps logits near zero; by default 1e-4 for t5, as in its recipes, and 0 for llama."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over the vocabulary."""

    def __post_init__(self) -> None:
        if self.z_loss is not None and self.z_loss < 0:
            raise ConfigError(f"z_loss is {self.z_loss}, but it must be 0 (off) or above.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}, but it must lie in [0, 1).")

    def for_family(self, family: str | None) -> "LossSettings":
        """The same settings with the family's customary z-loss filled in."""
        return replace(self, z_loss=(0.0 if family == "llama" else 1e-4) if self.z_loss is None else self.z_loss)


@dataclass
class PreferenceLossSettings:
    """How a chosen and a rejected answer become a loss; docs/methods/dpo.md has the formulas."""

    loss_type: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "simpo", "orpo"] = "sigmoid"
    """sigmoid is DPO; sigmoid_norm divides rewards by the tokens; ipo, hinge; conservative and robust are for labels of
    which some are wrong; simpo and orpo need no reference."""
    beta: float | None = field(default=None, metadata=_HAVE_BETA)
    """Reward for a nat of log-probability: small lets the model go far from its start; by default 0.1, for simpo 2 and
    for sigmoid_norm 5."""
    label_smoothing: float = field(default=0.1, metadata=_SMOOTHED)
    """conservative and robust: share of the pairs whose labels are taken for wrong."""
    gamma: float = field(default=1.0, metadata={"loss_type": ("simpo",)})
    """simpo: margin that the chosen answer's reward shall have."""
    odds_ratio_weight: float = field(default=0.1, metadata={"loss_type": ("orpo",)})
    """orpo: weight of the odds ratio beside the plain loss on chosen answers."""
    sft_weight: float = field(default=0.0, metadata=_HAVE_BETA)
    """Weight of the plain loss a token on chosen answers, added to the loss (orpo has its own)."""

    def __post_init__(self) -> None:
        for name in ("beta", "odds_ratio_weight"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be above 0.")
        for name in ("gamma", "sft_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be 0 (off) or above.")
        if not 0 < self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}, but the share of wrong labels must lie between 0 and 0.5; "
                "without any, say --loss_type sigmoid."
            )
        refuse_unused(self, "loss_type")

    @property
    def strength(self) -> float:
        """`beta`, or what it is by default."""
        return _CUSTOMARY_BETA.get(self.loss_type, 0.1) if self.beta is None else self.beta

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the model with another one."""
        return self.loss_type not in WITHOUT_REFERENCE
