"""Kill a checkpoint writer before a line it runs, at many lines, and check what it leaves; prints a JSON report.

    python kill_writer.py FOLDER [TRIALS]      without TRIALS: every line (a minute)

Every trial is a forked child that saves steps 1, 2, 2 again and 3, pruning to one checkpoint after each, and sends
itself SIGKILL before one line of checkpoint.py, shutil or its own writing, drawn by a seeded clock. The parent then
does what a resumed run does, and checks that

- every checkpoint in sight is complete, the newest no older than what was finished before the kill,
- `last` and, once step 1 was there, `best` lead to complete checkpoints,
- nothing hidden is left.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from fivefold.errors import FivefoldError
from fivefold.training import checkpoint

TRACED = {checkpoint.__file__, shutil.__file__, __file__}
STEPS = (1, 2, 2, 3)
LOSSES = {1: 1.0, 2: 3.0, 3: 2.0}  # step 1 stays the best, so pruning must keep it


class Writer:
    """Stands for model, tokenizer and optimizer: a file written in pieces."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: str) -> None:
        with (Path(folder) / self.name).open("wb", buffering=0) as stream:
            for piece in range(4):
                stream.write(bytes([piece]) * 1000)

    def state_dict(self) -> dict[str, int]:
        return {"step": 1}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        pass


def write_run(run_dir: Path, progress: Path) -> None:
    for count, step in enumerate(STEPS, start=1):
        checkpoint.save_checkpoint(
            run_dir,
            step,
            model=Writer("model.bin"),
            tokenizer=Writer("tokenizer.bin"),
            optimizer=Writer("unused"),
            loop_state={"count": count},
            run_settings={},
            eval_loss=LOSSES[step],
        )
        progress.write_text(str(step))
        checkpoint.prune_checkpoints(run_dir, keep_last=1)


def run_child(run_dir: Path, progress: Path, kill_at: int | None) -> int:
    """Line events seen, in a child that is killed before number `kill_at`."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return trace

    sys.settrace(trace)
    write_run(run_dir, progress)
    sys.settrace(None)
    return seen


def check(run_dir: Path, finished: int) -> str | None:
    try:
        checkpoint.clean_leftovers(run_dir)
        newest = checkpoint.find_last_checkpoint(run_dir)
        if newest is None:
            return "no checkpoint left" if finished else None
        for folder in run_dir.glob("step_*"):
            checkpoint.verify_checkpoint(folder)
        if int(newest.name.removeprefix("step_")) < finished:
            return f"went back from step {finished} to {newest.name}"
        if (run_dir / "last").resolve() != newest.resolve():
            return "last does not lead to the newest"
        checkpoint.verify_checkpoint(run_dir / "best")
        if (run_dir / "best").resolve().name != "step_000001":
            return "best does not lead to the best"
    except FivefoldError as error:
        return str(error)
    hidden = [path.name for path in run_dir.iterdir() if path.name.startswith(".")]
    return f"left behind: {hidden}" if hidden else None


def main(folder: Path, trials: int | None = None) -> None:
    total = run_child(folder / "whole", folder / "whole-progress", None)
    moments = range(total) if trials is None else sorted(random.Random(0).sample(range(total), trials))
    failures, kills, half_written = [], 0, 0
    for kill_at in moments:
        run_dir, progress = folder / "run", folder / "progress"
        progress.write_text("0")
        child = os.fork()
        if child == 0:
            run_child(run_dir, progress, kill_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)  # one that finished before its kill is checked, but does not count
        half_written += any(run_dir.glob(".*")) if run_dir.is_dir() else 0
        problem = check(run_dir, int(progress.read_text() or 0))
        if problem:
            failures.append(f"{kill_at}: {problem}")
        shutil.rmtree(run_dir, ignore_errors=True)
    print(json.dumps({"kills": kills, "kills_with_a_half_written_folder": half_written, "failures": failures[:20]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
