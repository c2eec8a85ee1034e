"""The stacks of a T5: attention, blocks, and one side's blocks in a row, under the names that checkpoints use.

Shapes: B batch, S source length, T target length, D d_model, H heads, K keys.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from fivefold.nn.attention import attention, takes_distances
from fivefold.nn.feed_forward import FeedForward
from fivefold.nn.linear import Linear
from fivefold.nn.norms import NORMS, RMSNorm
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.t5.config import T5Config
from fivefold.t5.position import Position, position_of, relative_position


class Visible(NamedTuple):
    """Which keys a side may look at, as `attention` takes it: padding, and the examples of a packed row."""

    key_mask: Tensor | None = None
    """[B, K] bool."""
    query_segments: Tensor | None = None
    """[B, Q] integers."""
    key_segments: Tensor | None = None
    """[B, K] integers."""


class T5Attention(nn.Module):
    """Multi-head attention with T5's unscaled scores; to itself, or to the encoder when `memory` is given."""

    def __init__(self, config: T5Config, layer_idx: int, *, is_causal: bool, has_bias: bool) -> None:
        super().__init__()
        inner_dim, key_dim = config.num_heads * config.d_kv, config.key_heads * config.d_kv
        self.q = Linear(config.d_model, inner_dim, bias=False)
        self.k = Linear(config.d_model, key_dim, bias=False)
        self.v = Linear(config.d_model, key_dim, bias=False)
        self.o = Linear(inner_dim, config.d_model, bias=False)
        self.scale = 1.0
        if config.qk_norm:
            self.q_norm = RMSNorm(config.d_kv, config.layer_norm_epsilon)
            self.k_norm = RMSNorm(config.d_kv, config.layer_norm_epsilon)
            self.scale = config.d_kv**-0.5
        else:
            self.q.init_gain = config.d_kv**-0.5  # type: ignore[assignment] # in place of 1/sqrt(d_kv) on the scores
        if has_bias:
            self.relative_attention_bias = RelativePositionBias(
                config.relative_attention_num_buckets,
                config.num_heads,
                config.relative_attention_max_distance,
                is_bidirectional=not is_causal,
            )
        self.layer_idx = layer_idx
        self.head_dim = config.d_kv
        self.dropout_rate = config.dropout_rate
        self.kernel: Any = config.attention

    def forward(
        self,
        x_BTD: Tensor,
        *,
        memory: Tensor | None = None,
        position: Position = Position(),  # noqa: B008 - immutable
        visible: Visible = Visible(),  # noqa: B008
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Attend from `x_BTD`; with a cache, self-attention appends to it and cross-attention fills it once."""
        query = self._heads(self.q(x_BTD))
        if hasattr(self, "q_norm"):
            query = self.q_norm(query)
        if memory is not None and cache is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            source = x_BTD if memory is None else memory
            key, value = self._heads(self.k(source)), self._heads(self.v(source))
            if hasattr(self, "k_norm"):
                key = self.k_norm(key)
            key = position.turn_keys(key, is_cached=False)
            if cache is not None:
                key, value = self._extend(cache, key, value, is_cross=memory is not None)
        out = attention(
            position.turn_queries(query),
            position.turn_keys(key, is_cached=True),
            value,
            bias=position.bias,
            is_causal=position.is_causal,
            first_query=position.first_query,
            scale=self.scale,
            dropout_rate=self.dropout_rate if self.training else 0.0,
            kernel=self.kernel,
            **visible._asdict(),
        )
        return self.o(out.transpose(1, 2).flatten(2))

    def takes_distances(self, x_BTD: Tensor) -> bool:
        """Whether T5's bias for x is better handed over as one number a distance than as a matrix."""
        return takes_distances(
            self.kernel,
            x_BTD,
            head_dim=self.head_dim,
            query_len=x_BTD.shape[1],
            dropout_rate=self.dropout_rate if self.training else 0.0,
        )

    def _extend(
        self, cache: EncoderDecoderCache, key: Tensor, value: Tensor, *, is_cross: bool
    ) -> tuple[Tensor, Tensor]:
        part: Any = cache.cross_attention_cache if is_cross else cache.self_attention_cache
        cache.is_updated[self.layer_idx] = is_cross or cache.is_updated.get(self.layer_idx, False)
        return part.update(key, value, self.layer_idx)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class T5Sublayer(nn.Module):
    """x + dropout(module(norm(x))), the module registered under the name that checkpoints use."""

    def __init__(self, name: str, module: nn.Module, config: T5Config) -> None:
        super().__init__()
        self.add_module(name, module)
        self.layer_norm = NORMS[config.norm](config.d_model, eps=config.layer_norm_epsilon)
        self.dropout_rate = config.dropout_rate
        self.name = name

    @property
    def module(self) -> nn.Module:
        """The attention or feed-forward layer inside."""
        return self.get_submodule(self.name)

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = x + F.dropout(self.module(self.layer_norm(x), **arguments), self.dropout_rate, self.training)
        if x.dtype == torch.float16:  # large T5s overflow here; float32 would have kept going
            limit = torch.finfo(x.dtype).max - 1000
            x = x.clamp(-limit, limit)
        return x


class T5Block(nn.Module):
    """Self-attention, in a decoder cross-attention, and a feed-forward layer."""

    def __init__(self, config: T5Config, layer_idx: int, *, is_decoder: bool) -> None:
        super().__init__()
        has_bias = config.position == "relative_bias" and (config.relative_bias_per_layer or layer_idx == 0)
        self_attention = T5Attention(config, layer_idx, is_causal=is_decoder, has_bias=has_bias)
        self.layer = nn.ModuleList([T5Sublayer("SelfAttention", self_attention, config)])
        if is_decoder:
            cross_attention = T5Attention(config, layer_idx, is_causal=False, has_bias=False)
            self.layer.append(T5Sublayer("EncDecAttention", cross_attention, config))
        feed_forward = FeedForward(
            config.d_model,
            config.d_ff,
            config.activation,
            is_gated=config.is_gated,
            dropout_rate=config.dropout_rate,
        )
        self.layer.append(T5Sublayer("DenseReluDense", feed_forward, config))

    def forward(
        self,
        x: Tensor,
        position: Position,
        visible: Visible,
        memory: Tensor | None,
        memory_visible: Visible,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = self.layer[0](x, position=position, visible=visible, cache=cache)
        if memory is not None:
            x = self.layer[1](x, memory=memory, visible=memory_visible, cache=cache)
        return self.layer[-1](x)


class T5Stack(nn.Module):
    """The blocks of one side, from embeddings to normalised states; the embedding table belongs to the model."""

    def __init__(self, config: T5Config, *, is_decoder: bool) -> None:
        super().__init__()
        num_layers = config.num_decoder_layers if is_decoder else config.num_layers
        assert num_layers is not None
        self.block = nn.ModuleList(T5Block(config, i, is_decoder=is_decoder) for i in range(num_layers))
        self.final_layer_norm = NORMS[config.norm](config.d_model, eps=config.layer_norm_epsilon)
        self.position = config.build_position(is_causal=is_decoder)
        self.is_causal = is_decoder
        self.dropout_rate = config.dropout_rate
        self.main_input_name = "input_ids"  # generate() looks for it here
        self.gradient_checkpointing = False  # switched by PreTrainedModel.gradient_checkpointing_enable

    def forward(
        self,
        embeddings_BTD: Tensor,
        *,
        visible: Visible = Visible(),  # noqa: B008 - immutable
        memory: Tensor | None = None,
        memory_visible: Visible = Visible(),  # noqa: B008
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            visible: which of this side's own positions may be looked at, cached ones included.
            memory: [B, S, D], the encoder's states (decoder only).
            memory_visible: which of them.

        Returns:
            [B, T, D].

        Raises:
            ModelError: more positions than the scheme that tells them can.
        """
        first_query = 0 if cache is None else int(cache.self_attention_cache.get_seq_length())
        query_len = embeddings_BTD.shape[1]
        key_len = query_len
        if cache is not None:  # a static cache hands out its whole buffer; the causal mask hides the unwritten part
            key_len, _ = cache.self_attention_cache.get_mask_sizes(query_len, 0)
        lengths = (query_len, key_len, first_query)
        position = position_of(self.position, *lengths, is_causal=self.is_causal, like=embeddings_BTD)
        x = F.dropout(embeddings_BTD, self.dropout_rate, self.training)
        for block in self.block:
            layer: Any = block.get_submodule("layer.0.SelfAttention")
            if hasattr(layer, "relative_attention_bias"):
                by_distance = layer.takes_distances(embeddings_BTD)
                sides = {"is_causal": self.is_causal, "by_distance": by_distance}
                position = relative_position(layer.relative_attention_bias, *lengths, **sides)
            inputs = (x, position, visible, memory, memory_visible, cache)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, *inputs)  # type: ignore[operator]
            else:
                x = block(*inputs)
        return F.dropout(self.final_layer_norm(x), self.dropout_rate, self.training)
