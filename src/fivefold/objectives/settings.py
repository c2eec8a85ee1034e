"""The terms of a loss."""

from dataclasses import dataclass, replace

from fivefold.errors import ConfigError


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
