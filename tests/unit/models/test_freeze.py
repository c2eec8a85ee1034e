"""What is frozen needs no gradient, keeps its values, and is found by name."""

import logging

import pytest
import torch

from fivefold import T5Config, T5Model
from fivefold.errors import ConfigError, ModelError
from fivefold.lowrank.convert import convert
from fivefold.lowrank.settings import LoroSettings
from fivefold.models.freeze import freeze
from fivefold.training.optimizers import build_optimizer
from fivefold.training.settings import OptimizerSettings

SHAPE = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


def _model(**changes):
    torch.manual_seed(0)
    return T5Model(T5Config(**(SHAPE | changes)))


def _frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_patterns_are_names_parts_and_wildcards(caplog):
    model = _model()
    with caplog.at_level(logging.INFO, "fivefold"):
        assert freeze(model, ["embeddings"]) == ["shared.weight"]
    assert "frozen: 1,024 of " in caplog.text
    assert "(shared.weight, which is the output layer too)" in caplog.text
    assert _frozen(model) == {"shared.weight"}
    freeze(model, ["encoder.block.0", "*.layer_norm.weight"])
    names = _frozen(model)
    assert all(name.startswith("encoder.block.0.") or "layer_norm" in name or name == "shared.weight" for name in names)
    assert {name for name, _ in model.named_parameters() if name.startswith("encoder.block.0.")} < names


def test_an_output_layer_of_its_own_goes_on_training(caplog):
    model = _model(tie_word_embeddings=False)
    with caplog.at_level(logging.INFO, "fivefold"):
        assert freeze(model, ["embeddings"]) == ["shared.weight"]
    assert "output layer too" not in caplog.text
    assert model.lm_head.weight.requires_grad


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon", "loro_muon"])
def test_frozen_parameters_have_no_gradient_no_state_and_no_decay(optimizer):
    model = _model()
    if optimizer == "loro_muon":
        convert(model, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    freeze(model, ["embeddings", "decoder.block.1"])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    settings = OptimizerSettings(optimizer=optimizer, lr=0.1, weight_decay=0.5)
    stepper = build_optimizer(model, settings, LoroSettings())
    for _ in range(2):
        model(input_ids=torch.arange(2, 10)[None], labels=torch.arange(2, 8)[None]).loss.backward()
        stepper.step()
    frozen = _frozen(model)
    assert len(frozen) > 8
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
        assert (parameter.grad is None) == (name in frozen)
    held = {id(parameter) for group in stepper.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for name, parameter in model.named_parameters() if name in frozen}
    assert not any(parameter in stepper.state for name, parameter in model.named_parameters() if name in frozen)


def test_bad_patterns_are_refused():
    with pytest.raises(ConfigError, match=r"--freeze embedings matches no parameter; did you mean embeddings"):
        freeze(_model(), ["embedings"])
    with pytest.raises(ConfigError, match=r"--freeze encoder\.blok\.0 matches no parameter; did you mean .*encoder"):
        freeze(_model(), ["encoder.blok.0"])
    model = _model()
    convert(model, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    with pytest.raises(ConfigError, match=r"leaves one factor of .* free and not the other; freeze the layer"):
        freeze(model, ["*.left.weight"])
    freeze(model, ["*"])
    with pytest.raises(ModelError, match="every one of them is frozen"):
        build_optimizer(model, OptimizerSettings(), LoroSettings())
