"""Factor pairs of one shape as stacks, so that one call steps them all, and stacks divided among processes."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fivefold.lowrank.tangent import Factors

# What a step needs for a while is some twenty times its stack: half a GB.
_LARGEST_STACK = 1 << 23


class Stack:
    """k pairs of one shape that have gradients; what is read is float32 or wider, what is written has their own type.

    Args:
        pairs: of parameters left [m, r] and right [r, n].
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.lefts = [left for left, _ in pairs]
        self.rights = [right for _, right in pairs]

    @property
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """All left parameters, all right ones."""
        return self.lefts, self.rights

    def factors(self) -> Factors:
        """([k, m, r], [k, r, n])."""
        return Factors(stacked(self.lefts), stacked(self.rights))

    def gradients(self) -> Factors:
        """Of the factors, shaped like them."""
        return Factors(*(stacked([param.grad for param in side if param.grad is not None]) for side in self.sides))


def stacks(params: Sequence[Tensor]) -> Iterator[Stack]:
    """The pairs among left, right, left, right, ... that have gradients, several of one shape and type together."""
    alike: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for left, right in zip(params[::2], params[1::2], strict=True):
        if left.grad is not None and right.grad is not None:
            alike.setdefault((left.shape, right.shape, left.dtype, left.device), []).append((left, right))
    for pairs in alike.values():
        size = max(1, _LARGEST_STACK // sum(factor.numel() for factor in pairs[0]))
        yield from (Stack(pairs[start : start + size]) for start in range(0, len(pairs), size))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Equally shaped tensors as one, float32 or wider."""
    return torch.stack(list(tensors)).to(torch.promote_types(tensors[0].dtype, torch.float32))


def spread(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Copy the entries of a stack into the tensors it was made of."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def divided(compute: Callable[..., Sequence[Tensor]], *stack: Tensor) -> list[Tensor]:
    """Call `compute` on stacked tensors, on each process for its share of them; every process gets all results.

    Args:
        compute: from tensors of any first dimension to tensors of the same.
        stack: tensors of one first dimension k, alike on all processes.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size == 1:
        return list(compute(*stack))
    num_pairs = len(stack[0])
    share = -(-num_pairs // world_size)
    # The last shares repeat the last pair, because gathering wants equal sizes.
    mine = torch.arange(share, device=stack[0].device) + share * dist.get_rank()
    results = compute(*(tensor[mine.clamp_max(num_pairs - 1)] for tensor in stack))
    gathered = []
    for result in results:
        # What is gathered is memory, whatever its strides.
        result = result.contiguous()
        shares = [torch.empty_like(result) for _ in range(world_size)]
        dist.all_gather(shares, result)
        gathered.append(torch.cat(shares)[:num_pairs])
    return gathered
