"""How much is saved when a main text is read once for all its branches: a training step against independent sequences.

python benchmarks/branches.py [--layers 30] [--rounds 3] [--threads 2] [--output FILE]

A decoder of SmolLM2-135M's shape with random weights and LoRA of rank 8 on all linear layers, in float32: forward and
backward pass of one main text of M tokens with B branches of L tokens each, all branches learned, through
`BranchObjective`; and of the same B texts [main | branch], whose main parts are not learned and do not go through the
output layer, as rows of transformers' own model, four at a time. Both give the same loss and gradients, which is
checked. The bound is the ratio of the tokens, B (M + L) / (M + B L). The two take turns in one process; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import measured_on
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from fivefold.branches.model import prepare_for_branches
from fivefold.branches.settings import BranchScheme
from fivefold.data.branch_layout import Branch, branch_batch, branch_layout
from fivefold.data.loader import tensors
from fivefold.objectives.branches import BranchObjective
from fivefold.objectives.settings import LossSettings

SHAPES = ((512, 64, 8), (1024, 128, 16), (128, 256, 4))
VOCAB_SIZE, ROWS = 49152, 4


def smollm2_shape(num_layers: int) -> Any:
    """Random weights, an adapter that is not at zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), lora)


def measured(model: Any, losses: Callable[[], Iterator[Any]], seconds: list[float]) -> tuple[float, torch.Tensor]:
    """Loss and gradient, flat, of the sum of some losses; the time is added to `seconds`."""
    model.zero_grad(set_to_none=True)
    start, total = time.perf_counter(), 0.0
    for loss in losses():
        loss.backward()
        total += float(loss.detach())
    seconds.append(time.perf_counter() - start)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return total, torch.cat(gradients)


def row(num_layers: int, shape: tuple[int, int, int], rounds: int) -> str:
    """One shape's line."""
    main_length, length, count = shape
    numbers = np.random.default_rng(0)
    main, *branches = (numbers.integers(3, VOCAB_SIZE, size) for size in (main_length, *[length] * count))
    together, alone = smollm2_shape(num_layers), smollm2_shape(num_layers)
    scheme = BranchScheme(rope_2d_ratio=0.0)
    prepare_for_branches(together.get_base_model(), scheme)
    layout = branch_layout(main, [Branch(ids) for ids in branches], learns_main=False)
    batch = tensors(branch_batch([layout], 0))
    objective = BranchObjective(LossSettings(), scheme)
    rows = torch.from_numpy(np.stack([np.concatenate([main, ids]) for ids in branches]))

    def shared() -> Iterator[Any]:
        yield objective(together, batch).loss_sum

    def independent() -> Iterator[Any]:
        for some in rows.split(ROWS):
            logits = alone(input_ids=some, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
            targets = some[:, main_length:].flatten()
            yield torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")

    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        ours, our_gradient = measured(together, shared, times[0])
        theirs, their_gradient = measured(alone, independent, times[1])
        if number == 0:  # warms up, and is checked
            assert abs(ours - theirs) <= 1e-5 * abs(theirs)
            difference = float((our_gradient - their_gradient).norm() / their_gradient.norm())
            for seconds in times:
                seconds.clear()
    together_s, alone_s = (statistics.median(seconds) for seconds in times)
    bound = count * (main_length + length) / (main_length + count * length)
    gain = alone_s / together_s
    cells = [str(shape), f"{alone_s:.2f} s", f"{together_s:.2f} s", f"**{gain:.2f}x**", f"{bound:.2f}x"]
    return f"| {' | '.join([*cells, f'{gain / bound:.0%}', f'{difference:.0e}'])} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"SmolLM2-135M's shape with {arguments.layers} layers, LoRA of rank 8, float32, {arguments.threads} thread(s): "
        "forward and backward pass.",
        "",
        measured_on("transformers", "peft"),
        "",
        "| main, branch, branches | independent | shared | gain | bound | of the bound | gradients differ by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(arguments.layers, shape, arguments.rounds) for shape in SHAPES),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
