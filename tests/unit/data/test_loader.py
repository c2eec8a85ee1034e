"""The background loader: the right samples, in order, and no thread left behind."""

import gc
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from fivefold.data.batch_plan import BatchPlan
from fivefold.data.loader import BatchLoader, evaluation_batches
from fivefold.data.source import Source


class Numbers(Source):
    """A source whose batches are just the sample numbers."""

    samples_per_epoch = None

    def __init__(self, fail_at: int | None = None):
        self.fail_at, self.last = fail_at, -1

    def describe(self) -> str:
        return "numbers"

    def batch(self, sample_ids: np.ndarray) -> dict[str, np.ndarray]:
        self.last = int(sample_ids[-1])
        if self.fail_at is not None and self.last >= self.fail_at:
            raise OSError("the disk went away")
        return {"input_ids": sample_ids[:, None], "labels": sample_ids[:, None] * 10}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fivefold-loader"]


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_steps_come_in_order_with_the_state_behind_them(prefetch: int) -> None:
    plan = BatchPlan(micro_batch_size=2, accumulation_steps=3, world_size=2)
    with BatchLoader(Numbers(), plan, rank=1, first_step=4, prefetch=prefetch) as loader:
        for number, step in zip(range(4, 9), loader, strict=False):
            samples = torch.cat([micro_batch["input_ids"] for micro_batch in step.micro_batches])
            assert samples.dtype == torch.int64
            assert samples.ravel().tolist() == plan.sample_ids(number, 1).ravel().tolist()
            assert len(step.micro_batches) == 3
            # The state is of this step, although the thread is ahead by now.
            assert step.source_state == {"last": 12 * number + 11}
    assert not loader_threads()


def test_processes_together_see_what_one_sees() -> None:
    def samples(plan: BatchPlan, rank: int) -> set[int]:
        with BatchLoader(Numbers(), plan, rank=rank) as loader:
            step = next(loader)
        return {int(number) for micro_batch in step.micro_batches for number in micro_batch["input_ids"].ravel()}

    alone = samples(BatchPlan(8, 1, 1), 0)
    assert samples(BatchPlan(1, 8, 1), 0) == alone
    assert samples(BatchPlan(2, 2, 2), 0) | samples(BatchPlan(2, 2, 2), 1) == alone == set(range(8))


def test_an_error_reaches_the_reader_at_its_step() -> None:
    loader = BatchLoader(Numbers(fail_at=6), BatchPlan(2, 1, 1))
    assert [int(next(loader).micro_batches[0]["input_ids"][0, 0]) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(OSError, match="the disk went away"):
        next(loader)
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(loader)


def test_it_reads_no_further_than_asked() -> None:
    source = Numbers()
    with BatchLoader(source, BatchPlan(1, 1, 1), prefetch=2):
        deadline = time.monotonic() + 5
        while source.last < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert source.last == 2  # two wait in the queue, one in the thread's hand


def test_a_forgotten_loader_ends_its_thread() -> None:
    loader = BatchLoader(Numbers(), BatchPlan(1, 1, 1))
    next(loader)
    del loader
    gc.collect()
    assert not loader_threads()


def test_closing_twice_is_fine() -> None:
    loader = BatchLoader(Numbers(), BatchPlan(1, 1, 1))
    loader.close()
    loader.close()


def test_the_interpreter_ends_while_a_loader_is_open() -> None:
    program = """
import numpy as np
from fivefold.data.batch_plan import BatchPlan
from fivefold.data.loader import BatchLoader
from fivefold.data.source import Source

class Numbers(Source):
    samples_per_epoch = None
    def describe(self):
        return "numbers"
    def batch(self, sample_ids):
        return {"input_ids": sample_ids[:, None]}

loader = BatchLoader(Numbers(), BatchPlan(1, 1, 1))
print(next(loader).micro_batches[0]["input_ids"].item())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


@pytest.mark.parametrize(("num_samples", "batch_size", "world_size"), [(10, 4, 1), (10, 4, 3), (2, 8, 4), (0, 4, 1)])
def test_evaluation_has_every_sample_once(num_samples: int, batch_size: int, world_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        batches = evaluation_batches(Numbers(), num_samples, batch_size, rank=rank, world_size=world_size)
        for batch in batches:
            assert 1 <= len(batch["input_ids"]) <= batch_size
            seen += batch["input_ids"].ravel().tolist()
    assert sorted(seen) == list(range(num_samples))
