"""The processes of a run: one by itself, or several started by `torchrun`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on this process's device, its gradients averaged over processes if there are several."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def without_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Hold back the exchange of gradients, for all micro-batches of a step but the last."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def sum(self, *values: float | Tensor) -> list[float]:
        """Each value summed over all processes."""
        return self.sum_tensor(torch.stack([torch.as_tensor(value).detach().double() for value in values])).tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all processes, on this one's device."""
        total = tensor.to(self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def start_processes() -> Iterator[Processes]:
    """Join the group that `torchrun` described in the environment, or be alone; gloo on CPUs, NCCL on GPUs."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(_own_device())
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield this_process()
        return
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield this_process()
    finally:
        dist.destroy_process_group()


def this_process() -> Processes:
    """Where this process stands, for code between `start_processes` and its end."""
    if not dist.is_initialized():
        return Processes(0, 1, _own_device())
    return Processes(dist.get_rank(), dist.get_world_size(), _own_device())


def _own_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
