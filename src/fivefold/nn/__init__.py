"""The parts of a network, each usable alone; functions such as `attention` are in the modules of their names."""

from fivefold.nn.alibi import AdaptiveALiBi, ALiBi
from fivefold.nn.feed_forward import FeedForward
from fivefold.nn.flash_attention import BlockBias, DistanceBias, FlashAttention, MemoryEfficientAttention
from fivefold.nn.glu import GLUVariants, SwiGLU, SwiGLUFeedForward, SwiGLUMLP
from fivefold.nn.low_rank import LowRankLinear
from fivefold.nn.multi_head_attention import (
    ALiBiAttention,
    CausalALiBiAttention,
    FlashMHA,
    MultiHeadAttention,
    RoPEAttention,
)
from fivefold.nn.norms import AdaptiveRMSNorm, FastRMSNorm, GroupRMSNorm, LayerNorm, RMSNorm
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.nn.rope import RoPE

__all__ = [
    "ALiBi",
    "ALiBiAttention",
    "AdaptiveALiBi",
    "AdaptiveRMSNorm",
    "BlockBias",
    "CausalALiBiAttention",
    "DistanceBias",
    "FastRMSNorm",
    "FeedForward",
    "FlashAttention",
    "FlashMHA",
    "GLUVariants",
    "GroupRMSNorm",
    "LayerNorm",
    "LowRankLinear",
    "MemoryEfficientAttention",
    "MultiHeadAttention",
    "RMSNorm",
    "RelativePositionBias",
    "RoPE",
    "RoPEAttention",
    "SwiGLU",
    "SwiGLUFeedForward",
    "SwiGLUMLP",
]
