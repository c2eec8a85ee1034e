import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """A run folder as training leaves it, without checkpoints."""

    def evaluation(step: int, loss: float, seconds: float) -> dict:
        perplexities = {"eval_perplexity": math.exp(loss), "eval_galore_perplexity": math.exp(0.9 * loss)}
        return {"step": step, "eval_loss": loss, "eval_tokens": 70, **perplexities, "seconds": seconds}

    def build(folder: Path, *, steps: int = 50, evaluations: bool = True, settings=None):
        folder.mkdir(parents=True)
        lines = [evaluation(0, 9.0, 0.5)] if evaluations else []
        for step in range(1, steps + 1):
            lines.append(
                {
                    "step": step,
                    "loss": 9.0 / step,
                    "learning_rate": 1e-3,
                    "grad_norm": None if step == 2 else 0.5,
                    "tokens_seen": 100 * step,
                    "tokens_per_second": 1000.0 + step,
                    "seconds": 0.1 * step,
                    "memory_bytes": 3 * 2**20,
                }
            )
        if evaluations:
            lines.append(evaluation(steps, 2.5, 0.1 * steps + 1))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "run.yaml").write_text(yaml.safe_dump(settings or {"lr": 1e-3}, allow_unicode=True))
        return folder

    return build
