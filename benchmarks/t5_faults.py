"""Which faults of a home-made T5 keep its loss from falling, which harm unseen, and what finds them before training?

python benchmarks/t5_faults.py [--work FOLDER] [--rows NAME ...] [--steps 300]    half an hour of one core
python benchmarks/t5_faults.py --report [--work FOLDER]    the table and FOLDER/t5_faults.png from what is there

Each row is fivefold's T5 (2 + 2 layers of width 128, 1.2M parameters, v1.1's untied output layer) and the usual loop
with one thing done wrong: faulty_loops.py. It learns to write Chinese reviews (zh_reviews, their first 32 tokens,
vocabulary 1,024) of which it reads all but 15% of the tokens, each hidden one under a sentinel; this is the objective
that Raffel et al. 2019 (1910.10683), 3.3.1, call BERT-style. It needs what a chat model needs of a T5, to read a prompt
and to write it down, and a small model learns that in seconds. 300 steps of 16 reviews, each seen once, so that printed
losses are nearly held-out ones (ten times as many steps see them about three times); Muon, a tenth of warm-up, cosine,
clipping at 1, float32, one thread, one seed.

Held-out losses are those of a model used rightly (answers shifted once, no future, no padding), whatever it was trained
with; faults of the network stay in it. What the prompt is worth: by how much that loss rises with the prompt of another
review. loop_checks.py asks each loop some questions before its first step. FOLDER/results.jsonl keeps what was
measured, so that the script goes on where it was stopped.
"""

import argparse
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from faulty_loops import LOOPS, Loop, mean_loss, shifted_inputs, train_step
from loop_checks import CHECKS, failed_checks
from machine import measured_on
from plays import Runs

from fivefold.data.loader import evaluation_batches, tensors
from fivefold.data.pairs import EncodedSource
from fivefold.training.optimizers import build_optimizer

VOCAB, LENGTH, BATCH, STEPS, HELD_OUT = 1024, 32, 16, 300, 512
ROWS = {name: loop for loops in LOOPS.values() for name, loop in loops.items()}
BASE = next(iter(ROWS))
DRAWN = {
    "it stays up": (
        "softmax before cross_entropy",
        "zero_grad between backward and step",
        "logits [T, B], labels [B, T]",
        "no residual connections",
        "schedule stepped once an epoch",
        "blocks in a plain list, unknown to the optimizer",
    ),
    "it falls, and something is wrong": (
        "decoder does not see the encoder",
        "cross-attention's padding mask upside down",
        "no positions",
        "labels shifted twice",
        "padding counts as labels",
        "no causal mask",
        "labels not shifted",
    ),
    "all is right but the steps": (
        "transformers' T5",
        "AdamW, 3e-2",
        "AdamW, 1e-3, 10 times as long",
        "AdamW, 1e-4",
        "Adafactor, 1e-2 of each tensor's RMS, 10 times as long",
        "Adafactor, 1e-4 of each tensor's RMS",
    ),
}


class Task(NamedTuple):
    """What all loops learn."""

    training: EncodedSource
    held_out: EncodedSource
    unigram_loss: float
    """Held-out loss of knowing how frequent each token is, and nothing else."""


@cache
def reviews() -> Task:
    """Reviews with tokens hidden, and in full; a tokenizer is trained on them first."""
    from fivefold.corpus.read import open_corpus
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.corruption import build_corruption
    from fivefold.data.rows import ragged_rows
    from fivefold.data.settings import ObjectiveSettings
    from fivefold.tokenizer.encode import CorpusEncoder
    from fivefold.tokenizer.settings import TokenizerSettings
    from fivefold.tokenizer.train import train_tokenizer

    texts = [record["text"] for record in open_corpus(CorpusSettings(["zh_reviews"]))]
    settings = TokenizerSettings(output_dir="", vocab_size=VOCAB, max_length=LENGTH, extra_special_tokens=[])
    tokenizer: Any = train_tokenizer(iter(texts), settings).tokenizer
    objective = ObjectiveSettings(input_length=LENGTH + 8, noise_density=0.15, mean_span_length=1.0)
    corruption, end = build_corruption(objective, tokenizer, seed=0), [tokenizer.eos_token_id]
    rows = [ids[:LENGTH] for ids in CorpusEncoder(tokenizer)(texts) if len(ids) >= LENGTH // 4]
    lengths = np.array(list(map(len, rows)))
    flat = ragged_rows(np.concatenate(rows), lengths.cumsum() - lengths, lengths)
    prompts, _ = corruption.corrupted(flat, np.arange(len(rows)))
    inputs = [ids[:length] for ids, length in zip(prompts.ids, prompts.lengths, strict=True)]
    answers = [np.concatenate([ids, end]) for ids in rows]
    counts = np.bincount(np.concatenate(answers[HELD_OUT:]), minlength=VOCAB) + 1.0
    unigram_loss = -np.log(counts / counts.sum())[np.concatenate(answers[:HELD_OUT])].mean()
    pad_id = tokenizer.pad_token_id
    return Task(
        EncodedSource(inputs[HELD_OUT:], answers[HELD_OUT:], pad_id=pad_id, seed=0),
        EncodedSource(inputs[:HELD_OUT], answers[:HELD_OUT], pad_id=pad_id, seed=0, shuffle=False),
        float(unigram_loss),
    )


def run_row(row: str, steps: int) -> dict[str, Any]:
    """Check and train one loop; what it printed, and what the model is worth."""
    torch.set_num_threads(1)
    task, loop = reviews(), ROWS[row]
    model = loop.build(VOCAB)
    failed = failed_checks(loop, model, tensors(task.training.batch(np.arange(BATCH))))
    losses = train(loop, model, task.training, loop.length * steps)
    loss, with_other_prompts = held_out_losses(model, task.held_out)
    return {"loss": loss, "prompt": with_other_prompts - loss, "curve": losses, "failed": failed}


def train(loop: Loop, model: Any, source: EncodedSource, steps: int) -> list[float]:
    """Train in place; the loss that the loop prints at each step."""
    optimizer = build_optimizer(model.train(), loop.optimizer)
    batches = (tensors(source.batch(np.arange(step * BATCH, (step + 1) * BATCH))) for step in range(steps))
    return [train_step(loop, model, optimizer, batch, loop.rate(step, steps)) for step, batch in enumerate(batches)]


@torch.no_grad()
def held_out_losses(model: Any, source: EncodedSource) -> tuple[float, float]:
    """Mean loss of an answer's token, with its own prompt and with that of the row before it."""
    model.eval()
    sums, count = [0.0, 0.0], 0
    for batch in evaluation_batches(source, HELD_OUT, 4 * BATCH):
        num_labels = int((batch["labels"] >= 0).sum())
        count += num_labels
        inputs = shifted_inputs(model, batch)
        others = {name: inputs[name].roll(1, 0) for name in {"input_ids", "attention_mask"} & set(inputs)}
        for place, given in enumerate((inputs, inputs | others)):
            sums[place] += float(mean_loss(model(**given).logits, batch["labels"])) * num_labels
    return sums[0] / count, sums[1] / count


def table(runs: Runs) -> str:
    """Losses as printed and as they are, and which checks find the fault."""
    lines = [
        "| | what is wrong | first loss printed | last 20 printed | held out, used rightly | prompt is worth | fails |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group, loops in LOOPS.items():
        for row in loops:
            if run := runs.get((row,)):
                numbers = (run["curve"][0], statistics.mean(run["curve"][-20:]), run["loss"])
                words = [group, row, *map("{:.2f}".format, numbers), f"{run['prompt']:+.2f}", " ".join(run["failed"])]
                lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def legend() -> str:
    """What the checks ask."""
    questions = [(letter, (check.__doc__ or "").splitlines()[0]) for letter, check in CHECKS.items()]
    return "\n".join(f"- {letter}: {question}" for letter, question in questions)


def draw(runs: Runs, file: Path, unigram_loss: float) -> None:
    """Printed losses, means of 10 steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(18, 6), sharey=True)
    for panel, (title, rows) in zip(panels, DRAWN.items(), strict=True):
        for row in (BASE, *rows):
            if run := runs.get((row,)):
                means = np.array(run["curve"][: len(run["curve"]) // 10 * 10]).reshape(-1, 10).mean(1)
                style: dict[str, Any] = {"label": row, "linewidth": 1.5}
                if row == BASE:
                    style = {"label": "nothing is wrong", "linewidth": 3.0, "color": "black"}
                panel.plot(np.arange(len(means)) * 10 + 5, means, **style)
        for height, name in ((math.log(VOCAB), "guessing"), (unigram_loss, "knowing how frequent tokens are")):
            panel.axhline(height, color="grey", linewidth=0.8, linestyle=":")
            place = {"transform": panel.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            panel.text(0.99, height, name, color="grey", fontsize=8, **place)
        panel.set(title=title, xlabel="steps", ylim=(0, 11), yticks=range(8))
        panel.legend(fontsize=8, loc="upper right")
    panels[0].set_ylabel("loss that the loop prints, nats a token")
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Train what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("t5_faults"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--report", action="store_true", help="only print and draw what is there")
    words = parser.parse_args()
    words.work.mkdir(parents=True, exist_ok=True)
    runs = Runs(words.work / "results.jsonl", ("row",))
    if not words.report:
        runs.fill(lambda row: run_row(row, words.steps), [(row,) for row in words.rows])
    unigram_loss = reviews().unigram_loss
    print(f"{measured_on('transformers')}\n\n{table(runs)}\n\n{legend()}\n")
    print(f"Guessing: {math.log(VOCAB):.2f}. Knowing how frequent tokens are: {unigram_loss:.2f}.")
    if (BASE,) in runs:
        draw(runs, words.work / "t5_faults.png", unigram_loss)


if __name__ == "__main__":
    main()
