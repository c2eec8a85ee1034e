"""Factor pairs of every kind, and what a step of theirs should be: formulas of the full matrix, in float64."""

import math

import pytest
import torch
from torch import Tensor

from fivefold.lowrank.tangent import Factors

# Tall, wide, square, rank one, full rank, and 2r above the smaller side.
SHAPES = [(12, 9, 4), (9, 30, 6), (7, 5, 1), (6, 6, 6), (20, 4, 4), (4, 20, 4), (8, 7, 5), (1, 1, 1), (40, 30, 16)]
by_shape = pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
# Some hundred roundings of 1e-16; six rounds of the quintic lift a singular value, and with it an error, 3.4^6 times.
CLOSE = {"rtol": 0, "atol": 1e-12}
CLOSE_AFTER_QUINTIC = {"rtol": 0, "atol": 1e-10}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, m: int, r: int) -> Tensor:
    return torch.linalg.qr(normal(seed, m, r))[0]


def random_pair(m: int, n: int, rank: int, left_condition: float, right_condition: float, seed: int = 0) -> Factors:
    """Singular values of each factor from 1 down to 1 / condition, the lower half of them alike."""
    sides = []
    for index, (length, condition) in enumerate(((m, left_condition), (n, right_condition))):
        values = torch.logspace(0, -2 * math.log10(condition), rank, dtype=torch.float64).clamp_min(1 / condition)
        start = 100 * seed + 10 * index
        sides.append((orthonormal(start, length, rank) * values) @ orthonormal(start + 1, rank, rank))
    return Factors(sides[0], sides[1].mT)


def product(factors: Factors) -> Tensor:
    return factors.left.double() @ factors.right.double()


def gradients(factors: Factors, gradient: Tensor) -> Factors:
    """Of the factors, in their type, from the gradient of W."""
    left, right = gradient @ factors.right.double().mT, factors.left.double().mT @ gradient
    return Factors(left.to(factors.left.dtype), right.to(factors.left.dtype))


def to(dtype: torch.dtype, factors: Factors) -> Factors:
    return Factors(*(side.to(dtype) for side in factors))


def weight_bases(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U and V of the SVD of W."""
    u, _, vh = torch.linalg.svd(weight)
    return u[:, :rank], vh[:rank].mT


def projection(u: Tensor, v: Tensor, gradient: Tensor) -> Tensor:
    return u @ (u.mT @ gradient) + (gradient @ v) @ v.mT - u @ (u.mT @ gradient @ v) @ v.mT


def best_approximation(matrix: Tensor, rank: int) -> Tensor:
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


def quintic_polar(matrix: Tensor, num_rounds: int) -> Tensor:
    """Newton-Schulz on the singular values themselves."""
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(num_rounds):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (u * values) @ vh


def thin_pair(kind: str, m: int, n: int, rank: int, seed: int) -> Factors:
    """Factors that are singular or nearly so."""
    healthy = random_pair(m, n, rank, 3, 3, seed)
    match kind:
        case "dead half":
            return Factors(healthy.left * (torch.arange(rank) % 2 == 0), healthy.right)
        case "constant":
            return Factors(torch.full_like(healthy.left, 0.1), torch.full_like(healthy.right, 0.1))
        case "zero left":
            return Factors(torch.zeros_like(healthy.left), healthy.right)
        case "1e12 on one side":
            return random_pair(m, n, rank, 1, 1e12, seed)
        case condition:
            return random_pair(m, n, rank, float(condition), float(condition), seed)


THIN = ("1e4", "1e8", "1e12", "1e12 on one side", "dead half", "constant", "zero left")


THIN = ("1e4", "1e8", "1e12", "1e12 on one side", "dead half", "constant", "zero left")


def stack_of(shape: tuple[int, int, int], count: int, dtype: torch.dtype) -> tuple[Factors, Factors]:
    m, n, rank = shape
    pairs = [to(dtype, random_pair(m, n, rank, 3, 3, seed)) for seed in range(count)]
    given = [gradients(pair, normal(seed + 500, m, n)) for seed, pair in enumerate(pairs)]
    return tuple(Factors(*map(torch.stack, zip(*each, strict=True))) for each in (pairs, given))
