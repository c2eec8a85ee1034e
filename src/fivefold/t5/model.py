"""The T5 encoder-decoder: transformers' parameter names, generation and checkpoints; its own arithmetic.

Shapes: B batch, S source length, T target length, D d_model, K keys, V vocabulary.
"""

from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from fivefold.errors import ModelError
from fivefold.nn.alibi import AdaptiveALiBi
from fivefold.nn.linear import Linear
from fivefold.nn.losses import IGNORE_INDEX, cross_entropy_sum
from fivefold.nn.norms import LayerNorm, RMSNorm
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.nn.rope import RoPE
from fivefold.t5.config import CombinedT5Config, T5Config
from fivefold.t5.stack import T5Attention, T5Stack, Visible
from fivefold.t5.weights import check_loaded, library_report_off, reconcile_with_file


class T5PreTrainedModel(PreTrainedModel):
    """What the three T5 classes share: configuration, initialisation and reading checkpoints."""

    config: T5Config  # type: ignore[assignment]
    config_class = T5Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["T5Block"]  # noqa: RUF012
    _keep_in_fp32_modules = ["wo"]  # noqa: RUF012
    # Old checkpoints carry a cross-attention bias that never was used, and copies of the shared table.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"EncDecAttention\.relative_attention_bias\.weight",
        r"(en|de)coder\.embed_tokens\.weight",
    ]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *args: Any,
        config: T5Config | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a folder or Hub id of T5 v1.0, v1.1, flan, mT5 or umT5, written by transformers 4, 5 or fivefold.

        Whether the output layer is tied is decided by the stored weights, not by what the configuration calls it.

        Raises:
            CheckpointError: the weights are missing, unreadable or of another shape than the configuration says.
        """
        config, key_mapping = reconcile_with_file(pretrained_model_name_or_path, config, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        arguments: dict[str, Any] = {"config": config, "key_mapping": key_mapping, "output_loading_info": True}
        arguments["ignore_mismatched_sizes"] = True  # so that we say what does not fit, in one sentence
        with library_report_off():
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs | arguments)
        model, info = loaded
        if not kwargs.get("ignore_mismatched_sizes"):
            check_loaded(pretrained_model_name_or_path, info)
        return loaded if wants_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights as T5X draws them: deviation 1/sqrt(inputs) for every projection, the output layer included.

        Source: t5x, examples/t5/layers.py. With deviation 1 in the output layer, as transformers had it, a new model
        starts far above the loss of guessing.
        """
        factor = self.config.initializer_factor
        if isinstance(module, RelativePositionBias):
            bound = factor * (6 / sum(module.weight.shape)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=factor)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=factor * module.in_features**-0.5 * getattr(module, "init_gain", 1.0))
        elif isinstance(module, RMSNorm):
            init.constant_(module.weight, factor)
        elif isinstance(module, LayerNorm):
            init.constant_(module.weight, factor)
            init.zeros_(module.bias)
        elif isinstance(module, RoPE | AdaptiveALiBi) and module.log_stretch is not None:
            init.zeros_(module.log_stretch)
        if isinstance(module, T5Attention) and hasattr(module, "q_norm"):  # after these norms themselves
            init.ones_(module.q_norm.weight)
            init.ones_(module.k_norm.weight)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors that both sides share."""
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token vectors."""
        self.shared = value

    def _logits(self, states_BTD: Tensor) -> Tensor:
        if self.config.scale_decoder_outputs:
            states_BTD = states_BTD * self.config.d_model**-0.5
        return self.lm_head(states_BTD)


class T5Encoder(T5PreTrainedModel):
    """The encoder alone, with its embeddings; opens the encoder half of any T5 checkpoint."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^lm_head\.", r"embed_tokens"]  # noqa: RUF012

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, is_decoder=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Token ids [B, S] (or embeddings [B, S, D]) to `last_hidden_state` [B, S, D].

        Args:
            attention_mask: [B, S], 0 or False for padding.
        """
        _refuse_unsupported(kwargs)
        return _encode(self.shared, self.encoder, input_ids, inputs_embeds, attention_mask)


class T5Decoder(T5PreTrainedModel):
    """The decoder alone, with embeddings and output layer, for encoder states from elsewhere."""

    _keys_to_ignore_on_load_unexpected = [r"^encoder\.", r"relative_attention_bias", r"embed_tokens"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "shared.weight"}  # noqa: RUF012

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.decoder = T5Stack(config, is_decoder=True)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decoder token ids [B, T] and encoder states [B, S, D] to logits [B, T, V]."""
        states = self.decoder(
            self.shared(input_ids),
            visible=Visible(_key_mask(attention_mask)),
            memory=encoder_hidden_states,
            memory_visible=Visible(_key_mask(encoder_attention_mask)),
            cache=past_key_values,
        )
        return self._logits(states)


class T5Model(T5PreTrainedModel, GenerationMixin):
    """The encoder-decoder with its language-model head.

    Example:
        >>> model = T5Model(T5Config.get_config("small"))
        >>> loss = model(input_ids=source, labels=target).loss
        >>> tokens = model.generate(input_ids=source, max_new_tokens=32)
    """

    _tied_weights_keys = {"lm_head.weight": "shared.weight"}  # noqa: RUF012

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, is_decoder=False)
        self.decoder = T5Stack(config, is_decoder=True)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    if TYPE_CHECKING:  # the mixin's own signature asks for more than type checkers can see

        def generate(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
            """As transformers' `GenerationMixin.generate`."""
            ...

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """A callable view of embeddings and encoder, which is what `generate()` asks for."""
        return _EncoderView(self.shared, self.encoder)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """What `generate()` asks of a decoder mask when the cache is static: the bias is causal already."""
        return attention_mask

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Source ids [B, S] to encoder states, to hand to `forward` as `encoder_outputs` any number of times."""
        return _encode(self.shared, self.encoder, input_ids, None, attention_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        segments: Tensor | None = None,
        decoder_segments: Tensor | None = None,
        memory_segments: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Source and target to logits [B, T, V], and with labels the mean loss over those that are not -100.

        Args:
            input_ids: [B, S] source tokens.
            attention_mask: [B, S], 0 or False for padding.
            decoder_input_ids: [B, T]; made from `labels` by shifting right when absent.
            decoder_attention_mask: [B, T], or [B, cached + T] with a cache.
            encoder_outputs: states from `encode`, instead of `input_ids`.
            labels: [B, T] target tokens, -100 where there is none.
            segments: [B, S] integers, the number of the example that each source token of a packed row belongs to: it
                sees only its own example. With `decoder_segments` [B, T], the same for the target.
            memory_segments: [B, T] integers, the example whose source a target token reads, where several targets read
                one source; by default its own.

        Raises:
            ModelError: inputs that are missing or do not go together.
        """
        _refuse_unsupported(kwargs)
        if (segments is None) != (decoder_segments is None):
            raise ModelError("T5Model got only one of segments and decoder_segments; a packed batch has both.")
        if memory_segments is None:
            memory_segments = decoder_segments
        elif decoder_segments is None:
            raise ModelError("T5Model got memory_segments, but neither segments nor decoder_segments to go with them.")
        if decoder_inputs_embeds is None and decoder_input_ids is None:
            if labels is None:
                raise ModelError("T5Model got neither decoder_input_ids nor labels; the decoder needs one of them.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels, decoder_segments)
        embeds = (encoder_outputs, inputs_embeds, decoder_inputs_embeds)
        if input_ids is not None and decoder_input_ids is not None and all(given is None for given in embeds):
            # One look into the table for both sides: the gradient of each look is as large as the table.
            both = self.shared(torch.cat([input_ids.flatten(), decoder_input_ids.flatten()]))
            sides = both.split([input_ids.numel(), decoder_input_ids.numel()])
            inputs_embeds = sides[0].unflatten(0, input_ids.shape)
            decoder_inputs_embeds = sides[1].unflatten(0, decoder_input_ids.shape)
            input_ids = None
        if encoder_outputs is None:
            encoder_outputs = _encode(self.shared, self.encoder, input_ids, inputs_embeds, attention_mask, segments)
        memory = encoder_outputs[0]
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.shared(decoder_input_ids)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = self.decoder(
            decoder_inputs_embeds,
            visible=Visible(_key_mask(decoder_attention_mask), decoder_segments, decoder_segments),
            memory=memory,
            memory_visible=Visible(_key_mask(attention_mask), memory_segments, segments),
            cache=past_key_values,
        )
        logits = self._logits(states)
        loss = None
        if labels is not None:
            total, _ = cross_entropy_sum(logits, labels)
            loss = total / (labels != IGNORE_INDEX).sum()
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, encoder_last_hidden_state=memory
        )

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor, segments: Tensor | None = None) -> Tensor:
        """Labels [B, T] shifted right behind the start token, -100 replaced by padding.

        Args:
            segments: [B, T], the example each label belongs to; every one of them begins with the start token.
        """
        start_id, pad_id = self.config.decoder_start_token_id, self.config.pad_token_id
        if start_id is None or pad_id is None:
            raise ModelError("The configuration lacks decoder_start_token_id or pad_token_id; T5 uses 0 for both.")
        shifted = labels.roll(1, dims=-1)
        shifted[..., 0] = start_id
        if segments is not None:
            shifted[..., 1:].masked_fill_(segments[..., 1:] != segments[..., :-1], start_id)
        return shifted.masked_fill(shifted == IGNORE_INDEX, pad_id)


class CombinedT5Model(T5Model):
    """The same for what transformers' auto classes open."""

    config_class = CombinedT5Config


AutoModelForSeq2SeqLM.register(CombinedT5Config, CombinedT5Model)


class _EncoderView(nn.Module):
    """Embeddings and encoder under one `forward`, holding the model's own modules and nothing else."""

    main_input_name = "input_ids"

    def __init__(self, shared: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.encoder = encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        _refuse_unsupported(kwargs)
        return _encode(self.shared, self.encoder, input_ids, inputs_embeds, attention_mask)


def _encode(
    shared: nn.Module,
    encoder: nn.Module,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    segments: Tensor | None = None,
) -> BaseModelOutput:
    if (input_ids is None) == (inputs_embeds is None):
        raise ModelError("The encoder needs either input_ids or inputs_embeds, and not both.")
    embeddings = shared(input_ids) if inputs_embeds is None else inputs_embeds
    visible = Visible(_key_mask(attention_mask), segments, segments)
    return BaseModelOutput(last_hidden_state=encoder(embeddings, visible=visible))


def _key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Bool [B, K], or None where nothing is masked, which lets attention take its fastest kernel."""
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    # Looking would make a GPU wait, and break the graph that torch.compile makes.
    if not mask.is_cuda and not torch.compiler.is_compiling() and mask.all():
        return None
    return mask


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    for name in ("output_attentions", "output_hidden_states"):
        if kwargs.get(name):
            raise ModelError(f"fivefold's T5 does not return what {name}=True asks for; use transformers' T5 for that.")
