"""Pairs of one shape as stacks: which go together, what is read, what is written."""

import torch
from torch import nn

from fivefold.lowrank.stacks import Stack, divided, spread, stacked, stacks

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR)


def pair(m: int, n: int, rank: int, dtype: torch.dtype = torch.float32, has_grad: bool = True) -> list[nn.Parameter]:
    sides = [nn.Parameter(random(*shape).to(dtype)) for shape in ((m, rank), (rank, n))]
    for side in sides:
        side.grad = random(*side.shape).to(dtype) if has_grad else None
    return sides


def test_pairs_of_one_shape_and_type_that_have_gradients_go_together_in_order():
    first, wide, second, other_rank = pair(4, 3, 2), pair(4, 5, 2), pair(4, 3, 2), pair(4, 3, 1)
    half, idle, half_idle = pair(4, 3, 2, torch.bfloat16), pair(4, 3, 2, has_grad=False), pair(4, 3, 2)
    half_idle[0].grad = None
    params = [*first, *wide, *idle, *second, *half, *half_idle, *other_rank]
    found = [list(zip(stack.lefts, stack.rights, strict=True)) for stack in stacks(params)]
    expected = [[first, second], [wide], [half], [other_rank]]
    assert [[[id(side) for side in each] for each in stack] for stack in found] == [
        [[id(side) for side in each] for each in stack] for stack in expected
    ]
    assert list(stacks([])) == list(stacks(idle)) == []


def test_what_is_read_is_float32_or_wider_and_a_copy():
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    for dtype, read in ((half, single), (single, single), (double, double)):
        pairs = [pair(4, 3, 2, dtype), pair(4, 3, 2, dtype)]
        stack = Stack([(left, right) for left, right in pairs])
        factors, gradients = stack.factors(), stack.gradients()
        assert {each.dtype for each in (*factors, *gradients)} == {read}
        assert [list(each.shape) for each in (*factors, *gradients)] == 2 * [[2, 4, 2], [2, 2, 3]]
        for index, (left, right) in enumerate(pairs):
            assert torch.equal(factors.left[index], left.to(read))
            assert torch.equal(gradients.right[index], right.grad.to(read))
        before = factors.left.clone()
        for left in stack.lefts:
            left.data.zero_()
        assert torch.equal(factors.left, before)


def test_what_is_spread_is_rounded_to_each_tensors_type():
    for dtype in (torch.bfloat16, torch.float32):
        tensors, values = [torch.zeros(4, 3, dtype=dtype) for _ in range(3)], random(3, 4, 3)
        spread(tensors, values)
        assert torch.equal(torch.stack(tensors), values.to(dtype))
        assert torch.equal(stacked(tensors), values.to(dtype).float())


def test_in_one_process_nothing_is_divided():
    stack, seen = (random(5, 3, 2), random(5, 4)), []

    def compute(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(tensors)
        return tensors[1], tensors[0]

    results = divided(compute, *stack)
    assert all(got is given for got, given in zip(seen[0], stack, strict=True))
    assert results[0] is stack[1]
    assert results[1] is stack[0]
