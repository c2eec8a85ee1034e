"""LoRA+ and LoRA-FA are peft's, remember what was foretold, and go on from a checkpoint as if nothing had been."""

import copy
import io

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, lorafa

from fivefold import T5Config, T5Model
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import ConfigError
from fivefold.optim.lora import freeze_first_factors, lora_pairs
from fivefold.training.optimizers import build_optimizer, set_lr, state_elements
from fivefold.training.settings import LORA_OPTIMIZERS, OptimizerSettings

SHAPE = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
STEPS = 20


def adapted(**fields):
    torch.manual_seed(0)
    with quiet_peft():
        return get_peft_model(T5Model(T5Config(**SHAPE)), LoraConfig(**{"r": 3, "target_modules": ["q", "v"]} | fields))


def train(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator)  # drawn for all, so that all models get the same
            param.grad = noise if param.requires_grad else None
        optimizer.step()
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["q", "shared"]}, {"modules_to_save": ["wo"]}])
def test_loraplus_is_pefts(fields):
    ours, theirs = adapted(**fields), adapted(**fields)
    settings = OptimizerSettings("loraplus", lr=0.01, lora_plus_ratio=8.0, weight_decay=0.1)
    given = {"lr": 0.01, "loraplus_lr_ratio": 8.0, "loraplus_weight_decay": 0.1, "eps": 1e-6}
    reference = create_loraplus_optimizer(theirs, torch.optim.AdamW, **given)
    expected = train(theirs, reference, range(STEPS))
    # The same formula, fused here and in a loop there: rounding only.
    torch.testing.assert_close(train(ours, build_optimizer(ours, settings), range(STEPS)), expected)


def test_lorafa_is_pefts(monkeypatch):
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)  # it would round gradients to 8 bits
    fields = {"lora_alpha": 5, "use_rslora": True, "modules_to_save": ["wo"], "rank_pattern": {"v": 2}}
    ours, theirs = adapted(**fields), adapted(**fields)
    # eps counts otherwise there, under the root of a corrected moment; so it is small here.
    settings = OptimizerSettings("lorafa", lr=0.01, eps=1e-12)
    reference = create_lorafa_optimizer(theirs, r=3, lora_alpha=5, lr=0.01)
    reference.param_groups[0]["eps"] = 1e-12
    optimizer = build_optimizer(ours, settings)
    expected = train(theirs, reference, range(STEPS))
    assert not any("lora_A" in name for name in expected)
    # A step is a ratio of moments, which does not lose digits; the pseudo-inverse is of another routine.
    torch.testing.assert_close(train(ours, optimizer, range(STEPS)), expected, rtol=1e-4, atol=1e-5)


def test_lorafas_first_step_without_adam_is_the_projection_of_the_dense_gradient():
    model = adapted(lora_alpha=6)
    freeze_first_factors(model)
    (pair, *_), optimizer = lora_pairs(model), build_optimizer(model, OptimizerSettings("lorafa"))
    dense = torch.randn(len(pair.second), pair.first.shape[1])
    pair.second.grad = pair.scaling * dense @ pair.first.mT
    moved = pair.scaling * optimizer._projected(pair.first, pair.second, pair.scaling) @ pair.first  # type: ignore[attr-defined]
    rows = torch.linalg.qr(pair.first.detach().mT).Q
    torch.testing.assert_close(moved, dense @ rows @ rows.mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"use_dora": True, "modules_to_save": ["wo"]}])
@pytest.mark.parametrize("name", LORA_OPTIMIZERS)
def test_resumed_is_uninterrupted_and_the_state_is_as_large_as_foretold(name, fields):
    settings = OptimizerSettings(name, lr=0.01, weight_decay=0.1)
    whole = adapted(**fields)
    halves, foretold = copy.deepcopy(whole), state_elements(copy.deepcopy(whole), settings)
    optimizer = build_optimizer(whole, settings)
    first, second = build_optimizer(halves, settings), build_optimizer(halves, settings)
    expected = train(whole, optimizer, range(STEPS))
    train(halves, first, range(7))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(train(halves, second, range(7, STEPS)), expected, rtol=0, atol=0)
    remembered = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(value.numel() for value in remembered) == foretold


@pytest.mark.parametrize("name", LORA_OPTIMIZERS)
def test_a_schedule_keeps_the_ratio_of_the_rates(name):
    optimizer = build_optimizer(adapted(), OptimizerSettings(name, lr=0.1))
    assert set_lr(optimizer, 0.5) == pytest.approx(0.05)
    assert {group["lr"] for group in optimizer.param_groups} == ({0.05, 0.8} if name == "loraplus" else {0.05})


@pytest.mark.parametrize("name", LORA_OPTIMIZERS)
def test_what_has_no_lora_is_refused(name):
    plain = T5Model(T5Config(**SHAPE))
    with quiet_peft():
        scaled = get_peft_model(copy.deepcopy(plain), IA3Config(target_modules=["q"], feedforward_modules=[]))
    for model in (plain, scaled):
        with pytest.raises(ConfigError, match=f"--optimizer {name} trains the matrices A and B of a LoRA"):
            build_optimizer(model, OptimizerSettings(name))


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ConfigError, match="loraplus has no dense_lr"):
        OptimizerSettings("loraplus", dense_lr=0.1)
    with pytest.raises(ConfigError, match="adamw has no lora_plus_ratio"):
        OptimizerSettings("adamw", lora_plus_ratio=4.0)
    with pytest.raises(ConfigError, match=r"lora_plus_ratio is 0.5, but it must be 1 or above"):
        OptimizerSettings("loraplus", lora_plus_ratio=0.5)
