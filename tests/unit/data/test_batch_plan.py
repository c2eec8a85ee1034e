"""The division of a global batch."""

import numpy as np
import pytest

from fivefold.data.batch_plan import BatchPlan, plan_batches
from fivefold.data.settings import BatchSettings
from fivefold.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "world_size", "accumulation_steps"),
    [
        (BatchSettings(), 1, 1),
        (BatchSettings(8, 64), 1, 8),
        (BatchSettings(8, 64), 4, 2),
        (BatchSettings(8, None, 3), 2, 3),
        (BatchSettings(8, 48, 3), 2, 3),
    ],
)
def test_accumulation_follows(settings: BatchSettings, world_size: int, accumulation_steps: int) -> None:
    assert plan_batches(settings, world_size) == BatchPlan(8, accumulation_steps, world_size)


@pytest.mark.parametrize(
    ("settings", "world_size", "message"),
    [
        (BatchSettings(8, 60), 1, "give 56 or 64"),
        (BatchSettings(8, 4), 1, "give 8"),
        (BatchSettings(8, 24), 2, "give 16 or 32"),
        (BatchSettings(8, 64, 4), 1, "leave one of them out"),
    ],
)
def test_what_does_not_divide_is_refused(settings: BatchSettings, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_batches(settings, world_size)


@pytest.mark.parametrize("name", ["batch_size", "total_batch_size", "accumulation_steps"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        BatchSettings(**{name: 0})


@pytest.mark.parametrize("plan", [BatchPlan(8, 1, 1), BatchPlan(1, 8, 1), BatchPlan(4, 1, 2), BatchPlan(2, 2, 2)])
def test_every_division_covers_the_same_samples_once(plan: BatchPlan) -> None:
    assert plan.global_batch_size == 8
    for step in range(3):
        mine = [plan.sample_ids(step, rank) for rank in range(plan.world_size)]
        assert all((np.diff(samples.ravel()) > 0).all() for samples in mine), "a stream needs rising numbers"
        together = np.sort(np.concatenate([samples.ravel() for samples in mine]))
        np.testing.assert_array_equal(together, np.arange(8 * step, 8 * step + 8))
