"""A folder of clean documents: written shard by shard, so that an interrupted run goes on behind the last whole one."""

import json
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fivefold.corpus.clean import CleanText
from fivefold.corpus.documents import DocumentReader, Documents, DuplicateFilter, ShowProgress
from fivefold.corpus.duplicates import NUM_BANDS, NUM_HASHES, Signature
from fivefold.corpus.files import REPORT_NAME, Record
from fivefold.corpus.settings import CleaningSettings, CorpusSettings
from fivefold.data.settings import PrepareSettings
from fivefold.data.whole_folder import check_replaceable, put_in_place
from fivefold.errors import CheckpointError, DataError, is_full_disk

# A minute or so of work: what an interruption costs at most.
SHARD_BYTES = 1 << 26
STATE_NAME = "state.json"


@dataclass
class DocumentReport:
    """What was read, kept and left out: the content of `prepare_report.json`."""

    data: list[str]
    """Where the text came from."""
    settings: dict[str, Any]
    """Those that decide about the documents."""
    documents_read: int = 0
    bytes_read: int = 0
    documents_kept: int = 0
    bytes_kept: int = 0
    """Of the text, as UTF-8."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Documents, by reason."""
    not_documents: dict[str, int] = field(default_factory=dict)
    """What dumps hold besides, such as redirects."""
    broken_lines: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    """File, documents, size and checksum."""

    def count(self, documents: Documents, text_field: str) -> None:
        """Take a batch in."""
        self.documents_read += documents.documents_read
        self.bytes_read += documents.bytes_read
        self.documents_kept += len(documents.records)
        texts = (record[text_field] for record in documents.records)
        self.bytes_kept += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        self.left_out = dict(sorted(documents.left_out.items()))
        self.not_documents = documents.reader["left_out"]
        self.broken_lines = documents.reader["bad_lines"]


def prepare_documents(
    corpus: CorpusSettings,
    cleaning: CleaningSettings,
    settings: PrepareSettings,
    show_progress: ShowProgress = lambda documents: None,
) -> DocumentReport:
    """Write clean documents to `settings.output_dir`, as JSON lines, and a report of what was left out.

    The same data and settings give the same files, to the byte, whatever the number of workers and interruptions.

    Args:
        corpus: where the text comes from.
        cleaning: what to do to it.
        settings: where to, how many workers, and whether to go on or to begin anew.
        show_progress: told of each batch.

    Raises:
        DataError: bad data, an output folder that is taken, or a full disk.
        CheckpointError: nothing to go on with, or other data or settings than those of the interrupted run.
    """
    output = Path(settings.output_dir).expanduser()
    unfinished = unfinished_folder(output)
    # Data may have moved since an interruption, which the reader looks into, and more broken lines may be allowed.
    no_matter = ("data", "max_bad_lines", "streaming")
    wanted = {name: value for name, value in (asdict(corpus) | asdict(cleaning)).items() if name not in no_matter}
    check_unfinished(settings)
    if not settings.resume:
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        report = _write(corpus, cleaning, settings, unfinished, wanted, show_progress)
        _save_json(unfinished / REPORT_NAME, asdict(report))
        for path in [unfinished / STATE_NAME, *unfinished.glob("fingerprints_*.npz")]:
            path.unlink(missing_ok=True)
        put_in_place(unfinished, output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_left(unfinished)) from None
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DataError(
            f"The disk of {output} is full; free some space and go on with --resume, or give another --output_dir."
        ) from error
    finally:
        if not (unfinished / STATE_NAME).is_file():
            shutil.rmtree(unfinished, ignore_errors=True)
    return report


def unfinished_folder(output: Path) -> Path:
    """Where documents are while they are being written."""
    return output.parent / f".{output.name}.unfinished"


def check_unfinished(settings: PrepareSettings) -> None:
    """Refuse to go on with nothing, and to throw an interrupted run's work away unasked.

    Raises:
        CheckpointError, DataError: one of these, or the output folder is taken.
    """
    output = Path(settings.output_dir).expanduser()
    has_state = (unfinished_folder(output) / STATE_NAME).is_file()
    if settings.resume:
        if output.exists():
            raise CheckpointError(f"{output} is there already, so there is nothing to go on with; leave --resume out.")
        if not has_state:
            raise CheckpointError(f"No interrupted run left documents for {output}; leave --resume out.")
        return
    check_replaceable(output, settings.overwrite)
    if has_state and not settings.overwrite:
        raise DataError(
            f"An interrupted run left documents for {output}; go on with --resume, or begin anew with --overwrite."
        )


def _write(
    corpus: CorpusSettings,
    cleaning: CleaningSettings,
    settings: PrepareSettings,
    folder: Path,
    wanted: dict[str, Any],
    show_progress: ShowProgress,
) -> DocumentReport:
    duplicates = DuplicateFilter(cleaning)
    reader = DocumentReader(
        corpus, cleaning, num_workers=settings.num_workers, engine=settings.engine, duplicates=duplicates
    )
    report = DocumentReport(corpus.data, wanted)
    if settings.resume:
        report = _go_on(folder, wanted, reader, duplicates)
    shard = ShardWriter(folder, len(report.shards), corpus.text_field)
    try:
        for documents in reader:
            shard.add(documents)
            report.count(documents, corpus.text_field)
            if shard.num_bytes >= SHARD_BYTES:
                report.shards.append(shard.finish())
                _save_json(folder / STATE_NAME, {"reader": documents.reader, "report": asdict(report)})
                shard = ShardWriter(folder, len(report.shards), corpus.text_field)
            show_progress(documents)
        if shard.num_documents or not report.shards:
            report.shards.append(shard.finish())
    finally:
        shard.close()
    if not report.documents_kept:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in report.left_out.items())
        raise DataError(
            f"No document is left of {report.documents_read:,}: {reasons}; ask for less, or give other data."
        )
    return report


def _go_on(folder: Path, wanted: dict[str, Any], reader: DocumentReader, duplicates: DuplicateFilter) -> DocumentReport:
    """Take up what an interrupted run left."""
    state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    report = DocumentReport(**state["report"])
    changed = [name for name, value in wanted.items() if report.settings.get(name) != value]
    if changed:
        raise CheckpointError(
            f"The interrupted run had another {' and '.join(changed)} ({report.settings.get(changed[0])!r}); say it "
            "again as it was, or begin anew with --overwrite."
        )
    reader.go_on(state["reader"], report.left_out)
    for number in range(len(report.shards)):
        for document in Fingerprints.load(folder, number):
            duplicates.why_left_out(document)
    return report


class ShardWriter:
    """One file of documents, and what duplicates of them are found by.

    Args:
        folder: an existing folder.
        number: which shard.
        text_field: where a record holds its text.
    """

    def __init__(self, folder: Path, number: int, text_field: str) -> None:
        self._folder, self._number, self._text_field = folder, number, text_field
        self._name = f"documents_{number:05d}.jsonl"
        self._file: BinaryIO | None = (folder / self._name).open("wb")
        self._checksum = sha256()
        self._fingerprints = Fingerprints()
        self.num_documents = self.num_bytes = 0

    def add(self, documents: Documents) -> None:
        """Write records."""
        assert self._file is not None
        lines = b"".join(map(json_line, documents.records))
        self._file.write(lines)
        self._checksum.update(lines)
        self.num_documents += len(documents.records)
        self.num_bytes += len(lines)
        self._fingerprints.add(documents.fingerprints)

    def finish(self) -> dict[str, Any]:
        """Write all of it to disk, and tell what it is."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        self._fingerprints.save(self._folder, self._number)
        return {
            "file": self._name,
            "documents": self.num_documents,
            "bytes": self.num_bytes,
            "sha256": self._checksum.hexdigest(),
        }

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Fingerprints:
    """What duplicates of a shard's documents are found by, in 264 bytes each, to remember it after an interruption."""

    def __init__(self) -> None:
        self._digests, self._bands, self._minima = array("Q"), bytearray(), bytearray()

    def add(self, documents: list[CleanText]) -> None:
        """Take documents in."""
        for document in documents:
            self._digests.append(document.digest)
            if document.signature:
                self._bands += document.signature.bands.tobytes()
                self._minima += document.signature.minima

    def save(self, folder: Path, shard: int) -> None:
        """Write them beside the shard."""
        bands = np.frombuffer(self._bands, np.uint64).reshape(-1, NUM_BANDS)
        minima = np.frombuffer(self._minima, np.uint8).reshape(-1, NUM_HASHES)
        np.savez(folder / f"fingerprints_{shard:05d}.npz", digests=self._digests, bands=bands, minima=minima)

    @staticmethod
    def load(folder: Path, shard: int) -> Iterator[CleanText]:
        """Read them back, as documents without text."""
        with np.load(folder / f"fingerprints_{shard:05d}.npz") as saved:
            digests, bands, minima = saved["digests"].tolist(), saved["bands"], saved["minima"]
        for number, digest in enumerate(digests):
            signature = Signature(bands[number], minima[number].tobytes()) if len(bands) else None
            yield CleanText("", digest=digest, signature=signature)


def json_line(record: Record) -> bytes:
    """A record as a line of JSON; what JSON cannot hold, such as dates, as text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    try:
        return f"{line}\n".encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from broken JSON escapes
        return f"{json.dumps(record, default=str)}\n".encode()


def _save_json(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _what_is_left(unfinished: Path) -> str:
    if not (unfinished / STATE_NAME).is_file():
        return "interrupted before anything was whole"
    return "interrupted; the same command with --resume goes on"
