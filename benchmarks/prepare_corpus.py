"""How fast is `fivefold prepare` on a Wikipedia dump, does memory grow with it, and which near-duplicates does it find?

    python benchmarks/prepare_corpus.py [--megabytes 20 100] [--real DUMP.xml.bz2]

The dumps are generated: Chinese words drawn by Zipf's law in articles with an infobox, references, links, a table,
language variants and categories; in the second one, five times as many. Behind the articles come 300 again, 1% of their
characters changed: those shall be found, and nothing else. `python tests/real_dump.py DUMP.xml.bz2` writes the
beginning of a real English one. Each run is a process of its own.
"""

import argparse
import bz2
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from xml.sax.saxutils import escape

import numpy as np
from machine import measured_on

PLANTED = 300
CHANGED_FRAC = 0.01
NUM_WORDS, NUM_CHARACTERS = 40_000, 6_000
ALL_FLAGS = ["--normalise", "nfkc", "--simplified", "--min_characters", "100", "--quality", "--deduplicate", "near"]


class Articles:
    """Articles of random words, by number."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        # From the frequent half of the ideographs on, so that a share of them are traditional forms.
        characters = np.array([chr(0x4E00 + offset) for offset in random.permutation(20_000)[:NUM_CHARACTERS]])
        frequencies = 1 / np.arange(1, NUM_CHARACTERS + 1)
        lengths = random.choice([1, 2, 3, 4], p=[0.2, 0.6, 0.12, 0.08], size=NUM_WORDS)
        drawn = random.choice(characters, p=frequencies / frequencies.sum(), size=lengths.sum())
        self.words = ["".join(word) for word in np.split(drawn, lengths.cumsum()[:-1])]
        self.zipf = 1 / np.arange(1, NUM_WORDS + 1)
        self.zipf /= self.zipf.sum()

    def sentences(self, number: int) -> list[str]:
        """What an article says, in 10 to 60 sentences."""
        random = np.random.default_rng([1, number])
        count = int(random.integers(10, 60))
        drawn = random.choice(NUM_WORDS, p=self.zipf, size=12 * count).tolist()
        return ["".join(self.words[one] for one in drawn[12 * n : 12 * n + 12]) + "\u3002" for n in range(count)]


def changed(sentences: list[str], number: int) -> list[str]:
    """The same article with one character in a hundred replaced."""
    random = np.random.default_rng([2, number])
    text = np.array(list("\n".join(sentences)))
    places = random.choice(len(text), size=int(CHANGED_FRAC * len(text)), replace=False)
    text[[place for place in places if text[place] != "\n"]] = "\u5b57"
    return "".join(text).split("\n")


def markup(sentences: list[str]) -> str:
    """An article around these sentences, about half of it markup, as in a Wikipedia."""
    lines = ["{{Infobox\n| name = " + sentences[0][:4] + "\n| image = a.png\n| area = {{convert|10|km2}}\n}}"]
    for number, sentence in enumerate(sentences):
        linked = f"'''{sentence[:2]}'''[[{sentence[2:5]}|{sentence[2:4]}]]{sentence[4:]}"
        if number % 3 == 0:
            linked += f"<ref name=r{number}>{{{{cite web|title={sentence[:8]}|url=http://a.b/{number}}}}}</ref>"
        if number % 7 == 3:
            linked += "-{zh-hans:\u9f20\u6807;zh-hant:\u6ed1\u9f20}-"
        if number % 10 == 5:
            linked = f"\n== {sentence[:3]} ==\n{linked}\n[[File:{number}.jpg|thumb|{sentence[:9]}]]"
        lines.append(linked)
    lines.append('{| class="wikitable"\n|-\n! a !! b\n' + "|-\n| 1 || [[2]]\n" * 8 + "|}")
    lines.append("== \u53c2\u8003\u6587\u732e ==\n{{reflist}}\n[[Category:X]]\n[[en:Y]]")
    return "\n".join(lines)


def write_dump(path: Path, num_bytes: int) -> int:
    """Write articles until the XML is that long, then the planted ones; returns how many articles there are."""
    articles, written, count = Articles(), 0, 0
    with bz2.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.write("<mediawiki>\n<siteinfo></siteinfo>\n")

        def write(title: str, sentences: list[str]) -> int:
            text = escape(markup(sentences))
            file.write(
                f"<page><title>{title}</title><ns>0</ns><revision><text>{text}</text></revision></page>\n"
                f"<page><title>R{title}</title><ns>0</ns><redirect/><revision><text>#</text></revision></page>\n"
            )
            return len(text.encode())

        while written < num_bytes:
            written += write(str(count), articles.sentences(count))
            count += 1
        for number in range(PLANTED):
            write(f"planted {number}", changed(articles.sentences(number), number))
        file.write("</mediawiki>\n")
    return count


def prepare(words: list[str]) -> None:
    """Run `fivefold prepare` in this process and print what it took."""
    from fivefold.cli import main

    start = perf_counter()
    assert main(["prepare", *words]) == 0
    seconds = perf_counter() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in used)
    peaks = [usage.ru_maxrss * 1024 for usage in used]
    print(json.dumps({"seconds": seconds, "processor": processor, "main": peaks[0], "worker": peaks[1]}))


def measured(dump: Path, out: Path, *flags: str) -> dict:
    """Prepare in a process of its own; what it took, and its report."""
    command = [sys.executable, __file__, "--prepare", "--data", str(dump), "--output_dir", str(out), *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads((out / "prepare_report.json").read_text())
    return json.loads(done.stdout.splitlines()[-1]) | {"report": report}


def titles(folder: Path) -> set[str]:
    """The titles of the documents in a folder."""
    return {
        json.loads(line)["title"] for path in folder.glob("*.jsonl") for line in path.open(encoding="utf-8") if line
    }


def parser_rates(dump: Path, most_pages: int) -> tuple[float, float]:
    """MB/s of processor time, markup to text: ours and mwparserfromhell's."""
    from itertools import islice

    import mwparserfromhell

    from fivefold.corpus.read import open_corpus
    from fivefold.corpus.settings import CorpusSettings

    corpus = open_corpus(CorpusSettings(data=[str(dump)]), keep_markup=True)
    pages = [record["text"] for record in islice(corpus, most_pages)]
    megabytes = sum(len(page.encode()) for page in pages) / 1e6
    pages[0].plain_text()
    start = process_time()
    for page in pages:
        page.plain_text()
    middle = process_time()
    for page in pages:
        mwparserfromhell.parse(str(page)).strip_code()
    return megabytes / (middle - start), megabytes / (process_time() - middle)


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        prepare(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs=2, default=[20, 100])
    parser.add_argument("--real", type=Path, help="a real dump, to measure the rate on as well")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(
            "| dump | filters | processes | markup | articles | seconds | of a processor | MB/s | peak (a worker's) |"
        )
        print("|" + " --- |" * 9)
        dumps = [(f"generated, {size} MB", Path(folder, f"{size}.xml.bz2")) for size in arguments.megabytes]
        counts = [write_dump(dump, size * 10**6) for (_, dump), size in zip(dumps, arguments.megabytes, strict=True)]
        if arguments.real:
            dumps.append(("real, English", arguments.real))
        for number, (name, dump) in enumerate(dumps):
            for filters, flags in (("none", []), ("all", ALL_FLAGS)):
                for workers in (0, 2):
                    out = Path(folder, f"{number}-{filters}-{workers}")
                    row = measured(dump, out, *flags, "--num_workers", str(workers))
                    megabytes = row["report"]["bytes_read"] / 1e6
                    worker = f" ({row['worker'] / 1e6:.0f} MB)" if workers else ""
                    print(
                        f"| {name} | {filters} | {workers or 1} | {megabytes:.0f} MB "
                        f"| {row['report']['documents_read']:,} | {row['seconds']:.1f} | {row['processor']:.1f} "
                        f"| {megabytes / row['seconds']:.1f} | {row['main'] / 1e6:.0f} MB{worker} |",
                        flush=True,
                    )
        print()
        for number, count in enumerate(counts):
            kept = titles(Path(folder, f"{number}-all-0"))
            found = PLANTED - sum(title.startswith("planted") for title in kept)
            wrong = count - sum(not title.startswith("planted") for title in kept)
            print(
                f"{dumps[number][0]}: near-duplicates found {found} of {PLANTED}, wrongly removed {wrong} of {count:,}."
            )
        for name, dump in dumps[1:]:
            ours, theirs = parser_rates(dump, 400)
            print(
                f"{name}, markup to text: {ours:.1f} MB/s of one processor, mwparserfromhell's {theirs:.2f}, "
                f"which leaves captions, categories and variants in: {ours / theirs:.1f} times as fast."
            )
    print(f"\n{measured_on('rensa', 'OpenCC', 'mwparserfromhell')}")


if __name__ == "__main__":
    main()
