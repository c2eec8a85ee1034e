"""What is packing worth: tokens a second, padding not counted, with real short texts in packed rows and in padded ones.

python benchmarks/packing.py [--corpora zh_reviews zh_instructions] [--dtypes bfloat16] [--size small] [--steps 6]
    [--rounds 3] [--threads 2] [--output FILE]

A corpus is tokenised and packed: reviews for span corruption, each by itself, into rows of 512, or instructions of at
most 128 tokens with answers of at most 512 into rows of as many. A step trains on 8 packed rows, or on as many
examples, drawn at random, as have as many tokens, padded in micro-batches of 16, which take about as much memory, and
whose gradients are added up. Padded to 256, longer ones are cut, and only what is left counts. A step is forward, loss,
backward, clipping at 1.0, fused AdamW and zero_grad, no dropout. Each measurement is a process of its own and the
variants take turns. The two corpora take about 25 minutes on two cores.
"""

import argparse
import json
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import in_own_process, measured_on
from t5_training import build

ROW, FIXED, ROWS_AT_ONCE, EXAMPLES_AT_ONCE = 512, 256, 8, 16
VOCAB_SIZE = 8192
Batch = dict[str, np.ndarray]
VARIANTS = {
    "packed": ("fivefold", "packed"),
    "longest": ("fivefold", "padded to the longest"),
    "fixed": ("fivefold", "padded to 256"),
    "transformers": ("transformers", "padded to the longest"),
}


def pack_corpus(name: str, num_steps: int, folder: Path) -> str:
    """Tokenise a corpus, write the batches of some steps for every variant, and say what the corpus is like."""
    from fivefold.corpus.read import open_corpus
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.corruption import SpanCorruption, build_corruption, special_id
    from fivefold.data.documents import DocumentSource
    from fivefold.data.examples import ExampleSource, PackedSource
    from fivefold.data.packing import balanced_length
    from fivefold.data.pairs import PairSource
    from fivefold.data.rows import seq2seq_batch
    from fivefold.data.settings import ObjectiveSettings
    from fivefold.data.tokens import TokenShards
    from fivefold.tokenizer.encode import CorpusEncoder
    from fivefold.tokenizer.settings import TokenizerSettings
    from fivefold.tokenizer.train import train_tokenizer

    fields = ("prompt", "response") if name.endswith("instructions") else ("text",)
    records = list(open_corpus(CorpusSettings([name]), fields))
    texts = [[record[field] for record in records] for field in fields]
    settings = TokenizerSettings(output_dir="", vocab_size=VOCAB_SIZE)
    tokenizer = train_tokenizer((text for side in texts for text in side), settings).tokenizer
    ids = [CorpusEncoder(tokenizer)(side) for side in texts]
    pad_id = special_id(tokenizer, "pad_token")
    if len(fields) == 1:
        corruption = build_corruption(ObjectiveSettings("span", ROW), tokenizer, seed=0)
        assert isinstance(corruption, SpanCorruption)
        examples: ExampleSource = DocumentSource(TokenShards.of_documents(ids[0]), corruption, pad_id=pad_id, seed=0)
        capacity, task = (ROW, balanced_length(examples.lengths, ROW)), "span corruption"
    else:
        limits = {"input_length": ROW // 4, "target_length": ROW, "eos_id": special_id(tokenizer, "eos_token")}
        examples = PairSource(*ids, **limits, pad_id=pad_id, seed=0)
        capacity, task = (ROW // 4, ROW), "prompt to response"
    packed = PackedSource(examples, capacity)
    tokens_per_step = ROWS_AT_ONCE * examples.lengths.sum() / (packed.samples_per_epoch or 1)
    drawn = np.random.default_rng(0).permutation(len(examples.lengths))
    # The step that each example belongs to when they come in this order.
    step_of = (examples.lengths[drawn].sum(1).cumsum() / tokens_per_step).astype(int)
    for step in range(num_steps):
        rows = np.arange(step * ROWS_AT_ONCE, (step + 1) * ROWS_AT_ONCE)
        padded = [
            seq2seq_batch(*examples.sides(some, np.zeros_like(some)), pad_id)
            for some in np.array_split(drawn[step_of == step], -(-(step_of == step).sum() // EXAMPLES_AT_ONCE))
        ]
        fixed = [at_length(batch, FIXED, min(FIXED, capacity[1]), pad_id) for batch in padded]
        batches = {"packed": [packed.batch(rows)], "longest": padded, "fixed": fixed}
        (folder / f"{step}.pickle").write_bytes(pickle.dumps(batches))
    sides = [
        f"{side} of {lengths.mean():.0f} tokens on average (a quarter up to {np.percentile(lengths, 25):.0f}, half "
        f"{np.median(lengths):.0f}, three quarters {np.percentile(lengths, 75):.0f}, 95% "
        f"{np.percentile(lengths, 95):.0f}, all {lengths.max()})"
        for side, lengths in zip(("inputs", "targets"), examples.lengths.T, strict=True)
    ]
    return f"**{name}**, {task}: {packed.describe()}; {' and '.join(sides)}."


def at_length(batch: Batch, length: int, target_length: int, pad_id: int) -> Batch:
    """The same batch padded to given lengths; what is longer is cut."""
    batch = {"attention_mask": np.ones_like(batch["input_ids"])} | batch
    fills = {"input_ids": (length, pad_id), "attention_mask": (length, 0), "labels": (target_length, -100)}
    return {
        name: np.pad(batch[name][:, :to], ((0, 0), (0, max(0, to - batch[name].shape[1]))), constant_values=fill)
        for name, (to, fill) in fills.items()
    }


def measure(variant: str, dtype: str, folder: Path, size: str, threads: int) -> None:
    """Train on the steps of a folder, the first to warm up, and print JSON: seconds and tokens of the others."""
    import torch

    from fivefold import T5Config
    from fivefold.data.loader import tensors
    from fivefold.objectives.objective import TokenCounts
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings

    torch.set_num_threads(threads)
    model, loss_of = build(VARIANTS[variant][0], T5Config.get_config(size, dropout_rate=0.0))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    objective = Seq2SeqObjective(LossSettings())
    seconds, counts, losses = [], [], []
    for path in sorted(folder.glob("*.pickle"), key=lambda path: int(path.stem)):
        made = pickle.loads(path.read_bytes())["longest" if variant == "transformers" else variant]
        batches: list[Any] = [tensors(batch) for batch in made]
        num_targets = sum(map(objective.count, batches))
        start, loss_sum = time.perf_counter(), 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = loss_of(model, batch, objective.count(batch)) * (objective.count(batch) / num_targets)
            loss.backward()
            loss_sum += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        counts.append(np.sum([objective.count_tokens(batch) for batch in batches], 0))
        losses.append(loss_sum)
    tokens = TokenCounts(*np.sum(counts[1:], 0).tolist())
    result = {"tokens_per_second": tokens.total / sum(seconds[1:]), "first_loss": losses[0]}
    print(json.dumps(result | tokens.nonpadding_fracs))


def section(name: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """One corpus: its lengths, and a row for each variant."""
    folder.mkdir()
    lines = [
        pack_corpus(name, arguments.steps + 1, folder),
        "",
        "| dtype | library | rows | useful tokens/s | packed is | inputs, targets without padding | first loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in arguments.dtypes:
        results: dict[str, list[dict]] = {}
        for _ in range(arguments.rounds):
            for variant in VARIANTS:
                words = ["--measure", variant, dtype, folder, "--size", arguments.size, "--threads", arguments.threads]
                results.setdefault(variant, []).append(in_own_process(__file__, *words))
        speeds = {variant: [run["tokens_per_second"] for run in runs] for variant, runs in results.items()}
        medians = {variant: statistics.median(measured) for variant, measured in speeds.items()}
        for variant, (library, rows) in VARIANTS.items():
            run, ratio = results[variant][0], medians["packed"] / medians[variant]
            lines.append(
                f"| {dtype} | {library} | {rows} | {medians[variant]:,.0f} ({min(speeds[variant]):,.0f} .. "
                f"{max(speeds[variant]):,.0f}) | {'' if variant == 'packed' else f'**{ratio:.2f}x**'} | "
                f"{run['input_nonpadding_frac']:.0%}, {run['target_nonpadding_frac']:.0%} | {run['first_loss']:.3f} |"
            )
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["zh_reviews", "zh_instructions"])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16"])
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        variant, dtype, folder = arguments.measure
        measure(variant, dtype, Path(folder), arguments.size, arguments.threads)
        return
    lines = [
        f"T5 v1.1 {arguments.size}, {arguments.threads} threads; {arguments.rounds} processes of {arguments.steps} "
        f"steps each, taking turns; {ROWS_AT_ONCE} packed rows a step, or examples with as many tokens, padded in "
        f"micro-batches of {EXAMPLES_AT_ONCE}. Median process, slowest to fastest in brackets; padding does not count.",
        "",
        measured_on("transformers"),
    ]
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.corpora:
            lines += ["", *section(name, arguments, Path(work) / name)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
