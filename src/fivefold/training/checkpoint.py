"""Checkpoints: folders that stand alone and appear, change places and vanish by single renames, complete or not at all.

    step_000500/    model.safetensors, config.json, tokenizer files, run.yaml, optimizer.pt, loop.json, manifest.json
    last, best      relative links to the newest one and to the one with the lowest held-out loss
    final/          the finished model: the same without optimizer.pt
    .writing-NAME   being written; .replaced-NAME: making room for a new NAME; .deleting-NAME: on its way out

A process may die between any two instructions: `clean_leftovers` then puts the folder in order, and what it leaves is
found by `find_last_checkpoint`. Only one process (rank 0) writes.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
import yaml
from safetensors import SafetensorError

from fivefold.adapters.attach import holds_adapter
from fivefold.adapters.folder import load_adapter_weights
from fivefold.errors import CheckpointError
from fivefold.lowrank import store

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1

_WRITING, _REPLACED, _DELETING = ".writing-", ".replaced-", ".deleting-"
_STEP_NAME = re.compile(r"step_(\d{6,})")


class Saveable(Protocol):
    """A model or tokenizer that writes itself into a folder, as transformers' do."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write everything needed to load it again."""
        ...


class Stateful(Protocol):
    """An optimizer or gradient scaler: state out, state in."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take over what `state_dict` gave."""
        ...


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model: Saveable,
    tokenizer: Saveable,
    optimizer: Stateful,
    loop_state: dict[str, Any],
    run_settings: dict[str, Any],
    eval_loss: float | None = None,
    grad_scaler: Stateful | None = None,
) -> Path:
    """Write `run_dir/step_<step>` by one atomic rename, then move the pointers `last` and `best`.

    A checkpoint of the same step is replaced.

    Args:
        run_dir: folder of the run, made if missing.
        step: optimizer steps made.
        model: unwrapped (no DDP, no compile), float32 weights as they are in memory.
        tokenizer: saved beside the model.
        optimizer: its state goes to optimizer.pt.
        loop_state: tokens seen, reader state and the like; must be JSON.
        run_settings: the resolved settings; must be YAML.
        eval_loss: held-out loss at this step, if it was measured; the lowest one becomes `best`.
        grad_scaler: fp16's loss scaler, if there is one.
    Returns:
        The checkpoint's folder.
    Raises:
        CheckpointError: writing failed; earlier checkpoints are untouched and nothing half-written stays.
    """
    loop = {"step": step, "eval_loss": eval_loss, **loop_state}
    states: dict[str, Any] = {"kind": type(optimizer).__name__, "optimizer": optimizer.state_dict()}
    if grad_scaler is not None:
        states["grad_scaler"] = grad_scaler.state_dict()

    def write(folder: Path) -> None:
        _write_model(folder, model, tokenizer, run_settings, loop)
        torch.save(states, folder / "optimizer.pt")

    folder = _publish(run_dir / f"step_{step:06d}", write)
    update_pointers(run_dir)
    return folder


def save_final(
    run_dir: Path,
    *,
    model: Saveable,
    tokenizer: Saveable,
    loop_state: dict[str, Any],
    run_settings: dict[str, Any],
) -> Path:
    """Write the finished model to `run_dir/final` in one atomic step; arguments and errors as `save_checkpoint`."""
    return _publish(run_dir / "final", lambda folder: _write_model(folder, model, tokenizer, run_settings, loop_state))


def verify_checkpoint(folder: Path) -> None:
    """Compare every file of a checkpoint with the manifest.

    Raises:
        CheckpointError: the folder or its manifest is missing, or a file is missing, of another size or changed.
    """
    for name, expected in _read_manifest(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, though the checkpoint's {MANIFEST} lists it.")
        size = file.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{file} has {size} bytes, but the checkpoint's {MANIFEST} says {expected['size']}.")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} was changed or damaged: its checksum is not the one in {MANIFEST}.")


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Copy the weights of a checkpoint into `model`, shared tensors included.

    Raises:
        CheckpointError: unreadable, or the weights of another architecture.
    """
    try:
        if holds_adapter(model):
            load_adapter_weights(model, folder)
        else:
            store.load_weights(model, folder)
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}; resume with the settings in its run.yaml.") from error


def load_training_state(folder: Path, optimizer: torch.optim.Optimizer, grad_scaler: Stateful | None = None) -> dict:
    """Give the optimizer (and the loss scaler) the state saved in a checkpoint.

    Only the state is taken over; learning rate, betas and decay stay as this run's settings have them, so that a flag
    that was changed for the resumed run is not silently undone.

    Returns:
        The loop state: what was passed to `save_checkpoint`, with `step` and `eval_loss`.
    Raises:
        CheckpointError: unreadable, or the state of another model or optimizer.
    """
    try:
        loop = json.loads((folder / "loop.json").read_text(encoding="utf-8"))
        states = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"loop.json and optimizer.pt in {folder} cannot be read: missing, damaged or not fivefold's."
        ) from error
    _load_optimizer(folder, optimizer, states)
    if grad_scaler is not None:
        if "grad_scaler" not in states:
            raise CheckpointError(
                f"{folder} holds no loss scaler: it was not trained in float16, resume with its dtype."
            )
        grad_scaler.load_state_dict(states["grad_scaler"])
    return loop


def find_last_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, or None; by step, whatever the pointer `last` says.

    Reads only. Call `clean_leftovers` first (on one process) where a killed run may have left something.
    """
    checkpoints = _checkpoints(run_dir)
    return checkpoints[-1] if checkpoints else None


def clean_leftovers(run_dir: Path) -> None:
    """Put a run's folder in order after a process was killed: drop the half-written, put back the half-replaced.

    Raises:
        CheckpointError: the folder cannot be changed.
    """
    if not run_dir.is_dir():
        return
    try:
        for path in sorted(run_dir.glob(f"{_REPLACED}*")):
            home = run_dir / path.name.removeprefix(_REPLACED)
            # Killed between the two renames of a replacement: the old one is still the good one.
            if home.exists():
                _delete(path)
            else:
                path.rename(home)
        for prefix in (_WRITING, _DELETING):
            for path in run_dir.glob(f"{prefix}*"):
                _remove(path)
    except OSError as error:
        raise CheckpointError(f"{run_dir} cannot be put in order after an interruption: {_one_line(error)}.") from error
    update_pointers(run_dir)


def prune_checkpoints(run_dir: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one; 0 keeps all.

    Raises:
        CheckpointError: one could not be deleted.
    """
    checkpoints = _checkpoints(run_dir)
    pointed = {(run_dir / pointer).resolve() for pointer in ("last", "best")}
    old = checkpoints[:-keep_last] if keep_last > 0 else []
    for folder in old:
        if folder.resolve() not in pointed:
            try:
                _delete(folder)
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be deleted: {_one_line(error)}.") from error


def update_pointers(run_dir: Path) -> None:
    """Point `last` at the newest checkpoint and `best` at the one with the lowest held-out loss, the earlier of equals.

    Both follow from what lies in the folder, so a pointer that a killed process left behind mends itself.

    Raises:
        CheckpointError: a pointer cannot be written.
    """
    checkpoints = _checkpoints(run_dir)
    if not checkpoints:
        return
    losses = [(loss, folder) for folder in checkpoints if (loss := _eval_loss(folder)) is not None]
    try:
        _point(run_dir / "last", checkpoints[-1])
        if losses:
            _point(run_dir / "best", min(losses, key=lambda pair: pair[0])[1])
    except OSError as error:
        raise CheckpointError(f"The pointers in {run_dir} cannot be written: {_one_line(error)}.") from error


def _write_model(
    folder: Path, model: Saveable, tokenizer: Saveable, run_settings: dict[str, Any], loop: dict[str, Any]
) -> None:
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "run.yaml").write_text(yaml.safe_dump(run_settings, sort_keys=False, allow_unicode=True), "utf-8")
    (folder / "loop.json").write_text(json.dumps(loop, indent=1), "utf-8")


def _publish(home: Path, write: Callable[[Path], None]) -> Path:
    """Fill a hidden folder with `write`, seal it with a manifest, and rename it to `home`."""
    writing = home.with_name(_WRITING + home.name)
    replaced = home.with_name(_REPLACED + home.name)
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _remove(writing)
        writing.mkdir()
        write(writing)
        _seal(writing)
        if home.exists():
            _remove(replaced)
            home.rename(replaced)
        writing.rename(home)
        _sync(home.parent)
        _remove(replaced)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch and safetensors report a full disk as errors of their own, so the kind alone does not tell.
        _take_back(home, writing, replaced)
        raise CheckpointError(
            f"{home} could not be written ({_one_line(error)}); {_free_space(home)} free there: make room or choose "
            "another output_dir; earlier checkpoints are untouched."
        ) from error
    except BaseException:
        _take_back(home, writing, replaced)
        raise
    return home


def _take_back(home: Path, writing: Path, replaced: Path) -> None:
    with suppress(OSError):
        if replaced.exists() and not home.exists():
            replaced.rename(home)
        _remove(writing)


def _seal(folder: Path) -> None:
    """Force every file to the disk, then write the manifest: a folder that has one is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        _sync(path)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": MANIFEST_FORMAT, "files": entries}, indent=1), "utf-8")
    _sync(manifest)
    for path in {folder, *(path.parent for path in files)}:
        _sync(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a checkpoint: there is no such folder.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        assert set(manifest) == {"format", "files"}
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no complete checkpoint: it has no {MANIFEST}.") from error
    except (OSError, ValueError, AssertionError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: it is no manifest written by fivefold.") from error
    if manifest["format"] != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{file} has format {manifest['format']}, but this fivefold reads format {MANIFEST_FORMAT}: use the "
            "version that wrote it."
        )
    return manifest


def _checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = []
    if run_dir.is_dir():
        for folder in run_dir.iterdir():
            match = _STEP_NAME.fullmatch(folder.name)
            if match and (folder / MANIFEST).is_file():
                found.append((int(match[1]), folder))
    return [folder for _, folder in sorted(found)]


def _eval_loss(folder: Path) -> float | None:
    # A damaged file costs the folder its chance to be the best, not the run: `verify_checkpoint` tells whoever uses it.
    try:
        loss = json.loads((folder / "loop.json").read_text(encoding="utf-8"))["eval_loss"]
    except (OSError, ValueError, KeyError):
        return None
    return loss if loss is not None and math.isfinite(loss) else None


def _load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> None:
    kind = type(optimizer).__name__
    if states["kind"] != kind:
        raise CheckpointError(
            f"{folder} holds the state of {states['kind']}, but this run uses {kind}: resume with the settings in its "
            "run.yaml."
        )
    saved, current = states["optimizer"], optimizer.state_dict()["param_groups"]
    sizes, own_sizes = ([len(group["params"]) for group in groups] for groups in (saved["param_groups"], current))
    if sizes != own_sizes:
        raise CheckpointError(
            f"The optimizer state in {folder} is of another model: its groups hold {sizes} tensors, this run's "
            f"{own_sizes}."
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": current})


def _point(pointer: Path, folder: Path) -> None:
    """Replace a relative link at one instant."""
    if pointer.is_symlink() and str(pointer.readlink()) == folder.name:
        return
    fresh = pointer.with_name(_WRITING + pointer.name)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name, target_is_directory=True)
    fresh.replace(pointer)
    _sync(pointer.parent)


def _delete(folder: Path) -> None:
    """Take a folder out of sight by one rename, then delete it."""
    deleting = folder.with_name(_DELETING + folder.name)
    _remove(deleting)
    folder.rename(deleting)
    _remove(deleting)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _free_space(path: Path) -> str:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{shutil.disk_usage(existing).free / 2**20:,.0f} MiB"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
