"""What a run tells while it runs: log.jsonl, TensorBoard, Weights & Biases on request, and a progress bar on stderr."""

import errno
import json
import math
import os
import platform
import resource
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from fivefold.errors import CheckpointError, ConfigError, DataError
from fivefold.training.settings import LoopSettings

LOG_NAME = "log.jsonl"
HARDWARE_NAME = "hardware.json"

# What differs between two equal runs; every other key of the log is the same after `kill -9` and `--resume`.
TIMING_KEYS = frozenset({"tokens_per_second", "seconds", "memory_bytes"})


class Telemetry:
    """The run's log and progress bar; on every process but the first it does nothing.

    Lines of log.jsonl, one a logged step and one an evaluation (`step` counts updates made):
        {"step", "loss", "learning_rate", "grad_norm", "tokens_seen", "tokens_per_second", "seconds", "memory_bytes",
         "input_nonpadding_frac", "target_nonpadding_frac"}
        {"step", "eval_loss", "eval_tokens", "eval_perplexity", "eval_galore_perplexity", "seconds"}
    `eval_loss` is the mean over tokens and `eval_perplexity` e to it; `eval_galore_perplexity` is e to the sum of the n
    batches' means over n + 1, as GaLore's script prints it: it depends on the batch size, and serves to compare tables.
    Tokens are counted without padding; the two shares say how much of the rows is none. `seconds` runs from the start
    of the run, over resumes; `tokens_per_second` leaves out what happened inside `paused`; `memory_bytes` is the peak,
    of the GPU where there is one. A number that is not finite is null.

    Use it as a context manager: leaving it closes the files and the bar, also after an error.

    Args:
        run_dir: folder of the run, made if missing.
        total_steps: steps of the whole run.
        settings: the wandb fields are used here; how often to log is the loop's matter.
        run_settings: the resolved settings, shown by wandb.
        start_step: step of the checkpoint resumed from; whatever the log holds beyond it is dropped. 0 starts anew.
        tokens_seen: tokens seen up to start_step.
        enabled: false on all processes but the first.
    Raises:
        ConfigError: run_dir cannot be used, or wandb is asked for but not installed or refuses to start.
        DataError: the log to go on with is damaged.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        settings: LoopSettings,
        *,
        run_settings: dict[str, Any] | None = None,
        start_step: int = 0,
        tokens_seen: int = 0,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_dir {run_dir} cannot be made: {error.strerror}.") from error
        self._wandb = _start_wandb(run_dir, settings, run_settings, start_step) if settings.use_wandb else None
        kept = cut_log(run_dir / LOG_NAME, start_step)
        _write_whole(run_dir / HARDWARE_NAME, json.dumps(describe_hardware(), indent=1))

        from torch.utils.tensorboard import SummaryWriter

        # Events of the killed run beyond the checkpoint are hidden, and all of them where a run starts anew.
        purge_step = start_step + 1 if start_step else 0
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step, flush_secs=30)
        # Unbuffered: a line goes out whole in one write, and on a full disk nothing waits to fail again at closing.
        self._log = (run_dir / LOG_NAME).open("ab", buffering=0)
        self._progress = _Progress(total_steps, start_step)
        self._tokens_seen = tokens_seen
        self._seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self._started = self._mark = time.perf_counter()
        self._paused_since_mark = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` updates made; costs nothing, so call it at every step."""
        if self.enabled:
            self._progress.advance(step)

    def log_step(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        tokens_seen: int,
        input_nonpadding_frac: float | None = None,
        target_nonpadding_frac: float | None = None,
        recovered_factors: int | None = None,
        **others: float,
    ) -> None:
        """Write one line for the step just made.

        Args:
            step: updates made, from 1.
            loss: mean over the step's tokens, of all processes.
            learning_rate: the one the step was made with.
            grad_norm: before clipping.
            tokens_seen: by all processes since the start of the run.
            input_nonpadding_frac: share of the step's input positions that hold tokens and no padding.
            target_nonpadding_frac: the same for targets; None for a decoder, which has none of their own.
            recovered_factors: near-singular low-rank layers whose step was damped or left out since the last line.
            others: what else the objective measured.
        """
        if not self.enabled:
            return
        now = time.perf_counter()
        elapsed = now - self._mark - self._paused_since_mark
        tokens_per_second = (tokens_seen - self._tokens_seen) / max(elapsed, 1e-9)
        self._mark, self._paused_since_mark, self._tokens_seen = now, 0.0, tokens_seen
        measured = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_seen": tokens_seen,
            "tokens_per_second": round(tokens_per_second, 1),
            "seconds": self._seconds(),
            "memory_bytes": peak_memory_bytes(),
        }
        optional = {
            "input_nonpadding_frac": input_nonpadding_frac,
            "target_nonpadding_frac": target_nonpadding_frac,
            "recovered_factors": recovered_factors,
        }
        measured |= {name: value for name, value in optional.items() if value is not None} | others
        self._write("train", step, measured)
        self._progress.show(step, f"loss {loss:.4f}", f"lr {learning_rate:.2e}", f"{tokens_per_second:,.0f} tokens/s")

    def log_evaluation(
        self,
        step: int,
        *,
        eval_loss: float,
        eval_tokens: int | None = None,
        eval_perplexity: float | None = None,
        eval_galore_perplexity: float | None = None,
        **others: float,
    ) -> None:
        """Write one line for an evaluation.

        Args:
            step: updates made.
            eval_loss: mean over the held-out tokens, or over whatever the objective counts.
            eval_tokens: how many they are; None where it counts something else.
            eval_perplexity: e to the loss, where that is one a token.
            eval_galore_perplexity: the one that GaLore's script would print.
            others: how many terms the loss has, where these are no tokens, and what else the objective measured.
        """
        if not self.enabled:
            return
        optional = {
            "eval_tokens": eval_tokens,
            "eval_perplexity": eval_perplexity,
            "eval_galore_perplexity": eval_galore_perplexity,
        }
        measured = {name: value for name, value in optional.items() if value is not None}
        self._write("eval", step, {"eval_loss": eval_loss, **measured, **others, "seconds": self._seconds()})
        said = [f"held-out loss {eval_loss:.4f}"]
        if eval_perplexity is not None:
            said.append(f"perplexity {eval_perplexity:.5g} ({eval_galore_perplexity:.5g} as GaLore counts)")
        if eval_tokens is not None:
            said.append(f"{eval_tokens:,} tokens")
        said += [f"{name.removeprefix('eval_').replace('_', ' ')} {value:,.4g}" for name, value in others.items()]
        self.say(f"step {step:,}: {', '.join(said)}")

    def show_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Let TensorBoard show what was written at an evaluation, by name."""
        if not self.enabled:
            return
        with suppress(OSError):  # a full disk costs a picture of what stands in other files as well
            for name, text in texts.items():
                self._tensorboard.add_text(f"eval/{name}", text, step)

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Keep what happens inside (an evaluation, a checkpoint) out of tokens/s, and name it on the progress bar."""
        if not self.enabled:
            yield
            return
        begin = time.perf_counter()
        self._progress.describe(what)
        try:
            yield
        finally:
            self._progress.describe("training")
            self._paused_since_mark += time.perf_counter() - begin

    def say(self, text: str) -> None:
        """Print a line to stderr, above the progress bar."""
        if self.enabled:
            self._progress.say(text)

    def close(self) -> None:
        """Close the log, the event file and the progress bar."""
        if not self.enabled:
            return
        self._progress.close()
        self._log.close()
        with suppress(OSError):  # a full disk costs the last events, which are in the log as well
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _seconds(self) -> float:
        return round(self._seconds_before + time.perf_counter() - self._started, 3)

    def _write(self, phase: str, step: int, measured: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
        tagged = {f"{phase}/{name.removeprefix('eval_')}": value for name, value in finite.items() if value is not None}
        try:
            line = json.dumps({"step": step, **finite}).encode() + b"\n"
            if self._log.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for tag, value in tagged.items():
                self._tensorboard.add_scalar(tag, value, step)
        except OSError as error:
            raise CheckpointError(
                f"{self._log.name} cannot be written: {error.strerror}; make room, then resume."
            ) from error
        if self._wandb is not None:
            self._wandb.log(tagged, step=step)


class _Progress:
    """A bar in a terminal, a plain line a logged step anywhere else."""

    def __init__(self, total_steps: int, start_step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        self._total_steps, self._start_step = total_steps, start_step
        self._started = time.perf_counter()
        self._bar = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[status]}"), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, completed=start_step, status="")

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, *measured: str) -> None:
        status = "  ".join((*measured, self._time_left(step)))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        else:
            self.say(f"step {step:,}/{self._total_steps:,}  {status}")

    def describe(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _time_left(self, step: int) -> str:
        # Over everything since the start, evaluations and checkpoints included: those to come take time too.
        made = step - self._start_step
        seconds = (time.perf_counter() - self._started) / max(1, made) * (self._total_steps - step)
        return f"{format_duration(seconds)} left"


def read_log_lines(path: Path) -> list[dict[str, Any]]:
    """Read log.jsonl, without the last line if a killed process left it cut short.

    Raises:
        DataError: there is no such file, or a line is no JSON object with a step.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: give the folder of a training run.") from error
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} is not a line of a training log: {line[:60]!r}.") from error
        parsed.append(entry)
    return parsed


def cut_log(path: Path, start_step: int) -> list[dict[str, Any]]:
    """Drop the lines of a log beyond `start_step` (all of them at 0), in one atomic step.

    Returns:
        The lines kept.
    Raises:
        DataError: the log is damaged.
    """
    lines = read_log_lines(path) if start_step and path.exists() else []
    kept = [line for line in lines if line["step"] <= start_step]
    if path.exists():
        _write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _write_whole(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.writing")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def peak_memory_bytes() -> int:
    """Peak memory so far: allocated on the GPU where one is in use, else resident in this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def describe_hardware() -> dict[str, str | int]:
    """Name what the run runs on: for the report, and for whoever compares two runs."""
    import torch

    import fivefold

    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else _cpu_name(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fivefold": fivefold.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def format_duration(seconds: float) -> str:
    """Write a time span as people say it: 42 s, 3 min 20 s, 2 h 05 min, 1 d 03 h."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def check_wandb(settings: LoopSettings) -> None:
    """Refuse --use_wandb where wandb is not installed: to be called before anything expensive.

    Raises:
        ConfigError: wandb is asked for but not installed.
    """
    if settings.use_wandb and "wandb" not in sys.modules and find_spec("wandb") is None:
        raise ConfigError("use_wandb is set, but wandb is not installed: install fivefold[wandb] or drop the flag.")


def _start_wandb(run_dir: Path, settings: LoopSettings, run_settings: dict[str, Any] | None, start_step: int) -> Any:
    check_wandb(settings)
    import wandb  # type: ignore[import-not-found]

    id_file = run_dir / "wandb_id.txt"
    if start_step == 0 or not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    try:
        return wandb.init(
            project=settings.wandb_project,
            name=run_dir.name,
            dir=str(run_dir),
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            config=run_settings or {},
        )
    except wandb.Error as error:
        raise ConfigError(f"use_wandb is set, but wandb does not start: {' '.join(str(error).split())}") from error
