"""Does training a tokenizer take more memory on ten times the text? 20 MB and 200 MB of text, every line another one.

    python benchmarks/tokenizer_memory.py [--megabytes 20 200] [--algorithm bpe|unigram]

The text is synthetic Chinese: words drawn by Zipf's law, in clauses that do not repeat, the worst case for a trainer
whose table grows with the distinct stretches between spaces and punctuation. Each size runs in a process of its own.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

NUM_WORDS = 40_000
NUM_CHARACTERS = 6_000
BLOCK_WORDS = 200_000


def write_text(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Write lines of four clauses of random words, at least `num_bytes` of them."""
    random = np.random.default_rng(seed)
    characters = np.array([chr(0x4E00 + offset) for offset in random.permutation(20_000)[:NUM_CHARACTERS]])
    frequencies = 1 / np.arange(1, NUM_CHARACTERS + 1)
    lengths = random.choice([1, 2, 3, 4], p=[0.2, 0.6, 0.12, 0.08], size=NUM_WORDS)
    drawn = random.choice(characters, p=frequencies / frequencies.sum(), size=lengths.sum())
    words = ["".join(word) for word in np.split(drawn, lengths.cumsum()[:-1])]
    zipf = 1 / np.arange(1, NUM_WORDS + 1)
    comma, full_stop = "\uff0c", "\u3002\n"
    with path.open("wb") as file:
        while file.tell() < num_bytes:
            chosen = random.choice(NUM_WORDS, p=zipf / zipf.sum(), size=BLOCK_WORDS).tolist()
            ends = random.integers(3, 9, size=BLOCK_WORDS // 6).cumsum()
            clauses = np.split(np.array(chosen, dtype=object), ends[ends < BLOCK_WORDS])
            ends_of_clause = [full_stop if number % 4 == 3 else comma for number in range(len(clauses))]
            text = "".join("".join(words[w] for w in c) + e for c, e in zip(clauses, ends_of_clause, strict=True))
            file.write((text + "\n").encode())


def distinct_lines(path: Path) -> float:
    """Fraction of lines that are not equal to an earlier one."""
    lines = path.read_bytes().split(b"\n")
    return len({hash(line) for line in lines}) / len(lines)


def train(path: Path, algorithm: str, output_dir: Path) -> dict[str, float]:
    """Train as `fivefold tokenizer` does, in this process."""
    from fivefold.corpus.read import open_corpus, texts
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.tokenizer.save import save_tokenizer
    from fivefold.tokenizer.settings import TokenizerSettings
    from fivefold.tokenizer.train import train_tokenizer

    start = perf_counter()
    settings = TokenizerSettings(output_dir=str(output_dir), algorithm=algorithm)  # type: ignore[arg-type]
    trained = train_tokenizer(texts(open_corpus(CorpusSettings(data=[str(path)]))), settings)
    save_tokenizer(trained.tokenizer, output_dir)
    return {
        "vocabulary": len(trained.tokenizer),
        "kept": trained.sample.kept_characters / trained.sample.read_characters,
        "seconds": perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--algorithm", choices=["bpe", "unigram"], default="bpe")
    parser.add_argument(
        "--train", nargs=2, type=Path, metavar=("TEXT", "OUT"), help="run one size (used by the script)"
    )
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train[0], arguments.algorithm, arguments.train[1])))
        return
    rows = []
    for megabytes in arguments.megabytes:
        with TemporaryDirectory() as folder:
            path = Path(folder, "text.txt")
            write_text(path, megabytes * 10**6)
            distinct = distinct_lines(path)
            command = [sys.executable, __file__, "--algorithm", arguments.algorithm, "--train", str(path), folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append((megabytes, distinct, json.loads(done.stdout.splitlines()[-1])))
    print("| text | distinct lines | kept for training | vocabulary | seconds | peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for megabytes, distinct, row in rows:
        print(
            f"| {megabytes} MB | {distinct:.1%} | {row['kept']:.0%} | {row['vocabulary']:,} | {row['seconds']:.0f} "
            f"| {row['peak_bytes'] / 1e9:.2f} GB |"
        )
    first, last = rows[0], rows[-1]
    print(f"\npeak at {last[0]} MB / peak at {first[0]} MB: {last[2]['peak_bytes'] / first[2]['peak_bytes']:.2f}")
    print(
        f"{arguments.algorithm}; fivefold {version('fivefold')}, tokenizers {version('tokenizers')}, "
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
