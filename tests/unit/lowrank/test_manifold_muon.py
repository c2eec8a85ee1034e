"""The step in r x r Gram matrices against the same step of the full matrix, in float64."""

import math

import pytest
import torch
from dense_formulas import (
    CLOSE_AFTER_QUINTIC,
    SHAPES,
    THIN,
    best_approximation,
    by_shape,
    gradients,
    normal,
    product,
    projection,
    quintic_polar,
    random_pair,
    stack_of,
    thin_pair,
    to,
    weight_bases,
)
from torch import Tensor

from fivefold.lowrank.manifold_muon import manifold_muon_step
from fivefold.lowrank.tangent import Factors


def dense_step(weight: Tensor, rank: int, gradient: Tensor, lr: float, decay: float = 0.0) -> Tensor:
    """W moved along the tangent vector and split: the new W, of rank r."""
    u, v = weight_bases(weight, rank)
    direction = projection(u, v, quintic_polar(projection(u, v, gradient), num_rounds=6))
    moved = (1 - lr * decay) * weight - lr * 0.2 * math.sqrt(max(weight.shape)) * direction
    basis, _ = torch.linalg.qr(moved @ v)
    return basis @ basis.mT @ moved


def step(factors: Factors, gradient: Tensor, lr: float, decay: float = 0.0) -> Factors:
    direction = gradients(factors, gradient)
    return manifold_muon_step(factors, direction, direction, lr, decay)[0]


@by_shape
def test_it_is_the_dense_formula(m, n, rank):
    factors, gradient, lr, decay = random_pair(m, n, rank, 3, 3), normal(9, m, n), 0.05, 0.4
    new = step(factors, gradient, lr, decay)
    expected = dense_step(product(factors), rank, gradient, lr, decay)
    torch.testing.assert_close(product(new), expected, **CLOSE_AFTER_QUINTIC)
    gram = new.left.mT @ new.left
    torch.testing.assert_close(gram, gram.diagonal().mean() * torch.eye(rank).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(new.left.norm(), new.right.norm(), rtol=0, atol=1e-12)


@by_shape
@pytest.mark.parametrize("condition", [1, 3, 10])
def test_it_is_the_dense_formula_in_float32(m, n, rank, condition):
    """W has the condition squared. The quintic lifts the shift of 1e-6 by up to 3.4^6, and what is left of U in X V
    where 2r is more than a side, so that nothing else is there.
    """
    for seed in range(3):
        factors, gradient = random_pair(m, n, rank, condition, condition, seed), normal(seed + 9, m, n)
        new = step(to(torch.float32, factors), gradient, 0.05)
        expected = dense_step(product(factors), rank, gradient, 0.05)
        gap = (product(new) - expected).norm() / (product(factors) - expected).norm()
        assert gap < (5e-2 if 2 * rank > min(m, n) else 1e-3), seed


@by_shape
def test_the_momentum_comes_along_by_projection(m, n, rank):
    factors, momentum = random_pair(m, n, rank, 3, 3), normal(8, m, n)
    direction = gradients(factors, normal(9, m, n))
    new, carried, _ = manifold_muon_step(factors, gradients(factors, momentum), direction, 0.05)
    tangent = projection(*weight_bases(product(factors), rank), momentum)
    for got, expected in zip(carried, gradients(new, tangent), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("m", "n", "rank"), [(12, 9, 4), (9, 12, 4), (8, 7, 5), (30, 20, 3)])
def test_the_way_back_differs_from_a_truncated_svd_in_third_order(m, n, rank):
    """Half the step, an eighth of the difference."""
    factors, gradient = random_pair(m, n, rank, 2, 2), normal(9, m, n)
    weight = product(factors)
    u, v = weight_bases(weight, rank)
    direction = 0.2 * math.sqrt(max(m, n)) * projection(u, v, quintic_polar(projection(u, v, gradient), num_rounds=6))
    gaps = [
        (product(step(factors, gradient, lr)) - best_approximation(weight - lr * direction, rank)).norm()
        for lr in (2e-2, 1e-2)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.05)
    assert gaps[1] < 0.1 * (weight - 1e-2 * direction - best_approximation(weight - 1e-2 * direction, rank)).norm()


def test_it_ignores_the_gradients_length_and_has_muons_size():
    """At full rank every singular value of the step is near 1 (the quintic leaves .7 to 1.2), so its RMS is .2 lr."""
    factors, gradient = random_pair(64, 48, 48, 3, 3), normal(9, 64, 48)
    moves = [product(step(factors, scale * gradient, 1e-3)) - product(factors) for scale in (1.0, 1e6)]
    torch.testing.assert_close(moves[0], moves[1], rtol=0, atol=1e-9)
    assert 0.7 < float(moves[0].square().mean().sqrt()) / (0.2 * 1e-3) < 1.2


@pytest.mark.parametrize("kind", THIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_and_descends_where_factors_are_thin(dtype, kind):
    """The change of W makes an angle below 90 degrees with -G, for a random G."""
    for m, n, rank in SHAPES:
        for seed in range(3):
            factors, gradient = to(dtype, thin_pair(kind, m, n, rank, seed)), normal(seed + 50, m, n)
            for lr in (1e-4, 1e-2):
                new = step(factors, gradient, lr)
                assert all(side.isfinite().all() for side in new)
                change = product(new) - product(factors)
                cosine = float((gradient * change).sum() / gradient.norm() / change.norm())
                assert cosine < -0.05, (m, n, rank, seed, lr)
                assert change.norm() < 0.5 * lr * math.sqrt(max(m, n) * 2 * rank)  # no blow-up either


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gradient_or_at_zero_nothing_moves_but_the_decay(dtype):
    for kind in ("1e12", "dead half", "constant"):
        factors = to(dtype, thin_pair(kind, 9, 7, 4, 0))
        new = step(factors, torch.zeros(9, 7).double(), 0.1, 0.5)
        torch.testing.assert_close(product(new), 0.95 * product(factors), rtol=0, atol=1e-6)
    zero = Factors(torch.zeros(9, 4, dtype=dtype), torch.zeros(4, 7, dtype=dtype))
    new = step(zero, normal(0, 9, 7), 0.1)
    assert all(side.isfinite().all() for side in new)
    assert not product(new).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "is_singular"), [*((kind, True) for kind in THIN), ("1", False), ("10", False)])
def test_singular_pairs_are_told(dtype, kind, is_singular):
    if kind == "1e4" and dtype == torch.float64:
        is_singular = False  # half of the digits
    factors = to(dtype, thin_pair(kind, 20, 15, 8, 0))
    direction = gradients(factors, normal(9, 20, 15))
    assert bool(manifold_muon_step(factors, direction, direction, 0.1)[2]) == is_singular


def everything(factors: Factors, direction: Factors) -> list[Tensor]:
    new, carried, _ = manifold_muon_step(factors, direction, direction, 0.1, 0.2)
    return [*new, *carried]


@by_shape
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_batched_is_looped(m, n, rank, dtype, close):
    """What is compared is left right, as a QR is free to choose signs; the quintic lifts rounding 3.4^6 times."""
    factors, direction = stack_of((m, n, rank), 5, dtype)
    batched = everything(factors, direction)
    singly = zip(map(Factors, *factors), map(Factors, *direction), strict=True)
    looped = [torch.stack(each) for each in zip(*(everything(*one) for one in singly), strict=True)]
    whole, single = (each[0].double() @ each[1].double() for each in (batched, looped))
    assert (whole - single).norm() <= close * single.norm()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_stays_in_its_pair(bad, where, dtype):
    factors, direction = stack_of((9, 7, 4), 3, dtype)
    clean = everything(factors, direction)
    for broken in (factors, direction):
        side = getattr(broken, where)
        kept = side[1, 0, 0].clone()
        side[1, 0, 0] = bad
        disturbed = everything(factors, direction)
        for expected, got in zip(clean, disturbed, strict=True):
            assert torch.equal(got[[0, 2]], expected[[0, 2]])
        assert not all(got[1].isfinite().all() for got in disturbed[:2])  # so that whoever steps leaves this pair alone
        side[1, 0, 0] = kept
