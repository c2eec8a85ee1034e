"""Train a tokenizer on text, with the special tokens and sentinels that T5 needs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from fivefold.corpus.read import open_corpus, texts
from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import check_sources
from fivefold.errors import ConfigError
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import TrainedTokenizer, count_learned_pieces, train_tokenizer

EXAMPLE_LINES = 3
EXAMPLE_CHARACTERS = 40
MEASURED_CHUNKS = 1_000


def run(corpus: CorpusSettings, tokenizer: TokenizerSettings, *, dry_run: bool) -> None:
    """Read the corpus, train, save, and say what came out.

    Raises:
        FivefoldError: settings, data or the output folder do not work.
    """
    num_pieces = count_learned_pieces(tokenizer)
    if Path(tokenizer.output_dir).is_file():
        raise ConfigError(f"--output_dir {tokenizer.output_dir} is a file: expected a folder, existing or not.")
    unchecked = check_sources(corpus)
    if dry_run:
        print(f"data        {' '.join(corpus.data)}" + (f" (unchecked: {' '.join(unchecked)})" if unchecked else ""))
        print(f"vocabulary  {tokenizer.vocab_size:,}, of which {num_pieces:,} learned ({tokenizer.algorithm})")
        print(f"would write {tokenizer.output_dir}")
        return

    from fivefold.tokenizer.save import save_tokenizer

    start = perf_counter()
    documents = texts(open_corpus(corpus), corpus.text_field)
    with shown_progress(documents) as watched:
        trained = train_tokenizer(watched, tokenizer)
    save_tokenizer(trained.tokenizer, tokenizer.output_dir)
    print_result(trained, tokenizer, perf_counter() - start)


@contextmanager
def shown_progress(documents: Iterable[str]) -> Iterator[Iterator[str]]:
    """Pass documents on, showing on stderr how much was read, and for how long the training goes on after that."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=None)

        def watch() -> Iterator[str]:
            characters = 0
            try:
                for number, document in enumerate(documents):
                    characters += len(document)
                    if number % 1_000 == 0:
                        progress.update(task, description=f"reading: {characters:,} characters")
                    yield document
            finally:
                progress.update(task, description=f"learning pieces, {characters:,} characters read")

        yield watch()


def print_result(trained: TrainedTokenizer, settings: TokenizerSettings, seconds: float) -> None:
    """Say how large the vocabulary is, what it was learned from, and how it cuts text."""
    from fivefold.tokenizer.encode import CorpusEncoder

    tokenizer, sample = trained.tokenizer, trained.sample
    encode = CorpusEncoder(tokenizer)
    measured = sample.chunks[:MEASURED_CHUNKS]
    tokens_per_character = sum(map(len, encode(measured))) / sum(map(len, measured))
    short = (
        "" if len(tokenizer) == settings.vocab_size else f", as the text has no more pieces for {settings.vocab_size:,}"
    )
    kept = f"{sample.kept_characters / sample.read_characters:.0%} of {sample.read_characters:,} characters"
    stopped = " (stopped there, --read_characters)" if sample.was_cut else ""
    print(f"vocabulary  {len(tokenizer):,}{short}")
    print(f"sample      {kept} read{stopped}")
    print(f"tokens      {tokens_per_character:.3f} a character")
    print(f"time        {seconds:.1f} s")
    for ids in encode([chunk.strip()[:EXAMPLE_CHARACTERS] for chunk in measured[:EXAMPLE_LINES]]):
        print(f"example     {' '.join(tokenizer.convert_ids_to_tokens(ids.tolist()))}")
    print(f"written to  {settings.output_dir}")
