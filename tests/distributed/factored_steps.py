"""A few updates of each optimizer of pairs, which processes divide among themselves; each writes what it ends with.

python factored_steps.py OUT_FOLDER NAME...        (under torchrun)
"""

import sys
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from fivefold.lowrank import optimizers

# Two processes share 3, 1 and 2 pairs: one share is padded, one process has nothing of its own to do, one fits.
PAIRS = 3 * [(12, 9, 4)] + [(9, 12, 4)] + 2 * [(8, 8, 3)]
OPTIMIZERS = {
    "factor": partial(optimizers.LOROAdamW, lr=0.02, weight_decay=0.1, loro_freq=2, momentum="factor"),
    "tangent": partial(optimizers.LOROAdamW, lr=0.02, weight_decay=0.1, loro_freq=2, momentum="tangent"),
    "muon": partial(optimizers.LOROMuon, lr=0.02, weight_decay=0.1),
    "spectron": partial(optimizers.Spectron, lr=0.1, weight_decay=0.1),
}
# The step that is divided, which tells by what it is given how many pairs a process steps itself.
STEPS = {
    "factor": "exact_step",
    "tangent": "exact_step",
    "muon": "manifold_muon_step",
    "spectron": "spectron_step",
}


def train(name: str) -> dict[str, Tensor]:
    """Factors and their averages after 7 updates, the 6th of which meets a singular factor.

    LOROAdamW makes exact steps in the 2nd, the 4th and the 6th.
    """
    generator = torch.Generator().manual_seed(0)
    factors = [
        nn.Parameter(torch.randn(shape, generator=generator))
        for m, n, rank in PAIRS
        for shape in ((m, rank), (rank, n))
    ]
    optimizer = OPTIMIZERS[name]([{"params": factors, "factors": True}])
    with patch.object(optimizers, STEPS[name], wraps=getattr(optimizers, STEPS[name])) as step:
        for update in range(1, 8):
            if update == 6:
                factors[2].data[:, 1] = 0
            for left, right in zip(factors[::2], factors[1::2], strict=True):
                gradient = torch.randn(len(left), right.shape[1], generator=generator)
                left.grad, right.grad = gradient @ right.detach().mT, left.detach().mT @ gradient
            optimizer.step()
    ended = {f"{index:02}": factor.detach() for index, factor in enumerate(factors)}
    average = "exp_avg" if name in ("factor", "tangent") else "momentum"
    averages = {f"{index:02}.average": optimizer.state[factor][average] for index, factor in enumerate(factors)}
    num_stepped = sum(len(call.args[0][0]) for call in step.call_args_list)
    counts = {"num_recovered": optimizer.num_recovered(), "num_stepped": num_stepped}
    return ended | averages | {key: torch.tensor(count) for key, count in counts.items()}


def main() -> None:
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    warnings.simplefilter("error")  # as in the tests of one process
    for name in names:
        save_file(train(name), Path(folder) / f"{name}_{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
