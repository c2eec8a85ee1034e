"""Sixteen questions on one text: answers in parallel branches against one by one, and what 2D RoPE does to them.

python benchmarks/branch_questions.py [--work FOLDER] [--seeds 3] [--threads 2] [--arms NAME ...] [--output FILE]
python benchmarks/branch_questions.py --report [--work FOLDER] [--output FILE]    the tables from what is there

SmolLM2-135M (out of a package, `tests/real_models.py`) learns the catalogue's en_questions (SQuAD) by LoRA of rank 8 on
all linear layers, in bfloat16 autocast. Passages that follow each other in an article are one main text, as soon as
they have 16 questions. Articles are for training or for testing. One by one means the same questions, each behind its
own copy of the text and shuffled; everything else is one command, `fivefold parallel`, with as many questions a step.
All then answer the same held-out questions greedily, in bfloat16, 16 of a text's questions at a time; how many at a
time matters is tried on the first of these texts. Scores are SQuAD's: share of exactly right answers, and F1 of words.
Seeds are other orders and other fresh adapters. FOLDER/results.jsonl keeps what was measured.
"""

import argparse
import json
import random
import re
import shutil
import statistics
import string
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from finetune import real_model
from machine import measured_on
from plays import Runs, fivefold

QUESTIONS, MOST_CHARACTERS, TEST_EVERY = 16, 2000, 5
NUM_TRAINING, NUM_TEST, NUM_TRIED = 56, 32, 12
QUESTIONS_A_STEP = 32
NUMBERS = (1, 2, 4, 8, 16)


class Arm(NamedTuple):
    """A way of training, and with how many questions at a time all test texts are answered, or the first of them."""

    flags: str
    on_all: Sequence[int] = (16,)
    on_first: Sequence[int] = (1, 2, 4, 8)
    branches: int = QUESTIONS


def two_d(ratio: float, mode: str, visibility: str) -> Arm:
    """Branches told apart by 2D RoPE."""
    return Arm(f"--rope_2d_ratio {ratio} --rope_2d_mode {mode} --branch_visibility {visibility}")


ONE_BY_ONE, PLAIN = "one by one", "isolated, 0"
ARMS = {
    ONE_BY_ONE: Arm("--no_patch_rope", (1,), (), branches=1),
    PLAIN: Arm("--no_patch_rope", (1, 16)),
    "columnar, 0": Arm("--no_patch_rope --branch_visibility columnar"),
    **{
        f"{visibility}, {ratio} {mode}": two_d(ratio, mode, visibility)
        for visibility in ("isolated", "columnar")
        for ratio in (0.25, 0.5)
        for mode in ("offset", "replace")
    },
}


class Text(NamedTuple):
    """A main text with its questions."""

    main: str
    questions: list[dict[str, Any]]


def texts() -> tuple[list[Text], list[Text]]:
    """For training and for testing."""
    from fivefold.corpus.catalogue import ENTRIES, PackageCorpus
    from fivefold.corpus.package import fetch_corpus

    (entry,) = (entry for entry in ENTRIES if isinstance(entry, PackageCorpus) and entry.name == "en_questions")
    records = [json.loads(line) for line in fetch_corpus(entry).read_text(encoding="utf-8").splitlines()]
    training, test = [], []
    for number, (_, article) in enumerate(groupby(records, key=lambda record: record["title"])):
        found = [text for text in joined(list(article)) if len(text.main) <= MOST_CHARACTERS]
        (training if number % TEST_EVERY else test).extend(found)
    for one in (training, test):
        random.Random(0).shuffle(one)
    return training[:NUM_TRAINING], test[:NUM_TEST]


def joined(article: list[dict[str, Any]]) -> Iterator[Text]:
    """Passages behind each other until there are enough questions."""
    passages, questions = [], []
    for passage, asked in groupby(article, key=lambda record: record["passage"]):
        passages.append(f"{passage}\n")
        questions += asked
        if len(questions) >= QUESTIONS:
            yield Text("".join(passages), questions[:QUESTIONS])
            passages, questions = [], []


def opening(question: dict[str, Any]) -> str:
    """What a branch reads before it answers."""
    return f"Question: {question['question']}\nAnswer:"


def write_data(work: Path, training: list[Text]) -> None:
    """The training texts with all their questions, and with each alone."""
    together = []
    for text in training:
        branches = [
            {"text": f"{opening(asked)} {asked['answers'][0]}", "answer_offset": len(opening(asked))}
            for asked in text.questions
        ]
        together.append({"main": text.main, "branches": branches})
    alone = [{"main": row["main"], "branches": [branch]} for row in together for branch in row["branches"]]
    for number, rows in ((QUESTIONS, together), (1, alone)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work / f"questions_{number}.jsonl").write_text(lines, encoding="utf-8")


def run_arm(work: Path, base: Path, lr: float, threads: int, name: str, seed: int) -> dict[str, Any]:
    """Train and test."""
    arm = ARMS[name]
    training, test = texts()
    write_data(work, training)
    out = work / "runs" / f"{name}-{seed}".replace(" ", "_").replace(",", "")
    if not (out / "final").exists():  # else it was stopped while it was tested
        shutil.rmtree(out, ignore_errors=True)
        at_once = min(QUESTIONS_A_STEP // arm.branches, 8)
        fivefold(
            *["parallel", "--model", base, "--data", work / f"questions_{arm.branches}.jsonl", "--no_learn_main"],
            *["--branches_per_sample", arm.branches, "--batch_size", at_once, *arm.flags.split()],
            *["--total_batch_size", QUESTIONS_A_STEP // arm.branches, "--lr", lr, "--warmup_ratio", 0.1],
            *["--epochs", 1, "--validation_frac", 0, "--eval_strategy", "no", "--save_strategy", "no"],
            *["--dtype", "bfloat16", "--log_every", 1, "--seed", seed, "--output_dir", out],
            threads=threads,
        )
    return {"training_seconds": training_seconds(out / "log.jsonl")} | tested(out / "final", arm, test, threads)


def training_seconds(log: Path) -> float:
    """Of all steps, as long as the median one: what else the machine did for a while does not count."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ends = [line["seconds"] for line in lines if "seconds" in line]
    return len(ends) * statistics.median(later - earlier for earlier, later in pairwise(ends))


def tested(folder: Path, arm: Arm, test: list[Text], threads: int) -> dict[str, Any]:
    """Seconds, and of each question whether the answer is right and its F1, by the number of questions at a time."""
    import torch

    from fivefold.branches.folder import stored_scheme
    from fivefold.branches.model import prepare_for_branches
    from fivefold.branches.settings import BranchScheme
    from fivefold.models.decoding import DecodingSettings
    from fivefold.serving.branches import write_branches
    from fivefold.serving.open_model import open_model

    torch.set_num_threads(threads)
    opened, tokenizer = open_model(str(folder))
    model: Any = opened.merge_and_unload() if hasattr(opened, "merge_and_unload") else opened  # type: ignore[operator]
    model.to(torch.bfloat16)
    scheme = stored_scheme(folder) or BranchScheme(rope_2d_ratio=0.0)
    prepare_for_branches(model, scheme)
    found: dict[str, Any] = {}
    for number in sorted({*arm.on_all, *arm.on_first}):
        chosen = test if number in arm.on_all else test[:NUM_TRIED]
        answers, start = [], time.perf_counter()
        for text in chosen:
            for first in range(0, QUESTIONS, number):
                asked = text.questions[first : first + number]
                said = [""] * len(asked)
                openings = [opening(question) for question in asked]
                how = DecodingSettings(max_new_tokens=24)
                for branch, piece in write_branches(model, tokenizer, text.main, openings, scheme, how):
                    said[branch - 1] += piece
                answers += said
        seconds = time.perf_counter() - start
        asked = [question for text in chosen for question in text.questions]
        scores = [score(answer, question["answers"]) for answer, question in zip(answers, asked, strict=True)]
        exact, f1 = (list(column) for column in zip(*scores, strict=True))
        found[str(number)] = {"seconds": seconds, "exact": exact, "f1": f1}
    return {"by_number": found, "f1": statistics.mean(found[str(max(arm.on_all))]["f1"])}


def score(answer: str, right: list[str]) -> tuple[int, float]:
    """Whether an answer is exactly one of the right ones, and the best F1; as SQuAD counts.

    Source: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, section 6.1.
    """
    said = words(answer)
    f1 = []
    for one in right:
        known = words(one)
        common = sum((Counter(said) & Counter(known)).values())
        f1.append(2 * common / (len(said) + len(known)) if common else float(said == known))
    return int(any(said == words(one) for one in right)), round(max(f1), 4)


def words(answer: str) -> list[str]:
    """Without case, punctuation and articles."""
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def report(runs: Runs, base: dict[str, Any]) -> str:
    """Markdown: quality by arm and number of questions at a time, and the time that is saved."""
    heads = [f"{number} at a time" for number in NUMBERS]
    lines = [
        f"{NUM_TRAINING * QUESTIONS:,} questions learned, {QUESTIONS} to a text. F1 in percent, mean and range of the "
        f"seeds, and the share of exactly right answers: of {NUM_TEST * QUESTIONS:,} held-out questions, and of the "
        f"{NUM_TRIED * QUESTIONS} on the first {NUM_TRIED} texts, 1 to {QUESTIONS} at a time.",
        "",
        f"| | seeds | all questions | exact | {' | '.join(heads)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(heads)}",
    ]
    for name, found in [("not trained", [base]), *((name, of(runs, name)) for name in ARMS)]:
        if found:
            at = max(found[0]["by_number"], key=int)
            cells = [spread(found, at, "f1"), spread(found, at, "exact")]
            cells += [spread(found, str(number), "f1", NUM_TRIED * QUESTIONS) for number in NUMBERS]
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *compared(of(runs, ONE_BY_ONE), of(runs, PLAIN))])


def of(runs: Runs, name: str) -> list[dict[str, Any]]:
    """The runs of an arm, by their seeds."""
    return sorted((run for run in runs.values() if run["arm"] == name), key=lambda run: run["seed"])


def spread(found: list[dict[str, Any]], at: str, what: str, first: int | None = None) -> str:
    """Mean over the seeds, lowest and highest, of the first questions."""
    means = [100 * statistics.mean(run["by_number"][at][what][:first]) for run in found if at in run["by_number"]]
    if len(means) < 2:
        return "".join(f"{mean:.1f}" for mean in means)
    return f"{statistics.mean(means):.1f} ({min(means):.1f} .. {max(means):.1f})"


def compared(alone: list[dict[str, Any]], together: list[dict[str, Any]]) -> list[str]:
    """Branches against one by one: quality question by question over all seeds, and seconds."""
    if not alone or not together:
        return []
    mean = statistics.mean
    theirs, ours = (
        [mean(scores) for scores in zip(*(run["by_number"][at]["f1"] for run in arm), strict=True)]
        for arm, at in ((alone, "1"), (together, "16"))
    )
    gaps = [100 * (one - other) for one, other in zip(ours, theirs, strict=True)]
    draw = random.Random(0)
    resampled = sorted(mean(draw.choices(gaps, k=len(gaps))) for _ in range(2000))
    training = [mean(run["training_seconds"] for run in arm) for arm in (alone, together)]
    answering = [mean(run["by_number"][at]["seconds"] for run in arm) for arm, at in ((alone, "1"), (together, "16"))]
    return [
        f"{PLAIN} against {ONE_BY_ONE}: F1 {mean(gaps):+.1f} points (95% of resamplings of the questions: "
        f"{resampled[50]:+.1f} .. {resampled[-51]:+.1f}); training {training[1]:,.0f} s against {training[0]:,.0f} s, "
        f"**{training[0] / training[1]:.1f}x**; answering {answering[1]:,.0f} s against {answering[0]:,.0f} s, "
        f"**{answering[0] / answering[1]:.1f}x**.",
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("branch_questions"))
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M, where there is one already")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = Runs(arguments.work / "results.jsonl", ("arm", "seed"), shown="f1")
    base = arguments.work / "base.json"
    if not arguments.report:
        model = arguments.model or real_model("smollm2", arguments.work)
        make = partial(run_arm, arguments.work, model, arguments.lr, arguments.threads)
        if not base.exists():
            base.write_text(json.dumps(tested(model, Arm("", on_first=()), texts()[1], arguments.threads)))
        runs.fill(make, [(name, seed) for seed in range(arguments.seeds) for name in arguments.arms])
    text = report(runs, json.loads(base.read_text()))
    text += f"\n\nSmolLM2-135M, {arguments.threads} thread(s). {measured_on('transformers', 'peft')}\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
