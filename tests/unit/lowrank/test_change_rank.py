"""A factored model at other ranks: against a dense float64 SVD, and that what is new can learn."""

import copy

import pytest
import torch
from tiny_models import build, logits

from fivefold.errors import ModelError
from fivefold.lowrank.change_rank import change_rank
from fivefold.lowrank.convert import convert, factor_pairs
from fivefold.lowrank.spectrum import singular_values
from fivefold.lowrank.store import load_factored, save_model


def _model(family="t5", attn_rank=12, mlp_rank=16, init="xavier"):
    model = build(family)
    convert(model, scope="all", attn_rank=attn_rank, mlp_rank=mlp_rank, init=init)
    return model


def _products(model):
    return {
        name: layer.left.weight.detach().double() @ layer.right.weight.detach().double()
        for name, layer in factor_pairs(model)
    }


@pytest.mark.parametrize("family", ["t5", "qwen3"])
def test_a_smaller_rank_keeps_the_best_approximation_balanced(family):
    model = _model(family)
    before = _products(model)
    parameters = model.num_parameters()
    report = change_rank(model, attn_rank=5, mlp_rank=9)
    for name, layer in factor_pairs(model):
        assert layer.rank == (9 if "DenseReluDense" in name or "mlp" in name else 5)
        left_vectors, values, right_vectors_t = torch.linalg.svd(before[name])
        rank = layer.rank
        best = left_vectors[:, :rank] * values[:rank] @ right_vectors_t[:rank]
        left, right = layer.left.weight.detach().double(), layer.right.weight.detach().double()
        # The factors are rounded to float32.
        torch.testing.assert_close(left @ right, best, rtol=0, atol=1e-6 * values[0].item())
        torch.testing.assert_close(left.T @ left, values[:rank].diag(), rtol=0, atol=1e-6 * values[0].item())
        torch.testing.assert_close(right @ right.T, values[:rank].diag(), rtol=0, atol=1e-6 * values[0].item())
        assert (layer.left.in_features, layer.right.out_features) == (rank, rank)
        assert report.replaced[name] == (layer.out_features, layer.in_features, rank)
    assert model.config.low_rank["ranks"] == {name: layer.rank for name, layer in factor_pairs(model)}
    assert (report.parameters_before, report.parameters_after) == (parameters, model.num_parameters())


def test_a_larger_rank_keeps_the_product_and_lets_every_new_direction_learn():
    model = _model()
    before, expected = _products(model), logits(model).detach()
    report = change_rank(model, attn_rank=20, mlp_rank=40)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    logits(model).square().mean().backward()
    for name, layer in factor_pairs(model):
        left, right = layer.left.weight.detach().double(), layer.right.weight.detach().double()
        torch.testing.assert_close(left @ right, before[name], rtol=0, atol=1e-6)
        old = 16 if "DenseReluDense" in name else 12
        assert layer.rank == min(2 * old + 8 if old == 16 else 20, layer.in_features, layer.out_features)
        new_rows, smallest = right[old:], singular_values(layer)[old - 1].item()
        assert not left[:, old:].any()
        torch.testing.assert_close(
            new_rows @ new_rows.T, smallest * torch.eye(layer.rank - old, dtype=torch.float64), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            right[:old] @ new_rows.T, torch.zeros(old, layer.rank - old).double(), rtol=0, atol=1e-6
        )
        assert layer.left.weight.grad[:, old:].any(dim=0).all()
    assert set(report.capped.values()) == {40}


def test_there_and_back_is_the_same_product():
    model = _model()
    before = _products(model)
    change_rank(model, attn_rank=30, mlp_rank=30)
    change_rank(model, attn_rank=12, mlp_rank=16)
    for name, product in _products(model).items():
        torch.testing.assert_close(product, before[name], rtol=0, atol=1e-6)


def test_the_seed_decides_and_a_rank_that_stays_is_not_touched():
    model = _model()
    twins = [copy.deepcopy(model) for _ in range(3)]
    kept = [
        parameter for name, layer in factor_pairs(twins[0]) if "DenseRelu" in name for parameter in layer.parameters()
    ]
    for twin, seed in zip(twins, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 10)
        change_rank(twin, attn_rank=14, mlp_rank=16, seed=seed)
    rights = [[layer.right.weight for name, layer in factor_pairs(twin) if "Attention" in name] for twin in twins]
    assert all(map(torch.equal, rights[0], rights[1]))
    assert not any(map(torch.equal, rights[0], rights[2]))
    after = [
        parameter for name, layer in factor_pairs(twins[0]) if "DenseRelu" in name for parameter in layer.parameters()
    ]
    assert all(one is other for one, other in zip(kept, after, strict=True))


def test_a_layer_of_zeros_gets_directions_that_can_learn():
    model = _model()
    layer = model.encoder.block[0].layer[0].module.v
    layer.left.weight.data.zero_()
    change_rank(model, attn_rank=14, mlp_rank=16)
    assert not layer.left.weight.any()
    rows = layer.right.weight.detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(14))


def test_shared_factors_stay_shared_and_types_stay():
    model = build("llama").bfloat16()
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    convert(model, scope="all", attn_rank=8, mlp_rank=8, init="xavier")
    first.mlp.up_proj.right.weight.requires_grad_(False)
    change_rank(model, attn_rank=4, mlp_rank=4)
    assert first.mlp.up_proj.left.weight is second.mlp.up_proj.left.weight
    assert second.mlp.up_proj.rank == 4
    assert model.dtype == torch.bfloat16
    assert not first.mlp.up_proj.right.weight.requires_grad


def test_the_changed_model_is_stored_and_opened_again(tmp_path):
    model = _model("llama")
    change_rank(model, attn_rank=3, mlp_rank=20)
    save_model(model, tmp_path)
    assert all(parameter.is_contiguous() for parameter in model.parameters())  # or another order of rounding
    assert torch.equal(logits(load_factored(tmp_path)), logits(model))


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ModelError, match="is dense"):
        change_rank(build("t5"), attn_rank=2, mlp_rank=2)
    model = _model()
    model.decoder.block[0].layer[0].module.q.left.weight.data[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"decoder\.block\.0\.layer\.0\.SelfAttention\.q holds NaN"):
        change_rank(model, attn_rank=2, mlp_rank=2)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in before.items()
    }
