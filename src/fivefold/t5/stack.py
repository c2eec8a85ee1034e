"""The stacks of a T5: attention, blocks, and one side's blocks in a row, under the names that checkpoints use.

Shapes: B batch, S source length, T target length, D d_model, H heads, K keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from fivefold.nn.attention import attention
from fivefold.nn.feed_forward import FeedForward
from fivefold.nn.norms import RMSNorm
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.t5.config import T5Config


class T5Attention(nn.Module):
    """Multi-head attention with T5's unscaled scores; to itself, or to the encoder when `memory` is given."""

    def __init__(self, config: T5Config, layer_idx: int, *, is_causal: bool, has_bias: bool) -> None:
        super().__init__()
        inner_dim = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner_dim, bias=False)
        self.q.init_gain = config.d_kv**-0.5  # type: ignore[assignment] # in place of 1/sqrt(d_kv) on the scores
        self.k = nn.Linear(config.d_model, inner_dim, bias=False)
        self.v = nn.Linear(config.d_model, inner_dim, bias=False)
        self.o = nn.Linear(inner_dim, config.d_model, bias=False)
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
        self.is_causal = is_causal

    def forward(
        self,
        x_BTD: Tensor,
        *,
        memory: Tensor | None = None,
        bias: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Attend from `x_BTD`; with a cache, self-attention appends to it and cross-attention fills it once."""
        query = self._heads(self.q(x_BTD))
        if memory is not None and cache is not None and cache.is_updated.get(self.layer_idx):
            layer: Any = cache.cross_attention_cache.layers[self.layer_idx]
            key, value = layer.keys, layer.values
        else:
            source = x_BTD if memory is None else memory
            key, value = self._heads(self.k(source)), self._heads(self.v(source))
            if cache is not None:
                key, value = self._extend(cache, key, value, is_cross=memory is not None)
        dropout_rate = self.dropout_rate if self.training else 0.0
        out = attention(query, key, value, bias=bias, key_mask=key_mask, dropout_rate=dropout_rate)
        return self.o(out.transpose(1, 2).flatten(2))

    def _extend(
        self, cache: EncoderDecoderCache, key: Tensor, value: Tensor, *, is_cross: bool
    ) -> tuple[Tensor, Tensor]:
        part: Any = cache.cross_attention_cache if is_cross else cache.self_attention_cache
        cache.is_updated[self.layer_idx] = is_cross or cache.is_updated.get(self.layer_idx, False)
        return part.update(key, value, self.layer_idx)

    def position_bias(self, query_len: int, key_len: int, first_query: int) -> Tensor:
        """[1, H, query_len, key_len]; -inf where a causal layer may not look."""
        bias = self.relative_attention_bias(query_len, key_len, first_query)
        if self.is_causal:
            hidden = torch.ones(query_len, key_len, dtype=torch.bool, device=bias.device).triu(first_query + 1)
            bias = bias.masked_fill(hidden, float("-inf"))
        return bias

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class T5Sublayer(nn.Module):
    """x + dropout(module(norm(x))), the module registered under the name that checkpoints use."""

    def __init__(self, name: str, module: nn.Module, config: T5Config) -> None:
        super().__init__()
        self.add_module(name, module)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
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
        has_bias = config.relative_bias_per_layer or layer_idx == 0
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
        bias: Tensor,
        key_mask: Tensor | None,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = self.layer[0](x, bias=bias, key_mask=key_mask, cache=cache)
        if memory is not None:
            x = self.layer[1](x, memory=memory, key_mask=memory_mask, cache=cache)
        return self.layer[-1](x)


class T5Stack(nn.Module):
    """The blocks of one side, from embeddings to normalised states; the embedding table belongs to the model."""

    def __init__(self, config: T5Config, *, is_decoder: bool) -> None:
        super().__init__()
        num_layers = config.num_decoder_layers if is_decoder else config.num_layers
        assert num_layers is not None
        self.block = nn.ModuleList(T5Block(config, i, is_decoder=is_decoder) for i in range(num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout_rate = config.dropout_rate
        self.main_input_name = "input_ids"  # generate() looks for it here
        self.gradient_checkpointing = False  # switched by PreTrainedModel.gradient_checkpointing_enable

    def forward(
        self,
        embeddings_BTD: Tensor,
        *,
        key_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            key_mask: [B, K] bool over this side's own positions, cached ones included.
            memory: [B, S, D], the encoder's states (decoder only).
            memory_mask: [B, S] bool over them.

        Returns:
            [B, T, D].
        """
        first_query = 0 if cache is None else int(cache.self_attention_cache.get_seq_length())
        query_len = embeddings_BTD.shape[1]
        key_len = query_len
        if cache is not None:  # a static cache hands out its whole buffer; the causal mask hides the unwritten part
            key_len, _ = cache.self_attention_cache.get_mask_sizes(query_len, 0)
        bias = None
        x = F.dropout(embeddings_BTD, self.dropout_rate, self.training)
        for block in self.block:
            self_attention = block.get_submodule("layer.0.SelfAttention")
            assert isinstance(self_attention, T5Attention)
            if hasattr(self_attention, "relative_attention_bias"):
                bias = self_attention.position_bias(query_len, key_len, first_query)
            inputs = (x, bias, key_mask, memory, memory_mask, cache)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, *inputs)  # type: ignore[operator]
            else:
                x = block(*inputs)
        return F.dropout(self.final_layer_norm(x), self.dropout_rate, self.training)
