"""Conversion to low rank and back: what is replaced, that the model still works, and what is refused."""

import copy
import json
import pickle

import peft
import pytest
import torch
import transformers
from tiny_models import FAMILIES, build, logits
from torch import nn

from fivefold.errors import ModelError
from fivefold.lowrank.convert import convert, factor_pairs, merge
from fivefold.nn.low_rank import LowRankLinear

# A few hundred float32 roundings of 6e-8 in two layers.
CLOSE = {"rtol": 0, "atol": 1e-5}


def _linear_names(model):
    """Every linear layer but the output layer, which is all that these models have."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def _convert(model, **changes):
    return convert(model, **({"scope": "all", "attn_rank": 8, "mlp_rank": 12, "init": "xavier"} | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_is_replaced_and_nothing_else(family):
    model = build(family)
    names = _linear_names(model)
    others = {
        name: module for name, module in model.named_modules() if not list(module.children()) and name not in names
    }
    shapes = {name: list(model.get_submodule(name).weight.shape) for name in names}
    report = _convert(model)
    assert list(report.replaced) == names == [name for name, _ in factor_pairs(model)]
    for name in names:
        layer = model.get_submodule(name)
        is_mlp = "DenseReluDense" in name or ".mlp." in name
        assert layer.rank == (12 if is_mlp else 8)
        assert [len(layer.left.weight), layer.right.weight.shape[1]] == shapes[name]
    assert all(model.get_submodule(name) is module for name, module in others.items())
    assert report.left_dense == ["lm_head"]
    saved = sum(
        m * n - layer.rank * (m + n) for (m, n), (_, layer) in zip(shapes.values(), factor_pairs(model), strict=True)
    )
    assert report.parameters_before - report.parameters_after == saved
    assert report.parameters_after == model.num_parameters()
    assert (report.bytes_before, report.bytes_after) == (4 * report.parameters_before, 4 * report.parameters_after)
    assert json.loads(json.dumps(model.config.low_rank))["ranks"] == {
        name: layer.rank for name, layer in factor_pairs(model)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_learn_and_merge_to_the_same_model(family):
    model = build(family)
    _convert(model)
    factored = logits(model)
    factored.square().mean().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    merge(model)
    torch.testing.assert_close(logits(model) / factored.abs().max(), factored / factored.abs().max(), **CLOSE)
    assert _linear_names(model) == _linear_names(build(family))
    assert model.config.to_dict() == build(family).config.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_spectral_factors_of_full_rank_are_the_dense_model(family):
    model = build(family)
    dense = logits(model)
    report = _convert(model, attn_rank=10_000, mlp_rank=10_000, init="spectral")
    torch.testing.assert_close(logits(model) / dense.abs().max(), dense / dense.abs().max(), **CLOSE)
    assert set(report.capped.values()) == {10_000}
    assert list(report.capped) == list(report.replaced)
    name, (out, inner, rank) = next(iter(report.replaced.items()))
    assert rank == min(out, inner)
    assert (
        f"rank capped at the smaller side of {len(report.capped)} layers, such as {name}: {rank} instead of 10000"
        in str(report)
    )


@pytest.mark.parametrize(("scope", "parts"), [("attn", ("Attention",)), ("mlp", ("DenseReluDense",))])
def test_a_scope_leaves_the_other_half_dense(scope, parts):
    model = build("t5")
    report = _convert(model, scope=scope)
    assert list(report.replaced) == [name for name in _linear_names(build("t5")) if any(part in name for part in parts)]
    assert len(report.left_dense) == len(_linear_names(build("t5"))) + 1 - len(report.replaced)


def test_bias_type_device_mode_and_gradients_are_the_dense_layers():
    model = build("qwen2").to(torch.bfloat16).train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    biases = [layer.self_attn.q_proj.bias for layer in model.model.layers]
    _convert(model)
    assert all(layer.self_attn.q_proj.left.bias is bias for layer, bias in zip(model.model.layers, biases, strict=True))
    assert model.dtype == torch.bfloat16
    assert all(module.training for module in model.modules())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"model.layers.0.self_attn.q_proj.{part}.weight" for part in ("right", "left")]


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    states = []
    for seed, disturbed in ((0, False), (0, True), (1, False)):
        model = build("llama")
        torch.manual_seed(123 + disturbed)
        before = torch.get_rng_state()
        _convert(model, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append({name: value for name, value in model.state_dict().items() if ".right." in name})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])
    same_shape = [value for value in states[0].values() if value.shape == (8, 32)]
    assert not any(torch.equal(same_shape[0], other) for other in same_shape[1:])


@pytest.mark.parametrize(
    ("family", "same"),
    [("t5", "dense"), ("hf_t5", "dense"), ("hf_umt5", "dense"), ("llama", f"randn_{(0.02**2 / 8) ** 0.25}")],
)
def test_auto_takes_the_dense_layers_variance_where_the_configuration_names_none(family, same):
    """T5's layers start differently: a deviation of .06 in q, of .18 in k."""
    factors = []
    for init in ("auto", same):
        model = build(family)
        _convert(model, scope="attn", init=init)
        factors.append([weight for _, layer in factor_pairs(model) for weight in layer.state_dict().values()])
    assert all(map(torch.equal, *factors))


def test_on_the_meta_device_only_shapes_change():
    with torch.device("meta"):
        model = build("t5")
    report = _convert(model, init="spectral")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert report == _convert(build("t5"))


def test_shared_modules_and_shared_weights_stay_shared():
    model = build("llama")
    first, second = model.model.layers
    second.mlp = first.mlp
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    factored_names = list(_convert(model).replaced)
    assert second.mlp.gate_proj is first.mlp.gate_proj
    assert isinstance(second.mlp.gate_proj, LowRankLinear)
    assert second.self_attn.q_proj.left.weight is first.self_attn.q_proj.left.weight
    assert second.self_attn.q_proj.right.weight is first.self_attn.q_proj.right.weight
    assert len(factored_names) == 14 - 3
    before = logits(model)
    merge(model)
    assert second.mlp.gate_proj is first.mlp.gate_proj
    assert second.self_attn.q_proj.weight is first.self_attn.q_proj.weight
    torch.testing.assert_close(logits(model), before, **CLOSE)


def test_a_weight_that_an_embedding_uses_too_stays_dense():
    model = build("llama_tied")
    model.model.layers[0].mlp.extra = nn.Linear(32, 97, bias=False)
    model.model.layers[0].mlp.extra.weight = model.model.embed_tokens.weight
    report = _convert(model, scope="mlp", mlp_targets=["*.mlp.*"])
    assert "model.layers.0.mlp.extra" in report.left_dense
    assert model.lm_head.weight is model.model.embed_tokens.weight


def _gpt_neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.GPTNeoXForCausalLM(config).eval()


def test_any_other_model_by_name_patterns():
    model = _gpt_neox()
    report = _convert(model, attn_targets=["*.attention.*"], mlp_targets=["*.mlp.dense_*"])
    assert len(report.replaced) == 8
    assert {rank for _, _, rank in report.replaced.values()} == {8, 12}
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scope": "mlp"}, "layers are gpt_neox.layers.*.attention.query_key_value, gpt_neox.layers.*.attention.dense"),
        ({"scope": "mlp"}, "name them with --loro_mlp_targets"),
        ({"scope": "attn", "attn_targets": ["*.attention.dens"]}, "'*.attention.dens' matches no linear layer"),
        ({"scope": "attn", "attn_targets": ["*.attention.dens"]}, "there are gpt_neox.layers.*.attention.dense"),
        ({"attn_targets": ["*.dense"], "mlp_targets": ["*.dense*"]}, "matches as an attention and as a feed-forward"),
        ({"scope": "attn", "mlp_targets": ["*.mlp.*"]}, "mlp_targets are given, but the scope is attn"),
        (
            {"attn_targets": ["*.attention.*"], "mlp_targets": ["*.mlp.*"], "init": "spiral"},
            "there is no init 'spiral'",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(change, sentence):
    model = _gpt_neox()
    before = copy.deepcopy(model)
    with pytest.raises(ModelError) as caught:
        _convert(model, **change)
    assert sentence in str(caught.value)
    assert str(model) == str(before)
    assert model.config.to_dict() == before.config.to_dict()


def test_weights_that_are_not_finite_are_named_and_nothing_changes():
    model = build("t5")
    model.decoder.block[1].layer[1].module.k.weight.data[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"decoder\.block\.1\.layer\.1\.EncDecAttention\.k .* NaN"):
        _convert(model, init="spectral")
    assert not factor_pairs(model)


def test_a_model_is_converted_once_and_merged_once():
    model = build("t5")
    with pytest.raises(ModelError, match="dense already"):
        merge(model)
    _convert(model)
    with pytest.raises(ModelError, match="low rank already"):
        _convert(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_lora_sits_on_a_factor_and_must_be_merged_before_the_factors_are():
    model = build("llama")
    _convert(model)
    before = logits(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj.left"], task_type="CAUSAL_LM"))
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)  # LoRA starts at zero
    logits(adapted).square().mean().backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert len(trained) == 4
    assert all(".q_proj.left.lora_" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    changed = logits(adapted)
    with pytest.raises(ModelError, match="merge or remove such adapters first"):
        merge(model)
    plain = adapted.merge_and_unload()
    merge(plain)
    torch.testing.assert_close(logits(plain), changed, **CLOSE)


def test_copies_and_pickles_save_themselves(tmp_path):
    model = build("llama")
    _convert(model)
    for index, twin in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        twin.lm_head.weight.data.fill_(index)
        twin.save_pretrained(tmp_path / str(index))
        assert (tmp_path / str(index) / "low_rank.safetensors").is_file()
        assert twin.save_pretrained.args[0] is twin
