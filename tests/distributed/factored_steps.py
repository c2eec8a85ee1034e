"""A few updates of LOROAdamW, whose exact steps the processes divide among themselves; each writes what it ends with.

python factored_steps.py OUT_FOLDER MOMENTUM...        (under torchrun)
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from fivefold.lowrank.optimizers import LOROAdamW

# Two processes share 3, 1 and 2 pairs: one share is padded, one process has nothing of its own to do, one fits.
PAIRS = 3 * [(12, 9, 4)] + [(9, 12, 4)] + 2 * [(8, 8, 3)]


def train(momentum: str) -> dict[str, Tensor]:
    """Factors and their first moments after 7 updates, of which the 2nd, 4th and 6th are exact, the last singular."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        nn.Parameter(torch.randn(shape, generator=generator))
        for m, n, rank in PAIRS
        for shape in ((m, rank), (rank, n))
    ]
    optimizer = LOROAdamW(
        [{"params": factors, "factors": True}], lr=0.02, weight_decay=0.1, loro_freq=2, momentum=momentum
    )
    for update in range(1, 8):
        if update == 6:
            factors[2].data[:, 1] = 0
        for left, right in zip(factors[::2], factors[1::2], strict=True):
            gradient = torch.randn(len(left), right.shape[1], generator=generator)
            left.grad, right.grad = gradient @ right.detach().mT, left.detach().mT @ gradient
        optimizer.step()
    ended = {f"{index:02}": factor.detach() for index, factor in enumerate(factors)}
    moments = {f"{index:02}.exp_avg": optimizer.state[factor]["exp_avg"] for index, factor in enumerate(factors)}
    return ended | moments | {"num_recovered": torch.tensor(optimizer.num_recovered())}


def main() -> None:
    folder, *momenta = sys.argv[1:]
    dist.init_process_group("gloo")
    warnings.simplefilter("error")  # as in the tests of one process
    for momentum in momenta:
        save_file(train(momentum), Path(folder) / f"{momentum}_{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
