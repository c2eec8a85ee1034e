import math

import pytest
import torch
from transformers import (
    TrainingArguments,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from fivefold.errors import ConfigError
from fivefold.training.schedule import lr_factor, warmup_length
from fivefold.training.settings import ScheduleSettings

TOTAL = 200


def factors(total: int = TOTAL, **settings) -> list[float]:
    schedule = ScheduleSettings(**settings)
    return [lr_factor(step, total, schedule) for step in range(total)]


def reference_factors(build, total: int = TOTAL, **settings) -> list[float]:
    """What a torch scheduler sets for its steps 1..total: ours counts from one, theirs spends step 0 at rate 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer, **settings)
    found = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


@pytest.mark.parametrize("warmup", [0, 1, 17])
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_cosine_is_transformers_cosine(warmup, min_lr_ratio):
    ours = factors(scheduler="cosine", warmup_steps=warmup, min_lr_ratio=min_lr_ratio)
    theirs = reference_factors(
        get_cosine_with_min_lr_schedule_with_warmup,
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
        min_lr_rate=min_lr_ratio,
    )
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 17])
def test_linear_is_transformers_linear(warmup):
    ours = factors(scheduler="linear", warmup_steps=warmup, min_lr_ratio=0.0)
    theirs = reference_factors(get_linear_schedule_with_warmup, num_warmup_steps=warmup, num_training_steps=TOTAL)
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 17])
def test_inverse_sqrt_is_transformers_inverse_sqrt(warmup):
    ours = factors(scheduler="inverse_sqrt", warmup_steps=warmup, min_lr_ratio=0.0)
    assert ours == pytest.approx(reference_factors(get_inverse_sqrt_schedule, num_warmup_steps=warmup), abs=1e-12)


def test_inverse_sqrt_is_the_rate_of_t5_after_warm_up():
    # T5: 1 / sqrt(max(t, 10,000)), a peak of 1e-2.
    schedule = ScheduleSettings(scheduler="inverse_sqrt", warmup_steps=10_000, min_lr_ratio=0.0)
    for step in (9_999, 19_999, 499_999):
        assert 1e-2 * lr_factor(step, 1_000_000, schedule) == pytest.approx(1 / math.sqrt(step + 1), rel=1e-12)


def test_inverse_sqrt_stops_at_its_floor():
    assert factors(scheduler="inverse_sqrt", warmup_steps=1, min_lr_ratio=0.5)[3:] == [0.5] * (TOTAL - 3)


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_wsd_is_transformers_wsd_after_warm_up(min_lr_ratio):
    ours = factors(scheduler="wsd", warmup_steps=20, min_lr_ratio=min_lr_ratio, decay_frac=0.25)
    theirs = reference_factors(
        get_wsd_schedule,
        num_warmup_steps=20,
        num_decay_steps=50,
        num_training_steps=TOTAL,
        decay_type="1-sqrt",
        min_lr_ratio=min_lr_ratio,
    )
    assert ours[19:] == pytest.approx(theirs[19:], abs=1e-12)


def test_wsd_that_only_decays():
    # (1 - sqrt(t / 4)) for t = 1..4
    found = factors(4, scheduler="wsd", warmup_steps=0, min_lr_ratio=0.0, decay_frac=1.0)
    assert found == pytest.approx([0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0.0])


def test_constant_is_warm_up_then_one():
    assert factors(6, scheduler="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "wsd", "cosine_restart"])
@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_first_step_moves_and_last_step_ends_at_the_floor(scheduler, warmup):
    restarts = {"cosine_restart_freq": 60} if scheduler == "cosine_restart" else {}
    found = factors(scheduler=scheduler, warmup_steps=warmup, min_lr_ratio=0.1, **restarts)
    assert found[0] == pytest.approx(1 / warmup) if warmup else found[0] > 0.9
    assert found[-1] == pytest.approx(0.1)
    assert max(found) <= 1.0


def published_jagged_cosine(step: int, *, total: int, warmup: int, every: int, ramp: int, floor: float, shift: int):
    """The reference's jagged cosine, written down from its code; `step` counts updates made, from 0."""

    def cosine(position: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * position / (total - warmup)))

    if step < warmup:
        peak = cosine(-shift)
        count, since = divmod(step, every)
        if since < ramp and count != 0:
            return since / ramp * (count * every / warmup * (peak - floor) + floor - 1e-6) + 1e-6
        return step / warmup * (peak - floor) + floor
    count, since = divmod(step + shift, every)
    if since < ramp and count > 0:
        return since / ramp * (floor + (1 - floor) * cosine(count * every - warmup) - 1e-6) + 1e-6
    return floor + (1 - floor) * cosine(step + shift - warmup)


@pytest.mark.parametrize("shift", [0, -1000])
def test_cosine_restart_is_the_published_jagged_cosine(shift):
    total, warmup, every, ramp, floor = 10_000, 1000, 500, 5, 0.1
    schedule = ScheduleSettings("cosine_restart", warmup, floor, every, ramp, shift)
    restarts = set()
    for step in range(total):
        ours = lr_factor(step, total, schedule)
        theirs = published_jagged_cosine(
            step, total=total, warmup=warmup, every=every, ramp=ramp, floor=floor, shift=shift
        )
        since = step % every
        if step >= every and since < ramp and theirs < 0.9 * lr_factor(step + ramp, total, schedule):
            restarts.add(step - since)
            # Ours has ramps of (r + 1) / R where the published one has r / R.
            assert 0 <= ours - theirs <= 1 / ramp + 0.01
        elif step >= warmup:
            # One step further on the cosine: its steepest slope is pi / 2 / 9000 a step.
            assert ours == pytest.approx(theirs, abs=2e-4)
        else:
            # Warm-up from 0, not from the floor.
            assert -floor <= ours - theirs <= 0.01
    first = 500
    skipped = {1000} if shift else set()  # the shifted clock starts anew after the warm-up, with restart number 0
    assert restarts == set(range(first, total, every)) - skipped


def test_cosine_restart_by_hand():
    found = factors(8, scheduler="cosine_restart", warmup_steps=0, min_lr_ratio=0.0, cosine_restart_freq=4,
                    cosine_restart_warmup=2)  # fmt: skip
    cosine = [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(1, 9)]
    assert found == pytest.approx([*cosine[:4], cosine[4] / 2, *cosine[5:]])


def test_no_restart_during_warm_up_when_asked():
    common = {"scheduler": "cosine_restart", "warmup_steps": 20, "cosine_restart_freq": 10}
    with_restarts, without = factors(**common), factors(**common, lr_jag_after_warmup=True)
    assert with_restarts[10] < with_restarts[9]
    assert without[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert with_restarts[20:] == without[20:]


def test_a_cosine_shifted_past_its_end_stays_at_the_floor():
    found = factors(scheduler="cosine_restart", warmup_steps=0, cosine_restart_freq=1000, lr_adjust_steps=50)
    assert found[-50:] == pytest.approx([0.1] * 50)


@pytest.mark.parametrize(("total", "warmup"), [(5, 0), (500, 50), (50_000, 1000)])
def test_default_warm_up_is_a_tenth_at_most_1000(total, warmup):
    assert warmup_length(total, ScheduleSettings()) == warmup


def test_a_warm_up_as_long_as_the_run_never_leaves_it_and_a_longer_one_is_refused():
    assert factors(4, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ConfigError, match="warmup_steps is 5, longer than the run of 4 steps"):
        factors(4, warmup_steps=5)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("total", [1, 33, 100])
def test_a_ratio_warms_up_for_as_many_steps_as_with_transformers(ratio, total):
    theirs = TrainingArguments(output_dir="unused", warmup_steps=ratio, use_cpu=True).get_warmup_steps(total)
    assert warmup_length(total, ScheduleSettings(warmup_ratio=ratio)) == theirs
