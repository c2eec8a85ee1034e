"""Singular values from the factors, against those of the product in float64."""

import pytest
import torch
from torch import nn

from fivefold.lowrank.spectrum import effective_rank, factored_svd, singular_values, stable_rank
from fivefold.nn.low_rank import LowRankLinear


def _layer(out, inner, rank, condition=1.0):
    generator = torch.Generator().manual_seed(0)
    layer = LowRankLinear(inner, out, rank)
    scales = torch.logspace(0, -torch.tensor(condition).log10().item(), rank)
    layer.left.weight.data = torch.randn(out, rank, generator=generator) * scales.sqrt()
    layer.right.weight.data = torch.randn(rank, inner, generator=generator) * scales.sqrt()[:, None]
    return layer


def _product(layer):
    return layer.left.weight.detach().double() @ layer.right.weight.detach().double()


@pytest.mark.parametrize("shape", [(40, 30, 1), (40, 30, 12), (30, 40, 30), (7, 40, 7)])
@pytest.mark.parametrize("condition", [1.0, 1e8])
def test_values_and_vectors_are_those_of_the_product(shape, condition):
    layer = _layer(*shape, condition)
    values = singular_values(layer)
    expected = torch.linalg.svdvals(_product(layer))[: shape[2]]
    # Both roads are float64, so even values 1e-8 of the largest agree to several digits.
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=0)
    left_vectors, values_too, right_vectors = factored_svd(layer.left.weight.detach(), layer.right.weight.detach())
    torch.testing.assert_close(values_too, values, rtol=1e-5, atol=0)
    torch.testing.assert_close(left_vectors * values_too @ right_vectors.T, _product(layer))
    identity = torch.eye(shape[2], dtype=torch.float64)
    torch.testing.assert_close(left_vectors.T @ left_vectors, identity)
    torch.testing.assert_close(right_vectors.T @ right_vectors, identity)


def test_a_dense_layer_and_its_factors_have_the_same_values():
    layer = _layer(20, 30, 20)
    dense = nn.Linear(30, 20, bias=False)
    dense.weight.data = layer.dense_weight().detach()
    torch.testing.assert_close(singular_values(dense).double(), singular_values(layer), rtol=1e-4, atol=0)
    assert singular_values(dense.bfloat16()).dtype == torch.float32


def test_weights_that_are_not_finite_have_no_singular_values_and_raise_nothing():
    layer, dense = _layer(20, 30, 5), nn.Linear(30, 20)
    layer.left.weight.data[0, 0] = torch.inf
    dense.weight.data[0, 0] = torch.nan
    assert singular_values(layer).isnan().tolist() == [True] * 5
    assert singular_values(dense).isnan().tolist() == [True] * 20


def test_effective_and_stable_rank_by_hand():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    # Shares 1/2, 1/4, 1/4 have the entropy 1.5 ln 2.
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3)) == 0
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert stable_rank(torch.zeros(3)) == 0
