"""Which layers are low rank, and how LORO trains them: cheap to import, checked when built."""

import logging
import re
from dataclasses import dataclass, field
from typing import Literal

from fivefold.choices import refuse_unused
from fivefold.errors import ConfigError

log = logging.getLogger("fivefold")

DEFAULT_RANK = 128
INITS = ("xavier", "xavorth", "auto", "kaiming", "orth", "dense", "spectral")
# Under which choices a setting counts, see `fivefold.choices`.
_FACTORED = {"loro_scope": ("all", "attn", "mlp")}
_LORO = {"optimizer": ("loro_adamw",)}

_INIT_WITH_NUMBER = re.compile(r"(randn|const|spectral)_(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@dataclass
class LowRankSettings:
    """Which linear layers become products of two thin matrices."""

    loro_scope: Literal["all", "attn", "mlp"] | None = None
    """Layers to factor: attention and feed-forward, or one of the two; by default none, the model stays full rank."""
    loro_attn_rank: int | None = field(default=None, metadata=_FACTORED)
    """Rank of the attention projections, by default 128, or in a --model that is low rank already the one they have; a
    matrix with a smaller side gets that side, and the report says so."""
    loro_mlp_rank: int | None = field(default=None, metadata=_FACTORED)
    """Rank of the feed-forward layers, with the same default and capped in the same way."""
    loro_init: str | None = field(default=None, metadata=_FACTORED)
    """How the factors start: xavier, xavorth, auto, kaiming, orth, randn_X, const_X as in LORO, dense (the product
    varies as the dense layer would), spectral (the best approximation of the dense weights) or spectral_X (of X times
    them); by default xavier for a fresh model under loro_adamw, else spectral. In a model without initializer_range,
    such as a T5, auto is dense."""
    loro_mlp_dense: bool = field(default=False, metadata=_FACTORED)
    """Keep the feed-forward layers full rank, as --loro_scope attn does."""
    loro_attn_targets: list[str] = field(default_factory=list, metadata=_FACTORED)
    """Name patterns of attention projections for models that are not known, such as *.attention.query_key_value of
    GPT-NeoX."""
    loro_mlp_targets: list[str] = field(default_factory=list, metadata=_FACTORED)
    """Name patterns of feed-forward layers for models that are not known."""

    def __post_init__(self) -> None:
        for name in ("loro_attn_rank", "loro_mlp_rank"):
            rank = getattr(self, name)
            if rank is not None and rank < 1:
                raise ConfigError(f"{name} is {rank}, but a rank must be 1 or above.")
        init = self.loro_init
        if init is not None and init not in INITS and not _INIT_WITH_NUMBER.fullmatch(init):
            raise ConfigError(
                f"loro_init is {init!r}, but it must be one of {', '.join(INITS)}, or randn_X, const_X or spectral_X "
                "with a number, such as randn_0.02."
            )
        # A dry run makes no factors and would not notice; spectral_0 leaves one factor that is not zero.
        if init is not None and init.startswith(("randn_", "const_")) and float(init.partition("_")[2]) == 0:
            raise ConfigError(
                f"loro_init is {init!r}, which makes both factors zero, and such a layer never learns; give a number "
                "above 0."
            )


@dataclass
class LoroSettings:
    """What --optimizer loro_adamw does besides Adam."""

    loro_type: Literal["loro", "rebalance", "eucl"] = field(default="loro", metadata=_LORO)
    """Every loro_freq-th update is an exact Riemannian step (loro), is followed by balanced factors of the same product
    (rebalance), or is like all others (eucl: plain Adam on the factors)."""
    loro_freq: int = field(default=1, metadata=_LORO)
    """Updates from one such step to the next; LORO's scripts use 500, or 200 at 1B."""
    loro_refresh: Literal["none", "reg", "lrk", "all"] = field(default="none", metadata=_LORO)
    """Wipe Adam's state of what is not factored (reg), of the factors (lrk) or of both (all); scripts use all."""
    loro_refresh_freq: int = field(default=0, metadata=_LORO)
    """Updates from one refresh to the next."""
    loro_lr_scaler: str = field(default="1.0", metadata=_LORO)
    """Factor on the learning rate of lazy steps, but not on their decay, and without effect on --loro_type eucl: a
    number, -1 for rank / hidden size as published, auto for rank / the larger side of each matrix (auto crashes in the
    reference)."""
    loro_scale_exact: bool = field(default=False, metadata=_LORO | {"loro_type": ("loro",)})
    """Let loro_lr_scaler hold for exact steps too (--loro_type loro)."""
    loro_momentum: Literal["factor", "tangent"] | None = field(
        default=None, metadata=_LORO | {"loro_type": ("loro", "rebalance")}
    )
    """First moments of the factors at a change of basis: left as they are (factor), as in the reference, or carried
    over (tangent); then a refresh does not wipe the factors' state, but averages their second moments over the rank.
    By default tangent, which measured better; factor beside loro_refresh or loro_lr_scaler, as in LORO's scripts."""

    def __post_init__(self) -> None:
        if self.loro_freq < 1:
            raise ConfigError(f"loro_freq is {self.loro_freq}, but it must be 1 (every update) or above.")
        if self.loro_refresh_freq < 0:
            raise ConfigError(f"loro_refresh_freq is {self.loro_refresh_freq}, but it must be 0 or above.")
        if (self.loro_refresh == "none") != (self.loro_refresh_freq == 0):
            raise ConfigError(
                f"loro_refresh is {self.loro_refresh} and loro_refresh_freq {self.loro_refresh_freq}; give both or "
                "neither, such as --loro_refresh all --loro_refresh_freq 500."
            )
        if self.loro_lr_scaler != "auto" and not self._lr_scale_is_number():
            raise ConfigError(
                f"loro_lr_scaler is {self.loro_lr_scaler!r}, but it must be a number above 0, -1 (rank / hidden size) "
                "or auto (rank / the larger side)."
            )
        refuse_unused(self, "loro_type")
        # Command lines of LORO's give these together.
        for name, default in (("loro_freq", 1), ("loro_lr_scaler", "1.0")):
            if self.loro_type == "eucl" and getattr(self, name) != default:
                log.info("--%s changes nothing: with --loro_type eucl all steps are alike, and plain.", name)

    @property
    def momentum(self) -> Literal["factor", "tangent"]:
        """`loro_momentum`, or what it is by default."""
        if self.loro_momentum is not None:
            return self.loro_momentum
        is_theirs = self.loro_type == "eucl" or self.loro_refresh != "none" or self.loro_lr_scaler != "1.0"
        return "factor" if is_theirs else "tangent"

    def lr_scale(self, rank: int, largest_side: int, hidden_size: int) -> float:
        """The factor for a matrix."""
        if self.loro_lr_scaler == "auto":
            return rank / largest_side
        number = float(self.loro_lr_scaler)
        return rank / hidden_size if number == -1 else number

    def _lr_scale_is_number(self) -> bool:
        try:
            number = float(self.loro_lr_scaler)
        except ValueError:
            return False
        return number == -1 or 0 < number < float("inf")
