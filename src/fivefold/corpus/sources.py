"""What a name in `--data` means: a local path, else a catalogue name, else a Hub id."""

import logging
import re
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import TypeAlias

from fivefold.corpus.catalogue import CATALOGUE, HubCorpus, PackageCorpus
from fivefold.corpus.files import KINDS, READABLE, REPORT_NAME, file_kind
from fivefold.corpus.hub import HubDataset
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import ConfigError, DataError

Source: TypeAlias = list[Path] | PackageCorpus | HubDataset

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
logger = logging.getLogger("fivefold")


def find_sources(settings: CorpusSettings) -> list[Source]:
    """Look every name in `--data` up, offline.

    Returns:
        One entry a name: files in reading order, or a corpus in a package, or a data set on the Hub (unchecked).

    Raises:
        ConfigError: no name is given.
        DataError: a path or a name that leads to nothing readable.
    """
    if not settings.data:
        raise ConfigError("--data is empty: name at least one file, folder, glob, catalogue corpus or Hub id.")
    return [find_source(name, settings) for name in settings.data]


def check_sources(settings: CorpusSettings) -> list[str]:
    """Check every path and name in `--data` without reading text or using the network.

    Returns:
        The Hub ids, whose existence stays unchecked.

    Raises:
        ConfigError, DataError: as `find_sources`.
    """
    return [source.hub_id for source in find_sources(settings) if isinstance(source, HubDataset)]


def are_local(settings: CorpusSettings) -> bool:
    """Whether all that `--data` names lies in files on this machine; errors as `find_sources`."""
    return all(isinstance(source, list) for source in find_sources(settings))


def find_source(name: str, settings: CorpusSettings) -> Source:
    """Look one name up, offline; arguments and errors as `find_sources`."""
    path = Path(name).expanduser()
    if path.is_file():
        return [readable_file(path)]
    if name and path.is_dir():  # Path("") would be the current folder
        return readable_files(name, sorted(path.rglob("*")), hidden_below=len(path.parts))
    if has_magic(name):
        matches = glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return readable_files(name, [Path(match) for match in sorted(matches)])
    if entry := CATALOGUE.get(name):
        if isinstance(entry, HubCorpus):
            return HubDataset(entry.hub_id, settings.data_config or entry.config, settings.data_split)
        return entry
    near = get_close_matches(name, CATALOGUE, n=1)
    if near or path.suffix in KINDS or not HUB_ID.fullmatch(name):
        hint = f"did you mean {near[0]!r}?" if near else "check the path."
        raise DataError(f"--data {name!r} is no file, folder or glob that exists, and no catalogue name: {hint}")
    return HubDataset(name, settings.data_config, settings.data_split)


def readable_file(path: Path) -> Path:
    """A file that was named itself, which must be readable and not empty."""
    if file_kind(path) is None:
        raise DataError(f"{path} is of no kind that can be read, by its name: expected {READABLE}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: expected text in it.")
    return path


def readable_files(name: str, paths: list[Path], hidden_below: int = 0) -> list[Path]:
    """The readable files among those of a folder or a glob, in order; there must be one."""
    files: list[Path] = []
    for path in paths:
        if path.name == REPORT_NAME:
            continue
        if file_kind(path) is None or not path.is_file() or any(part[0] == "." for part in path.parts[hidden_below:]):
            continue
        if path.stat().st_size == 0:
            logger.warning("%s is empty; left out", path)
            continue
        files.append(path)
    if not files:
        raise DataError(f"--data {name!r} holds no file that can be read: expected {READABLE}, not empty.")
    return files
