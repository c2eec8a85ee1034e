"""Raw text, Wikipedia dumps included, into clean documents or, with a tokenizer, into token shards for training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CleaningSettings, CorpusSettings
from fivefold.corpus.sources import check_sources
from fivefold.data.settings import PrepareSettings
from fivefold.data.whole_folder import check_replaceable, whole_folder
from fivefold.errors import DataError

if TYPE_CHECKING:
    from fivefold.corpus.documents import Documents, ShowProgress
    from fivefold.data.preparation import Prepared
    from fivefold.data.prepared_documents import DocumentReport


def run(corpus: CorpusSettings, cleaning: CleaningSettings, prepare: PrepareSettings, *, dry_run: bool) -> None:
    """Read, clean, then write documents, or hold out, tokenise, shuffle and write tokens; say what came of it.

    Raises:
        FivefoldError: settings, data, tokenizer or the output folder do not work.
    """
    from fivefold.corpus.clean import check_languages
    from fivefold.data.prepared_documents import check_unfinished

    unchecked = check_sources(corpus)
    if prepare.validation_data:
        unchecked += check_sources(replace(corpus, data=prepare.validation_data))
    check_languages(cleaning.language)
    check_output(corpus, prepare)
    if prepare.tokenizer is None:
        check_unfinished(prepare)
    if dry_run:
        print_plan(corpus, cleaning, prepare, unchecked)
        return
    start = perf_counter()
    if prepare.tokenizer is None:
        from fivefold.data.prepared_documents import prepare_documents

        with shown_progress() as advance:
            report = prepare_documents(corpus, cleaning, prepare, advance)
        print_documents(report, perf_counter() - start)
    else:
        prepared = prepare_shards(corpus, cleaning, prepare)
        print_tokens(prepared, perf_counter() - start)
    print(f"written to   {prepare.output_dir}")


def check_output(corpus: CorpusSettings, prepare: PrepareSettings) -> None:
    """Refuse to write over what is not ours, and to prepare tokens again.

    Raises:
        ConfigError, DataError: one of these.
    """
    from fivefold.corpus.files import REPORT_NAME
    from fivefold.data.build import prepared_folder

    output = Path(prepare.output_dir).expanduser()
    check_replaceable(output, prepare.overwrite)
    for name in (*corpus.data, *prepare.validation_data):
        if output.resolve() == Path(name).expanduser().resolve():
            raise DataError(f"{output} is what is read; give another --output_dir.")
    is_ours = (output / REPORT_NAME).is_file() or prepared_folder(replace(corpus, data=[str(output)])) is not None
    if not is_ours and output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output} holds something else than prepared tokens, which --overwrite does not replace.")
    for names in (corpus.data, prepare.validation_data):
        if folder := prepared_folder(replace(corpus, data=names)):
            raise DataError(f"{folder} is prepared already; give the text that it was made from.")


def prepare_shards(corpus: CorpusSettings, cleaning: CleaningSettings, prepare: PrepareSettings) -> "Prepared":
    """Make token shards; the folder appears when it is whole."""
    from fivefold.data.preparation import prepare_tokens
    from fivefold.data.tokens import TOKENIZER
    from fivefold.tokenizer.load import load_tokenizer
    from fivefold.tokenizer.save import save_tokenizer

    assert prepare.tokenizer is not None
    tokenizer = load_tokenizer(prepare.tokenizer)
    with whole_folder(Path(prepare.output_dir).expanduser(), overwrite=prepare.overwrite) as unfinished:
        save_tokenizer(tokenizer, unfinished / TOKENIZER)
        with shown_progress() as advance:
            return prepare_tokens(corpus, prepare, tokenizer, unfinished, advance, cleaning)


def print_plan(
    corpus: CorpusSettings, cleaning: CleaningSettings, prepare: PrepareSettings, unchecked: list[str]
) -> None:
    """Say what would be done."""
    from fivefold.flags import changed_settings
    from fivefold.tokenizer.load import load_tokenizer

    if prepare.tokenizer is not None:
        if Path(prepare.tokenizer).expanduser().is_dir():
            load_tokenizer(prepare.tokenizer)
        else:
            unchecked.append(prepare.tokenizer)
    print(f"data         {' '.join(corpus.data)}")
    if changed := changed_settings([cleaning]):
        print(f"cleaning     {', '.join(f'{name} {value}' for name, value in changed.items())}")
    if prepare.tokenizer is not None:
        print(f"validation   {' '.join(prepare.validation_data) or f'{prepare.validation_frac:.2%} of the documents'}")
        print(f"tokenizer    {prepare.tokenizer}")
    if unchecked:
        print(f"unchecked    {' '.join(unchecked)} (no such folder here, so taken for Hub ids)")
    print(f"would write  {prepare.output_dir}")


@contextmanager
def shown_progress() -> Iterator["ShowProgress"]:
    """Show on stderr how far reading is and at what rate; yields the function that is told of each batch."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text = TextColumn(
        "{task.fields[documents]:,} documents, {task.fields[megabytes]:,.0f} MB, {task.fields[rate]:.1f} MB/s"
    )
    columns = [SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=None, documents=0, megabytes=0.0, rate=0.0)
        start, num_documents, megabytes = perf_counter(), 0, 0.0

        def advance(documents: "Documents") -> None:
            nonlocal num_documents, megabytes
            num_documents += documents.documents_read
            megabytes += documents.bytes_read / 1e6
            rate = megabytes / (perf_counter() - start)
            total = None if documents.read_frac is None else 1.0
            progress.update(task, documents=num_documents, megabytes=megabytes, rate=rate)
            progress.update(task, total=total, completed=documents.read_frac)

        yield advance


def print_documents(report: "DocumentReport", seconds: float) -> None:
    """Say what was kept and what was left out."""
    print(
        f"documents    {report.documents_kept:,} of {report.documents_read:,} kept, {report.bytes_kept / 1e6:,.1f} of "
        f"{report.bytes_read / 1e6:,.1f} MB, in {len(report.shards)} shard(s)"
    )
    print_left_out({"broken lines": report.broken_lines} | report.not_documents | report.left_out)
    print(
        f"time         {seconds:.1f} s, {report.bytes_read / 1e6 / seconds:,.1f} MB/s, "
        f"{report.documents_read / seconds:,.0f} documents/s"
    )


def print_tokens(prepared: "Prepared", seconds: float) -> None:
    """Say what is in each split and what was left out."""
    num_tokens = 0
    for name, index in prepared.indexes.items():
        num_tokens += index.num_tokens
        print(
            f"{name:<12} {index.num_documents:,} documents, {index.num_characters:,} characters, "
            f"{index.num_tokens:,} tokens ({index.num_tokens / index.num_characters:.3f} a character) "
            f"in {len(index.shards)} shard(s)"
        )
    print_left_out(prepared.left_out)
    print(f"time         {seconds:.1f} s, {num_tokens / seconds:,.0f} tokens/s")


def print_left_out(left_out: Mapping[str, int]) -> None:
    """Say how much was left out for which reason, if anything was."""
    if said := [f"{number:,} {reason}" for reason, number in left_out.items() if number]:
        print(f"left out     {', '.join(said)}")
