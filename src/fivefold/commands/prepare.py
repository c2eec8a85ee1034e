"""Turn documents into token shards for training and validation, in a folder that brings its tokenizer along."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import check_sources
from fivefold.data.settings import PrepareSettings
from fivefold.data.whole_folder import check_replaceable, whole_folder
from fivefold.errors import DataError

if TYPE_CHECKING:
    from fivefold.data.preparation import Prepared


def run(corpus: CorpusSettings, prepare: PrepareSettings, *, dry_run: bool) -> None:
    """Read, hold out, tokenise, shuffle, write, and say what came of it.

    Raises:
        FivefoldError: settings, data, tokenizer or the output folder do not work.
    """
    from fivefold.data.build import prepared_folder
    from fivefold.data.preparation import prepare_tokens
    from fivefold.data.tokens import TOKENIZER
    from fivefold.tokenizer.load import load_tokenizer
    from fivefold.tokenizer.save import save_tokenizer

    output = Path(prepare.output_dir).expanduser()
    check_replaceable(output, prepare.overwrite)
    if prepared_folder(replace(corpus, data=[str(output)])) is None and output.is_dir() and any(output.iterdir()):
        raise DataError(f"{output} holds something else than prepared tokens, which --overwrite does not replace.")
    unchecked = check_sources(corpus)
    if prepare.validation_data:
        unchecked += check_sources(replace(corpus, data=prepare.validation_data))
    for names in (corpus.data, prepare.validation_data):
        if folder := prepared_folder(replace(corpus, data=names)):
            raise DataError(f"{folder} is prepared already; give the text that it was made from.")
    if dry_run:
        if Path(prepare.tokenizer).expanduser().is_dir():
            load_tokenizer(prepare.tokenizer)
        else:
            unchecked.append(prepare.tokenizer)
        print(f"data         {' '.join(corpus.data)}")
        print(f"validation   {' '.join(prepare.validation_data) or f'{prepare.validation_frac:.2%} of the documents'}")
        print(f"tokenizer    {prepare.tokenizer}")
        if unchecked:
            print(f"unchecked    {' '.join(unchecked)} (no such folder here, so taken for Hub ids)")
        print(f"would write  {output}")
        return

    start = perf_counter()
    tokenizer = load_tokenizer(prepare.tokenizer)
    with whole_folder(output, overwrite=prepare.overwrite) as unfinished:
        save_tokenizer(tokenizer, unfinished / TOKENIZER)
        with shown_progress() as advance:
            prepared = prepare_tokens(corpus, prepare, tokenizer, unfinished, advance)
    print_result(prepared, perf_counter() - start)
    print(f"written to   {output}")


@contextmanager
def shown_progress() -> Iterator[Callable[[int], None]]:
    """Count documents on stderr; yields the function that adds some."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.completed:,} documents tokenised"), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("documents", total=None)
        yield lambda num_documents: progress.advance(task, num_documents)


def print_result(prepared: "Prepared", seconds: float) -> None:
    """Say what is in each split and what was left out."""
    num_tokens = 0
    for name, index in prepared.indexes.items():
        num_tokens += index.num_tokens
        print(
            f"{name:<12} {index.num_documents:,} documents, {index.num_characters:,} characters, "
            f"{index.num_tokens:,} tokens ({index.num_tokens / index.num_characters:.3f} a character) "
            f"in {len(index.shards)} shard(s)"
        )
    left_out = [
        (prepared.num_bad_lines, "broken lines"),
        (prepared.num_blank, "blank"),
        (prepared.num_left_out, "training documents that are in the validation data too"),
    ]
    if any(number for number, _ in left_out):
        print(f"left out     {', '.join(f'{number:,} {what}' for number, what in left_out if number)}")
    print(f"time         {seconds:.1f} s, {num_tokens / seconds:,.0f} tokens/s")
