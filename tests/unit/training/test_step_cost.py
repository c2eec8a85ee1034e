"""What a step takes is told before it is made: bytes against those of a step that is made, operations by hand."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.errors import ModelError
from fivefold.lowrank.convert import convert
from fivefold.models.build import checkpoint_blocks
from fivefold.objectives.causal import CausalObjective
from fivefold.objectives.full_rows import full_pairs, full_preferences, full_windows
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings, PreferenceLossSettings
from fivefold.training.optimizers import build_optimizer
from fivefold.training.prediction import describe_cost
from fivefold.training.settings import LoopSettings, OptimizerSettings
from fivefold.training.step_cost import StepCost, step_cost

ROWS = 5
SOURCE, TARGET = 24, 10


def t5(**changes: Any) -> T5Model:
    shape = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5Model(T5Config(**(shape | {"dropout_rate": 0.0, "feed_forward": "geglu"} | changes)))


def modern(**changes: Any) -> T5Model:
    return t5(position="adaptive_alibi", feed_forward="swiglu", qk_norm=True, **changes)


def thin_t5() -> T5Model:
    model = t5()
    convert(model, scope="all", attn_rank=4, mlp_rank=6, init="spectral", seed=0)
    return model


def checkpointed_t5() -> T5Model:
    model = t5()
    checkpoint_blocks(model)
    return model


def frozen_t5() -> T5Model:
    model = t5(tie_word_embeddings=True)
    model.shared.requires_grad_(False)
    return model


def llama() -> LlamaForCausalLM:
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


def adapted_llama() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # peft asks transformers by a name of the past
        return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


def pairs(rows: int) -> Batch:
    return full_pairs(rows, SOURCE, TARGET, packing=False, may_pad=False)


def padded_pairs(rows: int) -> Batch:
    return full_pairs(rows, SOURCE, TARGET, packing=False)


def packed_pairs(rows: int) -> Batch:
    return full_pairs(rows, SOURCE, TARGET, packing=True)


def windows(rows: int) -> Batch:
    return full_windows(rows, SOURCE)


def packed_windows(rows: int) -> Batch:
    return full_windows(rows, SOURCE, packing=True)


def preferences(rows: int) -> Batch:
    return full_preferences(rows, (SOURCE, 2 * TARGET), needs_reference=True)


def decoder_preferences(rows: int) -> Batch:
    return full_preferences(rows, (SOURCE,), needs_reference=False)


READS = Seq2SeqObjective(LossSettings())
WRITES = CausalObjective(LossSettings())
PREFERS = PreferenceObjective(PreferenceLossSettings())
SIMPO = PreferenceObjective(PreferenceLossSettings("simpo"))
ADAMW = OptimizerSettings("adamw")
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[int], Batch], OptimizerSettings]] = {
    "t5": (t5, READS, pairs, ADAMW),
    "padded": (t5, READS, padded_pairs, OptimizerSettings("muon")),
    "dropout": (lambda: t5(dropout_rate=0.1), READS, pairs, ADAMW),
    "packed_modern": (modern, READS, packed_pairs, OptimizerSettings("adamw_scaled")),
    "flash": (lambda: t5(position="rope", attention="flash"), READS, pairs, ADAMW),
    "thin": (thin_t5, READS, pairs, OptimizerSettings("loro_muon")),
    "frozen": (frozen_t5, READS, packed_pairs, ADAMW),
    "checkpointed": (checkpointed_t5, READS, pairs, ADAMW),
    "dpo": (thin_t5, PREFERS, preferences, OptimizerSettings("loro_adamw")),
    "llama": (llama, WRITES, windows, OptimizerSettings("galore_adamw", rank=4)),
    "packed_llama": (llama, WRITES, packed_windows, ADAMW),
    "adapter": (adapted_llama, WRITES, windows, ADAMW),
    "decoder_dpo": (llama, SIMPO, decoder_preferences, ADAMW),
}
KINDS = [(case, "mixed") for case in CASES]
KINDS += [(case, kind) for case in ("t5", "thin", "llama") for kind in ("float32", "pure_bf16")]


def products_of_attention(number: int, shapes: tuple[torch.Size, ...]) -> int:
    (batch, heads, queries, dim), (_, _, keys, _) = shapes[:2]
    return 2 * number * batch * heads * queries * keys * dim


# Which torch does not count by itself: scores and result; backward the scores again, and a gradient for each factor.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: products_of_attention(2, shapes),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: products_of_attention(
        5, shapes[1:]
    ),
}


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_bytes_and_operations_are_those_of_a_step_that_is_made(name, kind):
    build, objective, full_rows, settings = CASES[name]
    loop = LoopSettings(dtype="float32" if kind == "float32" else "bfloat16", pure_bf16=kind == "pure_bf16")
    model = build().train()
    if loop.pure_bf16:
        model.to(torch.bfloat16)
    told = step_cost(model, objective, full_rows, settings, loop, micro_batch_size=ROWS, accumulation_steps=3)

    kept = {}
    of_weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = full_rows(ROWS)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed"),
        ):
            loss = objective(model, batch).loss_sum
        num_kept = sum(kept.values())
        loss.backward()
    assert told.activations == num_kept
    assert told.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert told.gradients == sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.requires_grad)
    assert told.tokens == 3 * objective.count_tokens(batch).total
    assert told.flops == 3 * counter.get_total_flops()
    optimizer = build_optimizer(model, settings)
    optimizer.step()
    state = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert told.optimizer == sum(value.nbytes for value in state if value.ndim)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operations_of_a_t5_by_hand(dtype):
    model = t5()
    told = step_cost(model, READS, pairs, ADAMW, LoopSettings(dtype=dtype), micro_batch_size=3, accumulation_steps=2)
    layers, dim, inner, hidden, vocab = 1, 32, 4 * 8, 48, 101
    feed_forward = 3 * dim * hidden
    # Multiplications of a row's forward pass by what stands on their left and right.
    by_weights = SOURCE * layers * (4 * dim * inner + feed_forward)
    by_weights += TARGET * layers * (6 * dim * inner + feed_forward) + SOURCE * layers * 2 * dim * inner
    by_weights += TARGET * dim * vocab
    by_each_other = 2 * inner * layers * (SOURCE * SOURCE + TARGET * TARGET + TARGET * SOURCE)
    # Backward: two products for one of weights; in attention five for two, as scores are worked out again.
    assert told.flops == 3 * 2 * 2 * (3 * by_weights + 3.5 * by_each_other)


def test_operations_of_a_llama_by_hand():
    told = step_cost(llama(), WRITES, windows, ADAMW, LoopSettings(), micro_batch_size=1, accumulation_steps=1)
    layers, dim, hidden, vocab = 1, 32, 48, 101
    by_weights = SOURCE * (layers * (2 * dim * dim + 2 * dim * dim // 2 + 3 * dim * hidden) + dim * vocab)
    by_each_other = 2 * dim * layers * SOURCE * SOURCE  # nothing is taken off for the hidden half
    assert told.flops == 2 * (3 * by_weights + 3.5 * by_each_other)


class LooksAtNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.weight * 2 if float(self.weight.detach().sum()) > 0 else self.weight


class AnyObjective:
    unit, others = "tokens", ()

    def count(self, batch: Batch) -> int:
        return batch["input_ids"].numel()

    def count_tokens(self, batch: Batch) -> TokenCounts:
        return TokenCounts(self.count(batch), self.count(batch))

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        loss = model(batch["input_ids"]).sum()
        return LossTerms(loss, loss.detach())


def test_a_model_that_looks_at_numbers_keeps_its_activations_to_itself():
    told = step_cost(
        LooksAtNumbers(), AnyObjective(), windows, ADAMW, LoopSettings(), micro_batch_size=1, accumulation_steps=1
    )
    assert told == StepCost(weights=64, gradients=64, optimizer=128, tokens=SOURCE)
    assert "activations, which nobody can tell" in describe_cost(told, LoopSettings(), 1)


def test_a_model_of_which_nothing_trains_is_refused():
    model = t5().requires_grad_(False)
    with pytest.raises(ModelError, match="every one of them is frozen"):
        step_cost(model, READS, pairs, ADAMW, LoopSettings(), micro_batch_size=1, accumulation_steps=1)


def test_time_is_operations_by_the_peak_and_its_share():
    cost = StepCost(weights=2**30, gradients=2**29, optimizer=2**31, tokens=1000, activations=2**28, flops=int(71e12))
    first, work, time, card, *_ = describe_cost(cost, LoopSettings(num_training_steps=10_000), 2).splitlines()
    assert first.split(maxsplit=1)[1] == (
        "3.75 GiB: weights 1.00, gradients 0.50, optimizer 2.00, kept for the backward pass 0.25"
    )
    assert work.split(maxsplit=1)[1] == "71 TFLOP a step, 2,000 tokens at most"
    assert time.split(maxsplit=1)[1] == "of 10,000 steps, if the GPU reaches 40% .. 20% of its peak:"
    # One second at the whole of a 3090's 71 TFLOP/s: 2.5 s at 40%, 5 s at 20%; 86,400 s a day.
    assert card.strip() == "RTX 3090, 71 TFLOP/s   6.94 .. 13.9 hours; 69.1 .. 34.6 million tokens a day"
    assert "time " not in describe_cost(cost, LoopSettings(dtype="float32"), 1)
    assert "of 1,000 steps" in describe_cost(cost, LoopSettings(epochs=2), 1)
