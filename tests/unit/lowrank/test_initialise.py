"""How factors start: against the formulas of each initialisation, and against a float64 SVD."""

import math

import pytest
import torch
from torch import nn

from fivefold.errors import ModelError
from fivefold.lowrank.initialise import initialise_factors
from fivefold.nn.low_rank import LowRankLinear

OUT, IN, RANK = 600, 400, 50


def _initialise(init, dense=None, dtype=torch.float32, rank=RANK, **changes):
    layer = LowRankLinear(IN, OUT, rank).to(dtype)
    initialise_factors(layer, dense, init, generator=torch.Generator().manual_seed(0), **changes)
    return layer.left.weight.detach(), layer.right.weight.detach()


def _dense(std=0.07):
    dense = nn.Linear(IN, OUT, bias=False)
    nn.init.normal_(dense.weight, std=std, generator=torch.Generator().manual_seed(7))
    return dense


@pytest.mark.parametrize(
    ("init", "left_std", "right_std"),
    [
        ("xavier", math.sqrt(2 / (OUT + RANK)), math.sqrt(2 / (IN + RANK))),
        ("kaiming", math.sqrt(2 / RANK), math.sqrt(2 / RANK)),
        ("auto", (0.03**2 / RANK) ** 0.25, (0.03**2 / RANK) ** 0.25),
        ("randn_0.3", 0.3, 0.3),
        ("randn_1e-2", 0.01, 0.01),
        ("dense", (0.07**2 / RANK) ** 0.25, (0.07**2 / RANK) ** 0.25),
    ],
)
def test_normal_factors_and_their_product_have_the_variance_of_the_formula(init, left_std, right_std):
    left, right = _initialise(init, _dense(), initializer_range=0.03)
    # At least 20,000 elements: a standard error of half a percent.
    assert left.std().item() == pytest.approx(left_std, rel=0.02)
    assert right.std().item() == pytest.approx(right_std, rel=0.02)
    # The product's elements are not independent, so its variance is known to a few percent only.
    assert (left @ right).var().item() == pytest.approx(RANK * left_std**2 * right_std**2, rel=0.05)


def test_the_products_of_auto_and_dense_vary_as_a_dense_layer_would():
    for init, initializer_range, std in (("auto", 0.02, 0.02), ("auto", None, 0.07), ("dense", 0.02, 0.07)):
        left, right = _initialise(init, _dense(), initializer_range=initializer_range)
        assert (left @ right).std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("init", "left_length", "right_length"),
    [("orth", 1.0, 1.0), ("xavorth", math.sqrt(2 / (OUT + RANK)), math.sqrt(2 / (IN + RANK)))],
)
def test_orthogonal_factors_are_so_in_bfloat16_too(init, left_length, right_length, dtype):
    left, right = (factor.double() for factor in _initialise(init, dtype=dtype))
    # Rounding errs by half an eps an element and less than one in sums of products; float32's QR by a few.
    tolerance = {"rtol": 0, "atol": max(torch.finfo(dtype).eps, 1e-6)}
    identity = torch.eye(RANK, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left / left_length**2, identity, **tolerance)
    torch.testing.assert_close(right @ right.T / right_length**2, identity, **tolerance)


def test_constant_factors():
    left, right = _initialise("const_0.5")
    assert (left == 0.5).all()
    assert (right == 0.5).all()


@pytest.mark.parametrize("rank", [1, RANK, IN])
def test_spectral_factors_are_the_best_approximation_and_balanced(rank):
    dense = _dense()
    left, right = (factor.double() for factor in _initialise("spectral", dense, rank=rank))
    left_vectors, values, right_vectors_t = torch.linalg.svd(dense.weight.detach().double(), full_matrices=False)
    best = left_vectors[:, :rank] * values[:rank] @ right_vectors_t[:rank]
    # A float32 SVD errs by a few eps of the largest singular value.
    tolerance = {"rtol": 0, "atol": 1e-5 * values[0].item()}
    torch.testing.assert_close(left @ right, best, **tolerance)
    torch.testing.assert_close(left.T @ left, values[:rank].diag(), **tolerance)
    torch.testing.assert_close(right @ right.T, values[:rank].diag(), **tolerance)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_dense_layer_of_lower_rank_gives_factors_that_can_learn(kept):
    dense = _dense()
    with torch.no_grad():
        dense.weight[:, kept:] = 0
    left, right = _initialise("spectral", dense, rank=8)
    torch.testing.assert_close(left @ right, dense.weight, rtol=0, atol=1e-6)
    lengths = right.norm(dim=1)
    assert (lengths[kept:] > 0.5 * (lengths[kept - 1] if kept else 1)).all()
    assert left[:, kept:].norm() < 1e-5


@pytest.mark.parametrize(
    ("init", "dense", "sentence"),
    [
        ("dense", None, "starts from a dense layer, and there is none"),
        ("auto", None, "starts from a dense layer, and there is none"),
        ("spectral", nn.Linear(IN, OUT), "holds NaN"),
        ("dense", nn.Linear(IN, OUT), "holds NaN"),
        ("dense", _dense(std=0.0), "both factors zero"),
        ("const_0", None, "both factors zero"),
        ("randn", None, "there is no init 'randn'"),
        ("spiral", None, "only xavier, xavorth, auto"),
    ],
)
def test_what_cannot_be_is_one_sentence(init, dense, sentence):
    if "NaN" in sentence:
        dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=sentence):
        _initialise(init, dense)
