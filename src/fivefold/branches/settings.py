"""What a user can say about branches: cheap to import, checked when built."""

from dataclasses import dataclass, replace
from typing import Literal

from fivefold.errors import ConfigError

RopeMode = Literal["replace", "offset"]
Visibility = Literal["isolated", "columnar"]


@dataclass
class BranchSettings:
    """How branches are told apart. A trained adapter holds these, and means nothing under others."""

    patch_rope: bool = True
    """Let a share of the rotary pairs turn by branch instead of by time (2D RoPE)."""
    rope_2d_ratio: float = 0.5
    """Share of the pairs, the slowest ones, that turn by branch; 0 is the same as --no_patch_rope."""
    rope_2d_mode: Literal["replace", "offset"] = "replace"
    """replace: these pairs turn by the branch alone, in main text not at all; offset: by time and branch together, so
    that main text is read just as by the model itself."""
    stride: int = 128
    """Positions from one branch to the next on these pairs."""
    branch_visibility: Literal["isolated", "columnar"] = "isolated"
    """isolated: a branch sees main and itself; columnar: tokens see whatever is earlier in time, in other branches,
    too."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.rope_2d_ratio <= 1:
            raise ConfigError(f"rope_2d_ratio is {self.rope_2d_ratio}; give a share from 0 to below 1, such as 0.5.")
        if self.stride < 1:
            raise ConfigError(f"stride is {self.stride}; give a whole number of at least 1.")
        if not self.patch_rope and (self.rope_2d_mode, self.stride) != ("replace", 128):
            raise ConfigError("--rope_2d_mode and --stride would change nothing with --no_patch_rope; leave them out.")

    @property
    def scheme(self) -> "BranchScheme":
        """What of them a model has to know."""
        ratio = self.rope_2d_ratio if self.patch_rope else 0.0
        return BranchScheme(ratio, self.rope_2d_mode, self.stride, self.branch_visibility).canonical()


@dataclass(frozen=True)
class BranchScheme:
    """How branches are told apart; a trained adapter means one scheme."""

    rope_2d_ratio: float = 0.5
    rope_2d_mode: RopeMode = "replace"
    stride: int = 128
    branch_visibility: Visibility = "isolated"

    def canonical(self) -> "BranchScheme":
        """The same, where nothing that has no effect differs from its default."""
        return self if self.rope_2d_ratio else replace(self, rope_2d_mode="replace", stride=128)


@dataclass
class LoraFileSettings:
    """LoRA as single files of the older kind, with keys such as `model.layers.0.self_attn.q_proj.lora.A.weight`."""

    load_lora: str | None = None
    """Weights to start the adapter from: an adapter's folder, or such a file (.pth)."""
    save_lora_files: bool = False
    """When the run is over, write its checkpoints as such files, too: lora/NAME_stepN.pth and lora/NAME_final.pth in
    the output folder."""
    lora_name: str = "hf_parallel_lora"
    """NAME of these files."""

    def __post_init__(self) -> None:
        """Check the name."""
        if not self.lora_name or "/" in self.lora_name:
            raise ConfigError(f"lora_name is {self.lora_name!r}; give a file's name without folder.")
