"""The geometry of thin factors against the same formulas on full matrices, in float64."""

import math

import pytest
import torch
from torch import Tensor

from fivefold.lowrank.tangent import (
    DAMPING,
    Factors,
    Tangent,
    as_gradient,
    balance,
    damped_inverse,
    decompose,
    project,
    truncate,
)

# Tall, wide, square, rank one, full rank, and 2r above the smaller side.
by_shape = pytest.mark.parametrize(
    ("m", "n", "rank"),
    [(12, 9, 4), (9, 12, 4), (7, 5, 1), (6, 6, 6), (20, 4, 4), (4, 20, 4), (8, 7, 5), (1, 1, 1)],
)
# Some hundred roundings of 1e-16, times the condition of 3 that factors have where nothing else is said.
CLOSE = {"rtol": 0, "atol": 1e-12}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, m: int, r: int) -> Tensor:
    return torch.linalg.qr(normal(seed, m, r))[0]


def spread_out(rank: int, condition: float) -> Tensor:
    """Singular values from 1 down to 1 / condition."""
    return torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)


def random_pair(m: int, n: int, rank: int, condition: float = 3.0, seed: int = 0) -> Factors:
    values = spread_out(rank, condition)
    left = (orthonormal(seed, m, rank) * values) @ orthonormal(seed + 1, rank, rank)
    right = orthonormal(seed + 2, rank, rank) @ (orthonormal(seed + 3, n, rank) * values).mT
    return Factors(left, right)


def product(factors: Factors) -> Tensor:
    return factors.left @ factors.right


def gradients(factors: Factors, gradient: Tensor) -> Factors:
    """Of the factors, from the gradient of W."""
    return Factors(gradient @ factors.right.mT, factors.left.mT @ gradient)


def dense(point, tangent: Tangent) -> Tensor:
    """The tangent vector as a full matrix."""
    u, v = point.left_basis, point.right_basis
    return u @ tangent.inner @ v.mT + tangent.outer_left @ v.mT + u @ tangent.outer_right.mT


def dense_projection(weight: Tensor, rank: int, gradient: Tensor) -> Tensor:
    """U U^T G + G V V^T - U U^T G V V^T, with the bases of the SVD of W."""
    u, _, vh = torch.linalg.svd(weight)
    left, right = u[:, :rank] @ u[:, :rank].mT, vh[:rank].mT @ vh[:rank]
    return left @ gradient + gradient @ right - left @ gradient @ right


def best_approximation(matrix: Tensor, rank: int) -> Tensor:
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


def assert_balanced(factors: Factors) -> None:
    gram = factors.left.mT @ factors.left
    torch.testing.assert_close(gram, factors.right @ factors.right.mT, **CLOSE)
    torch.testing.assert_close(gram, gram.diagonal().diag(), **CLOSE)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("condition", [1, 1e2, 1e5, 1e8, 1e12])
@pytest.mark.parametrize("damping", [DAMPING, 1e-2])
def test_damped_inverse_is_its_formula(condition, dtype, close, damping):
    """Measured: 1e-13 and 3e-5 at condition 1e12. Squaring R's condition would leave float32 no digit from 1e4 on."""
    for rank in (1, 3, 8, 32):
        values = spread_out(rank, condition)
        r = torch.linalg.qr((orthonormal(rank, rank, rank) * values) @ orthonormal(rank + 1, rank, rank))[1].to(dtype)
        u, s, vh = torch.linalg.svd(r.double())
        d = damping * s.norm()
        expected = (vh.mT * (s / (s**2 + d**2))) @ u.mT
        inverse = damped_inverse(r, damping).double()
        assert (inverse - expected).norm() <= close * expected.norm()
        assert torch.linalg.matrix_norm(inverse, 2) <= (1 + close) / (2 * d)


def test_undamped_inverse_is_the_inverse():
    r = torch.linalg.qr(random_pair(8, 8, 8, condition=1e6).left)[1]
    torch.testing.assert_close(damped_inverse(r, 0.0) @ r, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)


def test_damped_inverse_of_a_singular_or_tiny_triangle_is_finite():
    for triangle in (torch.ones(4, 4).triu() * torch.tensor([1, 0, 0, 1]), torch.full((4, 4), 1e-25).triu()):
        assert damped_inverse(triangle, DAMPING).isfinite().all()
    assert not damped_inverse(torch.zeros(4, 4), DAMPING).any()


@by_shape
def test_a_point_is_bases_and_a_core(m, n, rank):
    factors = random_pair(m, n, rank)
    point = decompose(factors)
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(point.left_basis.mT @ point.left_basis, identity, **CLOSE)
    torch.testing.assert_close(point.right_basis.mT @ point.right_basis, identity, **CLOSE)
    torch.testing.assert_close(point.left_basis @ point.core @ point.right_basis.mT, product(factors), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_which_points_are_singular(dtype):
    fine, thin = random_pair(9, 7, 4, condition=1e2), random_pair(9, 7, 4, condition=1e9)
    dead = Factors(fine.left.clone(), fine.right)
    dead.left[:, 2] = 0
    constant = Factors(torch.full_like(fine.left, 0.3), torch.full_like(fine.right, 0.3))
    zero = Factors(torch.zeros_like(fine.left), torch.zeros_like(fine.right))
    broken = Factors(fine.left, fine.right.clone())
    broken.right[0, 0] = torch.nan
    pairs = [fine, thin, dead, constant, zero, broken, Factors(1e-12 * fine.left, 1e6 * fine.right)]
    point = decompose(Factors(*(torch.stack(side).to(dtype) for side in zip(*pairs, strict=True))))
    assert point.is_singular.tolist() == [False, True, True, True, True, True, False]


@by_shape
def test_projection_is_the_dense_one(m, n, rank):
    factors, gradient = random_pair(m, n, rank), normal(9, m, n)
    point = decompose(factors)
    tangent = project(point, gradients(factors, gradient), damping=0.0)
    torch.testing.assert_close(dense(point, tangent), dense_projection(product(factors), rank, gradient), **CLOSE)
    torch.testing.assert_close(point.left_basis.mT @ tangent.outer_left, torch.zeros(rank, rank).double(), **CLOSE)
    torch.testing.assert_close(point.right_basis.mT @ tangent.outer_right, torch.zeros(rank, rank).double(), **CLOSE)
    torch.testing.assert_close(dense(point, tangent.times(-2.5)), -2.5 * dense(point, tangent), **CLOSE)


def test_two_gradients_that_are_not_of_one_matrix_meet_in_the_middle():
    factors, of_left, of_right = random_pair(9, 7, 3), normal(8, 9, 7), normal(9, 9, 7)
    point = decompose(factors)
    direction = Factors(gradients(factors, of_left).left, gradients(factors, of_right).right)
    u, v = point.left_basis, point.right_basis
    expected = of_left @ v @ v.mT + u @ u.mT @ of_right - u @ u.mT @ (of_left + of_right) / 2 @ v @ v.mT
    torch.testing.assert_close(dense(point, project(point, direction, damping=0.0)), expected, **CLOSE)


@by_shape
def test_as_gradient_is_the_reverse_of_project(m, n, rank):
    """P(G) and G have the same gradients of the factors: nothing is lost between the two forms."""
    factors = random_pair(m, n, rank)
    given = gradients(factors, normal(9, m, n))
    point = decompose(factors)
    for back, expected in zip(as_gradient(point, project(point, given, damping=0.0), factors), given, strict=True):
        torch.testing.assert_close(back, expected, **CLOSE)


@by_shape
def test_a_change_of_basis_is_exact(m, n, rank):
    """At other factors of the same W, the gradients carried over are those that G itself would give there."""
    factors, gradient = random_pair(m, n, rank), normal(9, m, n)
    mixing = random_pair(rank, rank, rank, seed=20).left
    point = decompose(factors)
    tangent = project(point, gradients(factors, gradient), damping=0.0)
    for new in (balance(point), Factors(factors.left @ mixing, torch.linalg.solve(mixing, factors.right))):
        torch.testing.assert_close(product(new), product(factors), **CLOSE)
        for carried, expected in zip(as_gradient(point, tangent, new), gradients(new, gradient), strict=True):
            torch.testing.assert_close(carried, expected, **CLOSE)


@by_shape
def test_transport_to_another_point_is_the_dense_projection(m, n, rank):
    factors, other = random_pair(m, n, rank), random_pair(m, n, rank, seed=10)
    start, end = decompose(factors), decompose(other)
    tangent = project(start, gradients(factors, normal(9, m, n)), damping=0.0)
    carried = as_gradient(start, tangent, other)
    for got, expected in zip(carried, gradients(other, dense(start, tangent)), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)
    expected = dense_projection(product(other), rank, dense(start, tangent))
    torch.testing.assert_close(dense(end, project(end, carried, damping=0.0)), expected, **CLOSE)


@by_shape
def test_truncate_is_the_best_approximation_in_balanced_factors(m, n, rank):
    factors = random_pair(m, n, rank)
    point = decompose(factors)
    step = project(point, gradients(factors, normal(9, m, n)), damping=0.0).times(0.1)
    new = truncate(point, step, keep=0.9)
    expected = best_approximation(0.9 * product(factors) - dense(point, step), rank)
    torch.testing.assert_close(product(new), expected, **CLOSE)
    assert_balanced(new)


@by_shape
def test_truncate_is_the_best_approximation_where_the_gradient_has_rank_one_or_misses_a_basis_vector(m, n, rank):
    """Householder's QR of a rank-deficient part puts vectors into the basis that are not orthogonal to U."""
    factors = random_pair(m, n, rank)
    factors.right[0] = torch.eye(n)[0]
    misses = normal(9, m, n)
    misses[:, 0] = 0
    for gradient in (misses, normal(8, m, 1) * misses[:1]):
        point = decompose(factors)
        step = project(point, gradients(factors, gradient), damping=0.0).times(0.1)
        expected = best_approximation(product(factors) - dense(point, step), rank)
        torch.testing.assert_close(product(truncate(point, step)), expected, **CLOSE)


@by_shape
@pytest.mark.parametrize("condition", [3.0, 1e8])
def test_balance_moves_no_weight(m, n, rank, condition):
    factors = random_pair(m, n, rank, condition)
    new = balance(decompose(factors))
    torch.testing.assert_close(product(new), product(factors), **CLOSE)
    assert_balanced(new)


@by_shape
@pytest.mark.parametrize("side", ["outer_left", "outer_right"])
def test_truncate_is_exact_where_the_moved_matrix_has_rank_r(m, n, rank, side):
    factors = random_pair(m, n, rank)
    point = decompose(factors)
    step = project(point, gradients(factors, normal(9, m, n)), damping=0.0).times(0.1)
    step = step._replace(**{side: torch.zeros_like(getattr(step, side))})
    moved = product(factors) - dense(point, step)
    torch.testing.assert_close(product(truncate(point, step)), moved, **CLOSE)


SINGULAR = {
    "dead": lambda pair: Factors(pair.left * torch.tensor([1.0, 0, 1, 0]), pair.right),
    "constant": lambda pair: Factors(torch.full_like(pair.left, 0.1), torch.full_like(pair.right, 0.1)),
    "zero": lambda pair: Factors(torch.zeros_like(pair.left), torch.zeros_like(pair.right)),
    "zero left": lambda pair: Factors(torch.zeros_like(pair.left), pair.right),
}


@pytest.mark.parametrize("kind", SINGULAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_factors_move_and_balance_to_finite_ones(kind, dtype):
    factors = SINGULAR[kind](Factors(*(side.to(dtype) for side in random_pair(9, 7, 4))))
    point = decompose(factors)
    step = project(point, gradients(factors, normal(9, 9, 7).to(dtype))).times(0.01)
    no_step = step.times(0.0)
    moved = product(factors) - dense(point, step)
    expected = best_approximation(moved.double(), 4)
    # float32: 1e-6 is a dozen roundings of entries around 1.
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    torch.testing.assert_close(product(truncate(point, step)).double(), expected, **close)
    for still in (truncate(point, no_step), balance(point)):
        torch.testing.assert_close(product(still), product(factors), **close)


@pytest.mark.parametrize(("kind", "num_alive"), [("dead", 2), ("constant", 1), ("zero", 0), ("zero left", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_zero_get_a_row_in_right_alone(kind, num_alive, dtype):
    """As large as that of the smallest other direction, orthogonal to all; 1 where there is no other."""
    fine = Factors(*(side.to(dtype) for side in random_pair(9, 7, 4)))
    factors = Factors(*map(torch.stack, zip(fine, SINGULAR[kind](fine), strict=True)))
    point = decompose(factors)
    no_step = project(point, Factors(*map(torch.zeros_like, factors)))
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    for new in (balance(point), truncate(point, no_step)):
        torch.testing.assert_close(product(new), product(factors), **close)
        grams = [side.double() for side in (new.left.mT @ new.left, new.right @ new.right.mT)]
        torch.testing.assert_close(grams[0][0], grams[1][0], **close)
        lengths = grams[0][1].diagonal().clone()
        assert (lengths[:num_alive] > 1e-3).all()
        assert not (lengths[num_alive:] > close["atol"]).any()
        lengths[num_alive:] = lengths[num_alive - 1] if num_alive else 1
        torch.testing.assert_close(grams[1][1], lengths.diag(), **close)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["factor", "gradient"])
def test_what_is_not_finite_stays_in_its_pair(bad, where):
    pairs = [random_pair(9, 7, 4, seed=seed) for seed in (0, 10, 20)]
    dirty = [Factors(*(side.clone() for side in pair)) for pair in pairs]
    given = [gradients(pair, normal(9, 9, 7)) for pair in pairs]
    dirty_given = [Factors(*(side.clone() for side in pair)) for pair in given]
    (dirty if where == "factor" else dirty_given)[1].left[2, 2] = bad
    results = []
    for some_pairs, some_given in ((pairs, given), (dirty, dirty_given)):
        factors, gradient = (Factors(*map(torch.stack, zip(*each, strict=True))) for each in (some_pairs, some_given))
        point = decompose(factors)
        step = project(point, gradient).times(0.1)
        results.append((truncate(point, step), balance(point), as_gradient(point, step, factors)))
    for clean, disturbed in zip(*results, strict=True):
        for expected, got in zip(clean, disturbed, strict=True):
            assert torch.equal(got[[0, 2]], expected[[0, 2]])
    new = results[1][0]  # so that whoever steps sees which pair to leave alone
    assert not (new.left[1].isfinite().all() and new.right[1].isfinite().all())
