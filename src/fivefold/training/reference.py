"""What a reference model says about pairs of answers: computed once, kept on disk under a hash of all it follows from.

Neither the file's age nor its name is trusted: it says what it was made from, and has a checksum.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.errors import DataError, ModelError
from fivefold.models.settings import Family
from fivefold.objectives.answer_logps import answer_logps
from fivefold.training.distributed import Processes

log = logging.getLogger("fivefold")

_FORMAT = "fivefold reference log-probabilities 1"
# Says where a model came from, not what it computes.
_NOT_HASHED = ("_name_or_path", "transformers_version", "architectures", "use_cache")


class ReferencePass(NamedTuple):
    """How the pairs go through the reference model."""

    family: Family
    pad_id: int
    capacity: tuple[int, ...]
    """Positions of a row, into which pairs are packed whether training does so or not."""
    batch_size: int
    """Rows at once."""
    dtype: torch.dtype
    """Of the matrix products."""


def reference_cache(folder: str | None) -> Path:
    """Where log-probabilities are kept: the folder that the user names, or one beside the fetched corpora."""
    if folder is not None:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fivefold" / "reference"


def reference_logps(
    model: PreTrainedModel, sets: list[TokenPairs], how: ReferencePass, folder: Path, processes: Processes
) -> list[NDArray[np.float32]]:
    """The log-probabilities of all answers in some sets of pairs, from the cache or, the first time, from the model.

    Args:
        model: the reference; it is moved to this process's device.
        sets: the pairs to train on and those to measure on.
        how: as it says.
        folder: where they are kept.

    Returns:
        For each set [P, 2], the sums over each answer's tokens.

    Raises:
        DataError: a file in the cache is damaged or not what its name says, or none can be written.
        ModelError: a log-probability is not finite.
    """
    weights = _weights_hash(model, how.dtype)
    return [_of_one_set(model, pairs, _key(weights, pairs), how, folder, processes) for pairs in sets]


def _of_one_set(
    model: PreTrainedModel, pairs: TokenPairs, key: str, how: ReferencePass, folder: Path, processes: Processes
) -> NDArray[np.float32]:
    path = folder / f"{key[:32]}.safetensors"
    if processes.sum(path.is_file())[0] == processes.world_size:
        return _read(path, key, len(pairs))
    logps = _computed(model, pairs, how, processes)
    if not np.isfinite(logps).all():
        number = int(np.flatnonzero(~np.isfinite(logps).all(1))[0])
        raise ModelError(
            f"The reference model gives pair {number + 1:,} a log-probability that is not finite; its weights are "
            "damaged, or --dtype is too narrow for it."
        )
    if processes.is_first:
        _write(path, key, logps)
    processes.wait_for_all()
    return logps


@torch.no_grad()
def _computed(
    model: PreTrainedModel, pairs: TokenPairs, how: ReferencePass, processes: Processes
) -> NDArray[np.float32]:
    source = PreferenceSource(pairs, how.family, pad_id=how.pad_id, seed=0, shuffle=False, capacity=how.capacity)
    rows = np.array_split(np.arange(source.samples_per_epoch or 0), processes.world_size)[processes.rank]
    was_training, device = model.training, processes.device
    model.to(device).eval()  # type: ignore[arg-type]
    logps = torch.zeros(len(pairs), 2, dtype=torch.float64, device=device)
    is_mixed = how.dtype != torch.float32 and model.dtype != how.dtype
    batches = [rows[at : at + how.batch_size] for at in range(0, len(rows), how.batch_size)]
    with torch.autocast(device.type, how.dtype, enabled=is_mixed):
        for batch in _shown(batches, source, processes):
            numbers = np.concatenate(source.pairs_of(batch))
            on_device = {name: tensor.to(device) for name, tensor in tensors(source.batch(batch)).items()}
            logps[torch.from_numpy(numbers).to(device)] = answer_logps(model, on_device).double()
    model.train(was_training)
    return processes.sum_tensor(logps).float().cpu().numpy()


def _shown(
    batches: list[NDArray[np.int64]], source: PreferenceSource, processes: Processes
) -> Iterator[NDArray[np.int64]]:
    """The batches, with a bar on stderr that counts pairs, a second and to come."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reference"), BarColumn(), MofNCompleteColumn(), TextColumn("pairs"))
    rate = TextColumn("{task.fields[rate]}")
    console = Console(stderr=True)
    with Progress(*columns, rate, TimeRemainingColumn(), console=console, disable=not processes.is_first) as progress:
        sizes = [sum(map(len, source.pairs_of(batch))) for batch in batches]
        task = progress.add_task("", total=sum(sizes), rate="")
        for batch, size in zip(batches, sizes, strict=True):
            yield batch
            progress.advance(task, size)
            speed = progress.tasks[task].speed
            progress.update(task, rate=f"{speed:,.1f}/s" if speed else "")
    if processes.is_first:
        finished = progress.tasks[task]
        log.info("reference log-probabilities of %s pairs in %.1f s", f"{sum(sizes):,}", finished.elapsed or 0.0)


def _weights_hash(model: PreTrainedModel, dtype: torch.dtype) -> bytes:
    """Of the weights, of what the configuration makes of them, and of the type they are computed in."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_HASHED}
    digest = blake2b(digest_size=32)
    digest.update(f"{_FORMAT} {dtype} {json.dumps(config, sort_keys=True, default=str)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def _key(weights: bytes, pairs: TokenPairs) -> str:
    """The tokens follow from text, tokenizer, serialisation and lengths, so their hash stands for all of these."""
    digest = blake2b(weights, digest_size=32)
    for side in (pairs.prompts, pairs.chosen, pairs.rejected):
        digest.update(np.array(list(map(len, side)), np.int64).data)
        for tokens in side:
            digest.update(np.ascontiguousarray(tokens, np.int32).data)
    return digest.hexdigest()


def _checksum(logps: NDArray[np.float32]) -> str:
    return blake2b(np.ascontiguousarray(logps).data, digest_size=16).hexdigest()


def _read(path: Path, key: str, num_pairs: int) -> NDArray[np.float32]:
    try:
        with safe_open(path, framework="numpy") as file:
            made_from, logps = file.metadata() or {}, file.get_tensor("logps")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(
            f"The reference cache {path} is damaged ({error}); delete it, and it is computed again."
        ) from error
    if made_from.get("key") != key or logps.shape != (num_pairs, 2):
        raise DataError(
            f"The reference cache {path} was made from another model or other pairs than its name says; delete it, and "
            "it is computed again."
        )
    if made_from.get("checksum") != _checksum(logps):
        raise DataError(
            f"The reference cache {path} is damaged (its numbers do not fit their checksum); delete it, and it is "
            "computed again."
        )
    log.info("reference log-probabilities of %s pairs from %s", f"{num_pairs:,}", path)
    return logps


def _write(path: Path, key: str, logps: NDArray[np.float32]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logps": logps}, fresh, {"format": _FORMAT, "key": key, "checksum": _checksum(logps)})
        fresh.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"Reference log-probabilities cannot be kept in {path.parent} ({error}); make room there, or name another "
            "folder with --reference_cache."
        ) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
