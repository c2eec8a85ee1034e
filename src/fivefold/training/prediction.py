"""What a dry run says about memory and time: memory as it is counted, time by an assumption."""

from fivefold.training.settings import LoopSettings
from fivefold.training.step_cost import StepCost

PEAK_TFLOPS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "A40": 150,
    "A30": 165,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX A6000": 155,
    "RTX 3090": 71,
    "RTX 4090": 165,
    "RTX 5090": 209,
}
"""Dense bfloat16 TFLOP/s with float32 sums, from the makers' data sheets, by what the card's name contains; the first
one that it contains is meant."""

UTILISATIONS = (0.4, 0.2)
"""Shares of its peak that a card is assumed to reach. It depends on the model, the kernels and the machine."""

_SHOWN = ("RTX 3090", "RTX 4090", "A100", "H100")
_STEPS_WITHOUT_END = 1000
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def describe_cost(cost: StepCost, loop: LoopSettings, world_size: int) -> str:
    """Memory and work of a step, and how long a run would take on some GPUs.

    Args:
        cost: of one process.
        loop: its steps, if their number is known already, and its dtype.
        world_size: processes, each on a GPU of its own.
    """
    held = [f"weights {_gib(cost.weights)}", f"gradients {_gib(cost.gradients)}", f"optimizer {_gib(cost.optimizer)}"]
    memory = f"memory         {_gib(cost.memory)} GiB: {', '.join(held)}, "
    if cost.activations is None or cost.flops is None:
        return f"{memory}and activations, which nobody can tell of this model"
    lines = [
        f"{memory}kept for the backward pass {_gib(cost.activations)}",
        f"work           {_short(cost.flops / 1e12)} TFLOP a step, {cost.tokens * world_size:,} tokens at most",
    ]
    if loop.dtype == "float32":  # whose peaks are others
        return "\n".join(lines)
    steps = _STEPS_WITHOUT_END if loop.epochs is not None else loop.total_steps
    shares = " .. ".join(f"{share:.0%}" for share in UTILISATIONS)
    lines.append(f"time           of {steps:,} steps, if the GPU reaches {shares} of its peak:")
    for card in _SHOWN:
        seconds = [cost.flops / (PEAK_TFLOPS[card] * 1e12 * share) for share in UTILISATIONS]
        unit, size = next((unit for unit in _UNITS if steps * seconds[0] >= 2 * unit[1]), _UNITS[-1])
        durations = " .. ".join(_short(steps * second / size) for second in seconds)
        rates = " .. ".join(_short(cost.tokens * world_size / second * 86.4e-3) for second in seconds)
        peak = f"{card}, {PEAK_TFLOPS[card]} TFLOP/s"
        lines.append(f"{'':15}{peak:23}{durations} {unit}; {rates} million tokens a day")
    return "\n".join(lines)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}"


def _short(number: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
