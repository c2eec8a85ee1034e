"""What the benchmarks of quality share: runs of `fivefold pretrain` on the plays of the catalogue's en_plays."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def fivefold(*words: object, threads: int = 1) -> None:
    """Run a command of ours; its output shows only if it fails."""
    command = [sys.executable, "-m", "fivefold", *map(str, words)]
    limits = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | limits)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def prepare_plays(work: Path, vocab_size: int) -> Path:
    """The tokens, in a folder that brings its tokenizer; made if they are not there yet."""
    tokenizer, tokens = work / "tokenizer", work / "tokens"
    if not tokenizer.exists():
        fivefold("tokenizer", "--data", "en_plays", "--vocab_size", vocab_size, "--output_dir", tokenizer)
    if not tokens.exists():
        fivefold(
            *["prepare", "--data", "en_plays", "--tokenizer", tokenizer, "--validation_frac", 0.05],
            *["--output_dir", tokens],
        )
    return tokens


def train(run: Path, flags: list[str], settings: dict[str, object]) -> tuple[dict[str, float], float]:
    """One run in a folder of that name, which is emptied before.

    Returns:
        Held-out losses by step, and the seconds it took.
    """
    shutil.rmtree(run, ignore_errors=True)
    settings = settings | {"output_dir": run}
    fivefold("pretrain", *flags, *(word for name, value in settings.items() for word in (f"--{name}", value)))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = {str(line["step"]): line["eval_loss"] for line in lines if "eval_loss" in line}
    return curve, [line["seconds"] for line in lines if "seconds" in line][-1]


class Runs(dict[Hashable, dict[str, Any]]):
    """Finished runs by what was varied; also lines of a file, so that a benchmark goes on where it was stopped."""

    def __init__(self, file: Path, names: Iterable[str], shown: str = "loss") -> None:
        self.file, self.names, self.shown = file, tuple(names), shown
        lines = file.read_text().splitlines() if file.exists() else []
        super().__init__((tuple(run[name] for name in self.names), run) for run in map(json.loads, lines))

    def fill(self, make: Callable[..., dict[str, Any]], wanted: list[tuple], jobs: int = 1) -> None:
        """Make the runs that are not there yet; `make` takes what was varied and returns what to remember besides."""

        def add(key: tuple) -> None:
            run = self[key] = dict(zip(self.names, key, strict=True)) | make(*key)
            with self.file.open("a") as file:
                file.write(json.dumps(run) + "\n")
            varied = (f"{name} {value}" for name, value in zip(self.names, key, strict=True))
            print(*varied, f"{self.shown} {run[self.shown]:.4f}")
            sys.stdout.flush()

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(add, [key for key in wanted if key not in self]))


def perplexity_interval(gaps: list[float]) -> str:
    """Student's interval of differences of losses, seed by seed, as ratios of perplexities."""
    student = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(gaps))
    if not gaps:
        return ""
    mean = statistics.mean(gaps)
    if student is None:
        return f"{100 * math.expm1(mean):+.1f}%"
    half = student * statistics.stdev(gaps) / math.sqrt(len(gaps))
    low, middle, high = (100 * math.expm1(value) for value in (mean - half, mean, mean + half))
    return f"{middle:+.1f}% ({low:+.1f} .. {high:+.1f})"
