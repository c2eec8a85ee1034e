"""One step of thin factors against the same step of the full matrix, in float64."""

import pytest
import torch
from dense_formulas import (
    CLOSE,
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

from fivefold.lowrank.tangent import DAMPING, Factors, decompose
from fivefold.lowrank.update import exact_step, lazy_step, spectron_step


def exact_gap(factors: Factors, damping: float, bases: tuple[Tensor, Tensor], seed: int) -> float:
    """Distance of an exact step from the dense one, relative to the new W; the step is .3 of W."""
    weight, rank, decay = product(factors), factors.left.shape[1], 0.1
    gradient = normal(seed + 1000, *weight.shape)
    projected = projection(*bases, gradient)
    lr = float(0.3 * weight.norm() / projected.norm())
    new = exact_step(decompose(factors), gradients(factors, gradient), lr, decay, damping=damping)
    expected = best_approximation((1 - lr * decay) ** 2 * weight - lr * projected, rank)
    return float((product(new) - expected).norm() / expected.norm())


def test_lazy_step_is_its_formula():
    factors, direction = random_pair(9, 7, 3, 3, 3), Factors(normal(8, 9, 3), normal(9, 3, 7))
    for lr_scale in (1.0, 0.25):
        new = lazy_step(factors, direction, 0.1, weight_decay=0.5, lr_scale=lr_scale)
        for got, was, move in zip(new, factors, direction, strict=True):
            torch.testing.assert_close(got, 0.95 * was - lr_scale * 0.1 * move, **CLOSE)


@by_shape
@pytest.mark.parametrize("conditions", [(1, 1), (1e4, 1e4), (1e8, 1), (1, 1e8)])
def test_exact_step_is_the_dense_formula_in_float64(m, n, rank, conditions):
    """The promise is 1e-6 up to condition 1e8, where an error of 1e-16 in a factor grows to 1e-8; measured: 5e-9."""
    for seed in range(3):
        factors = random_pair(m, n, rank, *conditions, seed)
        assert exact_gap(factors, 0.0, weight_bases(product(factors), rank), seed) < 1e-7


@by_shape
def test_exact_step_is_the_dense_formula_where_both_factors_have_condition_1e8(m, n, rank):
    """W has condition 1e16 then and its own SVD sees nothing; the bases are those of the factors' SVDs."""
    for seed in range(3):
        factors = random_pair(m, n, rank, 1e8, 1e8, seed)
        bases = weight_bases(factors.left, rank)[0], weight_bases(factors.right, rank)[1]
        assert exact_gap(factors, 0.0, bases, seed) < 1e-6


@by_shape
@pytest.mark.parametrize("conditions", [(1, 1), (10, 10), (100, 1), (100, 100)])
def test_exact_step_is_the_dense_formula_in_float32_with_the_default_damping(m, n, rank, conditions):
    for seed in range(3):
        factors = to(torch.float32, random_pair(m, n, rank, *conditions, seed))
        assert exact_gap(factors, DAMPING, weight_bases(product(factors), rank), seed) < 1e-5


@pytest.mark.parametrize("kind", THIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_damped_steps_are_finite_and_descend(dtype, kind):
    """The change of W makes an angle below 90 degrees with -G, for a random G; measured: a cosine of .15 at least."""
    for m, n, rank in SHAPES:
        for seed in range(3):
            factors, gradient = to(dtype, thin_pair(kind, m, n, rank, seed)), normal(seed + 50, m, n)
            for lr in (1e-4, 1e-2):
                new = exact_step(decompose(factors), gradients(factors, gradient), lr)
                assert all(side.isfinite().all() for side in new)
                change = product(new) - product(factors)
                cosine = float((gradient * change).sum() / gradient.norm() / change.norm())
                assert cosine < -0.05, (m, n, rank, seed, lr)
                assert change.norm() < 2 * lr * gradient.norm()  # no blow-up either


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_gradient_or_at_zero_nothing_moves_but_the_decay(dtype):
    for kind in ("1e12", "dead half", "constant"):
        factors = to(dtype, thin_pair(kind, 9, 7, 4, 0))
        new = exact_step(decompose(factors), gradients(factors, torch.zeros(9, 7).double()), 0.1, 0.5)
        torch.testing.assert_close(product(new), 0.95**2 * product(factors), rtol=0, atol=1e-6)
    zero = Factors(torch.zeros(9, 4, dtype=dtype), torch.zeros(4, 7, dtype=dtype))
    new = exact_step(decompose(zero), gradients(zero, normal(0, 9, 7)), 0.1)
    assert all(side.isfinite().all() for side in new)
    assert not product(new).any()


@by_shape
def test_spectron_is_the_dense_formula(m, n, rank):
    factors, lr, decay = random_pair(m, n, rank, 3, 5), 0.1, 0.3
    momentum = Factors(normal(8, m, rank), normal(9, rank, n))
    probes = Factors(*(torch.nn.functional.normalize(normal(seed, rank, 1), dim=0) for seed in (6, 7)))
    new, new_probes = spectron_step(factors, momentum, lr, probes, decay)
    # one round of power iteration on left^T left and right right^T
    sigmas = (factors.left @ probes.left).norm(), (factors.right.mT @ probes.right).norm()
    step = lr / (sigmas[0] + sigmas[1] + 1)
    for got, was, average in zip(new, factors, momentum, strict=True):
        expected = (1 - step * decay) * was - step * quintic_polar(average, 5)
        torch.testing.assert_close(got, expected, **CLOSE_AFTER_QUINTIC)
    for got, gram, probe in zip(
        new_probes, (factors.left.mT @ factors.left, factors.right @ factors.right.mT), probes, strict=True
    ):
        torch.testing.assert_close(got, gram @ probe / (gram @ probe).norm(), **CLOSE)


@by_shape
def test_spectrons_step_size_converges_to_the_spectral_norms(m, n, rank):
    """The rounds needed grow with the gap of the two largest singular values; 1e-6 after 400 of these."""
    factors, lr = random_pair(m, n, rank, 3, 5), 0.1
    momentum = Factors(normal(8, m, rank), normal(9, rank, n))
    probes = Factors(*(torch.full((rank, 1), rank**-0.5, dtype=torch.float64) for _ in range(2)))
    for _ in range(400):
        new, probes = spectron_step(factors, momentum, lr, probes)
    norms = [torch.linalg.matrix_norm(side, 2) for side in factors]
    measured = (factors.left - new.left).norm() / quintic_polar(momentum.left, 5).norm()
    assert float(measured) == pytest.approx(float(lr / (sum(norms) + 1)), rel=1e-6)
    # W changes by at most lr (times 1.2^2, as the quintic overshoots by a fifth)
    assert torch.linalg.matrix_norm(product(new) - product(factors), 2) < 1.44 * lr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectrons_probes_survive_a_factor_that_is_zero(dtype):
    """A probe of length 0 would stay 0 and the factor's norm count as 0 for ever."""
    factors = Factors(torch.zeros(9, 4, dtype=dtype), random_pair(9, 7, 4, 3, 3).right.to(dtype))
    probes = Factors(*(torch.full((4, 1), 0.5, dtype=dtype) for _ in range(2)))
    momentum = Factors(normal(8, 9, 4).to(dtype), normal(9, 4, 7).to(dtype))
    for _ in range(20):
        factors, probes = spectron_step(factors, momentum, 0.1, probes)
    for probe in probes:
        assert float(probe.norm()) == pytest.approx(1, abs=1e-5)
    # left is a multiple of one orthogonalised matrix now, so that every vector of length 1 sees at least half its norm.
    assert (factors.left @ probes.left).norm() > 0.5 * torch.linalg.matrix_norm(factors.left, 2)


def all_steps(factors: Factors, direction: Factors) -> list[Tensor]:
    """Everything that each kind of step gives for a stack of pairs."""
    point = decompose(factors)
    rank = factors.left.shape[-1]
    probe = torch.full((*factors.left.shape[:-2], rank, 1), rank**-0.5, dtype=factors.left.dtype)
    moved, probes = spectron_step(factors, direction, 0.1, Factors(probe, probe), 0.2)
    return [
        *lazy_step(factors, direction, 0.1, 0.2),
        *exact_step(point, direction, 0.1, 0.2),
        *moved,
        *probes,
    ]


@by_shape
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_batched_is_looped(m, n, rank, dtype, close):
    """What is compared is left right, as singular vectors are free to change their sign, and Spectron's probes."""
    factors, direction = stack_of((m, n, rank), 5, dtype)
    batched = all_steps(factors, direction)
    singly = zip(map(Factors, *factors), map(Factors, *direction), strict=True)
    looped = [torch.stack(each) for each in zip(*(all_steps(*one) for one in singly), strict=True)]
    for start in range(0, 6, 2):
        whole, single = (each[start].double() @ each[start + 1].double() for each in (batched, looped))
        assert (whole - single).norm() <= close * single.norm()
    for whole, single in zip(batched[6:], looped[6:], strict=True):
        torch.testing.assert_close(whole, single, rtol=0, atol=close)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_stays_in_its_pair(bad, where, dtype):
    factors, direction = stack_of((9, 7, 4), 3, dtype)
    clean = all_steps(factors, direction)
    for broken in (factors, direction):
        side = getattr(broken, where)
        kept = side[1, 0, 0].clone()
        side[1, 0, 0] = bad
        for expected, got in zip(clean, all_steps(factors, direction), strict=True):
            assert torch.equal(got[[0, 2]], expected[[0, 2]])
        side[1, 0, 0] = kept
