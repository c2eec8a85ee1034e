"""The learning rate over a run: one pure function from the step to a factor of the peak rate."""

import math
from collections.abc import Callable

from fivefold.errors import ConfigError
from fivefold.training.settings import ScheduleSettings

# With no warm-up there is no natural time scale for 1/sqrt(step); T5's own warm-up of 10,000 steps stands in.
_INVERSE_SQRT_TIMESCALE = 10_000


def warmup_length(total_steps: int, settings: ScheduleSettings) -> int:
    """Number of warm-up steps: the one or the part of the run that was set, or a tenth of the run, at most 1000.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    if settings.warmup_ratio is not None:
        return math.ceil(settings.warmup_ratio * total_steps)
    if settings.warmup_steps is None:
        return min(1000, total_steps // 10)
    if settings.warmup_steps > total_steps:
        raise ConfigError(
            f"warmup_steps is {settings.warmup_steps}, longer than the run of {total_steps} steps: "
            "lower warmup_steps or raise num_training_steps."
        )
    return settings.warmup_steps


def lr_factor(step: int, total_steps: int, settings: ScheduleSettings) -> float:
    """Factor of the peak learning rate with which update number `step` (from 0) is made.

    With t = step + 1, T = total_steps, W = warm-up steps, m = min_lr_ratio and p = (t - W) / (T - W):

        warm-up, t <= W    t / W
        cosine             m + (1 - m) (1 + cos(pi p)) / 2   Source: SGDR (arXiv:1608.03983), eq. 5, one cycle
        linear             m + (1 - m) (1 - p)
        inverse_sqrt       max(m, sqrt(W / t)), where W = 0: max(m, 1 / sqrt(1 + t / 10000))
                           Source: T5 (arXiv:1910.10683), 3.1.2
        wsd                1, then over the last D = decay_frac T steps m + (1 - m) (1 - sqrt((t - (T - D)) / D))
                           Source: MiniCPM (arXiv:2404.06395), 4; the 1-sqrt shape: arXiv:2405.18392, 3
        constant           1
        cosine_restart     the cosine, times a short ramp after each restart: see `_cosine_restart`

    Differs: counting from t = 1 makes the first step's rate positive and the last one's exactly the floor; elsewhere
    the first warm-up step is commonly spent at rate 0 and the floor is never reached.

    Args:
        step: updates already made, 0 <= step < total_steps.
        total_steps: length of the run.
        settings: the schedule.
    Returns:
        A factor in (0, 1], or [0, 1] where min_lr_ratio is 0.
    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    warmup = warmup_length(total_steps, settings)
    if settings.scheduler == "cosine_restart":
        return _cosine_restart(step, total_steps, warmup, settings)
    if step < warmup:
        return (step + 1) / warmup
    return _SHAPES[settings.scheduler](step + 1, total_steps, warmup, settings)


def _with_floor(shape: float, settings: ScheduleSettings) -> float:
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape


def _progress(time: float, total_steps: int, warmup: int) -> float:
    # At most 1: cosine_restart can shift the time past the end, where a cosine would rise again.
    return min(1.0, (time - warmup) / max(1, total_steps - warmup))


def _cosine(time: float, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    return _with_floor(0.5 * (1 + math.cos(math.pi * _progress(time, total_steps, warmup))), settings)


def _linear(time: float, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    return _with_floor(1 - _progress(time, total_steps, warmup), settings)


def _inverse_sqrt(time: float, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    timescale = warmup or _INVERSE_SQRT_TIMESCALE
    return max(settings.min_lr_ratio, math.sqrt(timescale / (time - warmup + timescale)))


def _wsd(time: float, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    decay_steps = min(round(settings.decay_frac * total_steps), total_steps - warmup)
    decayed = time - (total_steps - decay_steps)
    return 1.0 if decayed <= 0 else _with_floor(1 - math.sqrt(decayed / decay_steps), settings)


def _constant(time: float, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    return 1.0


def _cosine_restart(step: int, total_steps: int, warmup: int, settings: ScheduleSettings) -> float:
    """The "jagged cosine": a cosine that ramps up anew after every restart.

    Source: ReLoRA (arXiv:2307.05695), 3, and the code of LORO (ICLR 2025). With F = cosine_restart_freq,
    R = cosine_restart_warmup and a = lr_adjust_steps: the cosine is read at t + a; the warm-up climbs linearly to
    its start; a restart is every step at which step + a (during the warm-up: step) is a multiple of F, and the r-th one
    after one, from r = 0, is multiplied by min(1, (r + 1) / R). A reset of the optimizer's state after every F updates
    is thus followed by a small learning rate.
    With a = -W the cosine still climbs for W steps after the warm-up and ends above its floor, as published.

    Differs: LORO's code warms up from min_lr_ratio instead of 0, spends the first step of each ramp at a rate of 1e-6,
    lets the ramp climb to the cosine at the restart instead of the current one (almost the same), and for a > 0 lets
    the cosine rise again after its end.
    """
    in_warmup = step < warmup
    if in_warmup:
        envelope = (step + 1) / warmup * _cosine(warmup + settings.lr_adjust_steps, total_steps, warmup, settings)
    else:
        envelope = _cosine(step + 1 + settings.lr_adjust_steps, total_steps, warmup, settings)
    assert settings.cosine_restart_freq is not None, "checked by ScheduleSettings"
    shifted = step if in_warmup else step + settings.lr_adjust_steps
    restarts, since_restart = divmod(shifted, settings.cosine_restart_freq)
    if restarts < 1 or (in_warmup and settings.lr_jag_after_warmup):
        return envelope
    return envelope * min(1.0, (since_restart + 1) / settings.cosine_restart_warmup)


_SHAPES: dict[str, Callable[[float, int, int, ScheduleSettings], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "constant": _constant,
}
