"""What each step of examples/demo.py is worth: held-out accuracy with and without pretraining, with and without DPO.

python benchmarks/demo_seeds.py [--work FOLDER] [--seeds 0 1 2]  a quarter of an hour a seed on one core
python benchmarks/demo_seeds.py --report [--work FOLDER]         the table from what is there

From scratch there are two runs: with as many epochs as after pretraining, and as long as pretraining and SFT together.
Another seed is another choice of labelled reviews, other fresh weights, another order. The held-out reviews stay the
same, and a share of 1,462 of them has a standard error of one point. FOLDER/results.jsonl keeps what was measured.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import measured_on

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo

ARMS = {
    "SFT from scratch, 2 epochs": ("scratch_short", "scratch_short_dpo"),
    "SFT from scratch, equal time": ("scratch", "scratch_dpo"),
    "pretraining, SFT": ("sft", "dpo"),
}


def run_seed(work: Path, seed: int) -> dict[str, Any]:
    """All of one seed."""
    folder = work / f"seed_{seed}"
    held_out = demo.split_reviews(folder, seed)
    demo.pretrain(folder, seed)
    fresh = f"--tokenizer {folder}/tokenizer {demo.FRESH}"
    demo.teach(folder, fresh, "scratch_short", seed)
    demo.teach(folder, fresh, "scratch", seed, demo.SCRATCH_EPOCHS)
    demo.teach(folder, f"--model {folder}/run/final", "sft", seed)
    result: dict[str, Any] = {"seed": seed, "majority": demo.majority(held_out)}
    for arm, (sft, dpo) in ARMS.items():
        _, pairs = demo.prefer(folder, sft, dpo, seed)
        result[arm] = {
            "sft": demo.accuracy(folder / sft / "final", held_out),
            "dpo": demo.accuracy(folder / dpo / "final", held_out),
            "reward_accuracy": pairs["eval_reward_accuracy"],
            "reward_margin": pairs["eval_reward_margin"],
        }
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: the mean over seeds, and each seed."""
    lines = [
        f"{demo.NUM_TAUGHT:,} labelled reviews in SFT, {demo.NUM_COMPARED:,} in DPO; seeds "
        f"{', '.join(str(result['seed']) for result in results)}. Always the commoner answer: "
        f"{results[0]['majority']:.1%}.",
        "",
        "| | right after SFT | right after DPO | reward accuracy | reward margin |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        cells = []
        for name in ("sft", "dpo", "reward_accuracy", "reward_margin"):
            values = [result[arm][name] for result in results]
            form = "{:.2f}" if name == "reward_margin" else "{:.1%}"
            cells.append(f"{form.format(statistics.mean(values))} ({', '.join(map(form.format, values))})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_on("transformers")])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("demo_seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not arguments.report:
        for seed in arguments.seeds:
            if seed not in {result["seed"] for result in done}:
                done.append(run_seed(arguments.work, seed))
                with file.open("a") as results:
                    results.write(json.dumps(done[-1]) + "\n")
    print(table(sorted(done, key=lambda result: result["seed"])))


if __name__ == "__main__":
    main()
