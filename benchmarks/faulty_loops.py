"""What is commonly done wrong when one writes a T5 and its training loop oneself, one thing at a time.

`RIGHT` is fivefold's T5 and the usual loop; every other loop differs from it in a single field. None of this is in the
library: faults are put into its T5 from outside.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fivefold import T5Config, T5Model
from fivefold.t5.position import Position
from fivefold.t5.stack import T5Attention, T5Stack, T5Sublayer, Visible
from fivefold.training.optimizers import set_lr
from fivefold.training.schedule import lr_factor
from fivefold.training.settings import OptimizerSettings, ScheduleSettings

Batch: TypeAlias = dict[str, Tensor]

SHAPE = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 512,
    "num_layers": 2,
    "num_heads": 4,
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "initializer_factor": 0.3,  # T5's fresh weights are large for so small a model; as in parts.py
}


def fresh(patch: Callable[[T5Model], object] = lambda model: None, **changes: Any) -> Callable[[int], T5Model]:
    """What makes a T5 with so many tokens, and then does something to it."""

    def build(vocab_size: int) -> T5Model:
        torch.manual_seed(0)
        model = T5Model(T5Config(vocab_size=vocab_size, **SHAPE | changes))
        with torch.no_grad():
            patch(model)
        return model

    return build


def shifted_inputs(model: Any, batch: Batch) -> Batch:
    """What the model reads: prompts with their mask, and the answers shifted right behind the start token."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    return inputs | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [B, T, V] and labels [B, T], over those that are not -100."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def cosine(step: int, num_steps: int) -> float:
    """Factor of the learning rate: a tenth of warm-up, then a cosine."""
    return lr_factor(step, num_steps, ScheduleSettings())


@dataclass(frozen=True)
class Loop:
    """A network and how it is trained."""

    build: Callable[[int], Any] = field(default_factory=fresh)
    """From the number of tokens to the network."""
    inputs: Callable[[Any, Batch], Batch] = shifted_inputs
    """What the network is given of a batch, in training only: a finished model answers in the right way."""
    loss: Callable[[Tensor, Tensor], Tensor] = mean_loss
    """From logits and labels to what is printed and differentiated."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings("muon", lr=1e-2, dense_lr=3e-2))
    rate: Callable[[int, int], float] = cosine
    """From the step and the length of the run to a factor of the learning rate."""
    zero_grad: Literal["after the step", "before the step", "never"] = "after the step"
    length: int = 1
    """How many times as many steps as the others."""


RIGHT = Loop()


def train_step(loop: Loop, model: Any, optimizer: torch.optim.Optimizer, batch: Batch, factor: float) -> float:
    """One step at that factor of the learning rate, gradients clipped at 1; what the loop prints as its loss."""
    set_lr(optimizer, factor)
    loss = loop.loss(model(**loop.inputs(model, batch)).logits, batch["labels"])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if loop.zero_grad == "before the step":
        optimizer.zero_grad()
    optimizer.step()
    if loop.zero_grad == "after the step":
        optimizer.zero_grad()
    return loss.item()


def transformers_t5(vocab_size: int) -> Any:
    """transformers' own T5 of the same shape, else with its default configuration."""
    import transformers

    torch.manual_seed(0)
    sizes = {name: SHAPE[name] for name in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "dropout_rate")}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=vocab_size, **sizes, decoder_start_token_id=0)
    )


def _draw_embeddings(model: T5Model) -> None:
    model.shared.weight.normal_()


def _draw_output_layer(model: T5Model) -> None:
    model.lm_head.weight.normal_()


def _draw_as_torch_does(model: T5Model) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()


def _draw_queries_like_keys(model: T5Model) -> None:
    for layer in _attentions(model):
        layer.q.weight *= layer.head_dim**0.5


def _divide_scores(model: T5Model) -> None:
    for layer in _attentions(model):
        layer.scale = layer.head_dim**-0.5


def _drop_norms(model: T5Model) -> None:
    for sublayer in _sublayers(model):
        sublayer.layer_norm = nn.Identity()
    _drop_final_norms(model)


def _drop_final_norms(model: T5Model) -> None:
    for stack in (model.encoder, model.decoder):
        stack.final_layer_norm = nn.Identity()


def _drop_residuals(model: T5Model) -> None:
    for sublayer in _sublayers(model):
        sublayer.register_forward_hook(lambda _, inputs, output: output - inputs[0])


def _keep_positions_in_first_layer(model: T5Model) -> None:
    def forget(stack: T5Stack) -> Callable[..., tuple]:
        return lambda _, inputs: (inputs[0], Position(is_causal=stack.is_causal), *inputs[2:])

    for stack in (model.encoder, model.decoder):
        for block in stack.block[1:]:
            block.register_forward_pre_hook(forget(stack))


def _hide_encoder(model: T5Model) -> None:
    for sublayer in _sublayers(model):
        if sublayer.name == "EncDecAttention":
            sublayer.register_forward_hook(lambda _, inputs, __: inputs[0])


def _show_padding(model: T5Model) -> None:
    def invert(_: nn.Module, inputs: tuple, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = arguments["memory_visible"].key_mask
        visible = Visible(torch.zeros(arguments["memory"].shape[:2], dtype=torch.bool) if mask is None else ~mask)
        return inputs, arguments | {"memory_visible": visible}

    model.decoder.register_forward_pre_hook(invert, with_kwargs=True)


def _show_future(model: T5Model) -> None:
    # In training only: where an answer is being written there is no future to see.
    def switch(decoder: nn.Module, _: object) -> None:
        decoder.is_causal = not decoder.training  # type: ignore[assignment]

    model.decoder.register_forward_pre_hook(switch)


def _hide_blocks_from_optimizer(model: T5Model) -> None:
    for stack in (model.encoder, model.decoder):
        stack.block.requires_grad_(False)


def _attentions(model: T5Model) -> list[T5Attention]:
    return [module for module in model.modules() if isinstance(module, T5Attention)]


def _sublayers(model: T5Model) -> list[T5Sublayer]:
    return [module for module in model.modules() if isinstance(module, T5Sublayer)]


def _unshifted_inputs(model: Any, batch: Batch) -> Batch:
    return shifted_inputs(model, batch) | {"decoder_input_ids": batch["labels"].clamp(min=0)}


def _twice_shifted_inputs(model: Any, batch: Batch) -> Batch:
    once = shifted_inputs(model, batch)
    return once | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(once["decoder_input_ids"])}


def _loss_with_padding(logits: Tensor, labels: Tensor) -> Tensor:
    return mean_loss(logits, labels.clamp(min=0))


def _loss_of_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return mean_loss(logits.softmax(-1), labels)


def _loss_of_another_order(logits: Tensor, labels: Tensor) -> Tensor:
    return mean_loss(logits.transpose(0, 1), labels)


def _loss_of_eight(logits: Tensor, labels: Tensor) -> Tensor:
    return 8 * mean_loss(logits, labels)


def _stepped_once_an_epoch(step: int, num_steps: int) -> float:
    return cosine(0, num_steps)


def _with(optimizer: Literal["adamw", "adafactor"], lr: float, **changes: Any) -> Loop:
    return replace(RIGHT, optimizer=OptimizerSettings(optimizer, lr=lr), **changes)


UNSCALED = {"tie_word_embeddings": True, "scale_decoder_outputs": False}

LOOPS: dict[str, dict[str, Loop]] = {
    "nothing": {"fivefold's T5": RIGHT, "transformers' T5": replace(RIGHT, build=transformers_t5)},
    "start": {
        "T5's own start, 3.3 times as large": replace(RIGHT, build=fresh(initializer_factor=1.0)),
        "output layer tied to N(0, 1) embeddings, not scaled": replace(
            RIGHT, build=fresh(_draw_embeddings, **UNSCALED)
        ),
        "output layer of its own, N(0, 1)": replace(RIGHT, build=fresh(_draw_output_layer)),
        "all weights as torch draws them": replace(RIGHT, build=fresh(_draw_as_torch_does)),
        "scores not divided, q drawn like k": replace(RIGHT, build=fresh(_draw_queries_like_keys)),
        "scores divided, q drawn smaller as well": replace(RIGHT, build=fresh(_divide_scores)),
    },
    "network": {
        "no norms": replace(RIGHT, build=fresh(_drop_norms)),
        "no final norms": replace(RIGHT, build=fresh(_drop_final_norms)),
        "no residual connections": replace(RIGHT, build=fresh(_drop_residuals)),
        "no positions": replace(RIGHT, build=fresh(position="none")),
        "positions in the first layer only": replace(RIGHT, build=fresh(_keep_positions_in_first_layer)),
        "decoder does not see the encoder": replace(RIGHT, build=fresh(_hide_encoder)),
        "cross-attention's padding mask upside down": replace(RIGHT, build=fresh(_show_padding)),
        "no causal mask": replace(RIGHT, build=fresh(_show_future)),
        "blocks in a plain list, unknown to the optimizer": replace(RIGHT, build=fresh(_hide_blocks_from_optimizer)),
    },
    "labels and loss": {
        "labels not shifted": replace(RIGHT, inputs=_unshifted_inputs),
        "labels shifted twice": replace(RIGHT, inputs=_twice_shifted_inputs),
        "padding counts as labels": replace(RIGHT, loss=_loss_with_padding),
        "softmax before cross_entropy": replace(RIGHT, loss=_loss_of_softmax),
        "logits [T, B], labels [B, T]": replace(RIGHT, loss=_loss_of_another_order),
        "8 micro-batches added up, not divided": replace(RIGHT, loss=_loss_of_eight),
    },
    "loop": {
        "zero_grad between backward and step": replace(RIGHT, zero_grad="before the step"),
        "no zero_grad": replace(RIGHT, zero_grad="never"),
        "schedule stepped once an epoch": replace(RIGHT, rate=_stepped_once_an_epoch),
        "AdamW, 3e-2": _with("adamw", 3e-2),
        "AdamW, 5e-3": _with("adamw", 5e-3),
        "AdamW, 1e-3": _with("adamw", 1e-3),
        "AdamW, 1e-4": _with("adamw", 1e-4),
        "Adafactor, 1e-2 of each tensor's RMS": _with("adafactor", 1e-2),
        "Adafactor, 1e-4 of each tensor's RMS": _with("adafactor", 1e-4),
        "AdamW, 1e-3, output layer tied, not scaled": _with("adamw", 1e-3, build=fresh(_draw_embeddings, **UNSCALED)),
        "AdamW, 3e-3, T5's own start, 3 times as long": _with(
            "adamw", 3e-3, build=fresh(initializer_factor=1.0), length=3
        ),
        "AdamW, 1e-3, 10 times as long": _with("adamw", 1e-3, length=10),
        "Adafactor, 1e-2 of each tensor's RMS, 10 times as long": _with("adafactor", 1e-2, length=10),
    },
}
