"""What does a DPO step cost: fivefold's against the straightforward one of four passes, on real preferences.

python benchmarks/dpo.py [--corpora zh_preferences en_preferences] [--dtypes bfloat16] [--size small] [--pairs 8]
    [--steps 6] [--rounds 3] [--threads 2] [--output FILE]

A step learns from the same pairs in every variant, with the same weights, dtype and optimizer, and no dropout:

- fivefold: the encoder reads each prompt once, the decoder writes both answers in one row, prompts and answers are
  packed into rows, only positions with a label go through the output layer, and the reference's log-probabilities are
  computed once, before training.
- four passes: policy and reference, chosen and rejected answers, each a call of transformers' T5, prompts and answers
  padded to the longest.

A step is forward, loss, backward, clipping at 1.0, fused AdamW and zero_grad; the first one is not counted. Useful
tokens are those of a prompt and of both its answers, once. Each measurement is a process of its own and the variants
take turns. Peak memory is that of the process less what the imports take, reference included where there is one, or
what the GPU allocated. It runs on the GPU where there is one.
"""

import argparse
import json
import pickle
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import in_own_process, measured_on
from t5_training import build

if TYPE_CHECKING:
    import torch

VOCAB_SIZE, INPUT_LENGTH, TARGET_LENGTH, BETA = 8192, 512, 512, 0.1
VARIANTS = ("fivefold, packed", "fivefold, one pair a row", "four passes, padded")


def tokenise_corpus(name: str, file: Path) -> str:
    """Write the pairs of a corpus as tokens, and say what they are like."""
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.preference_data import encode_preferences
    from fivefold.data.preferences import read_preferences
    from fivefold.data.settings import DialogueSettings
    from fivefold.tokenizer.chat_format import ChatFormat
    from fivefold.tokenizer.settings import TokenizerSettings
    from fivefold.tokenizer.train import train_tokenizer

    preferences = list(read_preferences(CorpusSettings([name])))
    texts = [message["content"] for preference in preferences for message in preference.prompt]
    texts += [text for preference in preferences for text in (preference.chosen, str(preference.rejected))]
    settings = TokenizerSettings(output_dir="", vocab_size=VOCAB_SIZE)
    tokenizer = train_tokenizer(iter(texts), settings).tokenizer
    lengths = DialogueSettings(input_length=INPUT_LENGTH, target_length=TARGET_LENGTH)
    chat = ChatFormat(tokenizer, "t5")
    pairs = encode_preferences(preferences, lengths, chat)
    file.write_bytes(pickle.dumps(pairs))
    counts = {
        "prompts": pairs.row_lengths("t5")[:, 0],
        "chosen": pairs.num_tokens[:, 0],
        "rejected": pairs.num_tokens[:, 1],
    }
    said = [
        f"{side} of {tokens.mean():.0f} tokens (half up to {np.median(tokens):.0f}, all up to {tokens.max()})"
        for side, tokens in counts.items()
    ]
    return f"**{name}**: {len(pairs):,} pairs, {', '.join(said)}; {chat.cuts}."


def steps_of(file: Path, num_pairs: int, num_steps: int) -> "tuple[Any, list[np.ndarray]]":
    """All pairs, and which of them each step learns from."""
    pairs = pickle.loads(file.read_bytes())
    drawn = np.random.default_rng(0).permutation(len(pairs))
    return pairs, [drawn[step * num_pairs : (step + 1) * num_pairs] for step in range(num_steps)]


def some_of(pairs: Any, numbers: np.ndarray) -> Any:
    """The pairs of some numbers."""
    sides = (pairs.prompts, pairs.chosen, pairs.rejected)
    return type(pairs)(*([side[number] for number in numbers] for side in sides))


def padded(rows: "list[np.ndarray]", fill: int, device: str) -> "torch.Tensor":
    """Rows padded to the longest."""
    import torch

    longest = max(map(len, rows))
    filled = [np.pad(row, (0, longest - len(row)), constant_values=fill) for row in rows]
    return torch.from_numpy(np.stack(filled).astype(np.int64)).to(device)


def four_passes(policy: Any, reference: Any, pairs: Any, device: str) -> "torch.Tensor":
    """The sum of DPO's losses, as one would write it down."""
    import torch
    import torch.nn.functional as F

    prompts = padded(pairs.prompts, 0, device)
    mask = padded([np.ones_like(prompt) for prompt in pairs.prompts], 0, device)

    def logps(model: Any, answers: "list[np.ndarray]") -> "torch.Tensor":
        labels = padded(answers, -100, device)
        logits = model(input_ids=prompts, attention_mask=mask, labels=labels).logits.float()
        chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        return (chosen * (labels != -100)).sum(-1)

    with torch.no_grad():
        reference_ratio = logps(reference, pairs.chosen) - logps(reference, pairs.rejected)
    ratio = logps(policy, pairs.chosen) - logps(policy, pairs.rejected)
    return -F.logsigmoid(BETA * (ratio - reference_ratio)).sum()


def measure(variant: str, dtype: str, file: Path, arguments: argparse.Namespace) -> None:
    """Train on the steps, the first to warm up, and print JSON."""
    import torch
    import transformers.models.t5.modeling_t5  # noqa: F401 - all processes import the same

    from fivefold import T5Config
    from fivefold.data.loader import tensors
    from fivefold.data.preference_pairs import PreferenceSource
    from fivefold.objectives.preference import PreferenceObjective
    from fivefold.objectives.settings import PreferenceLossSettings
    from fivefold.training.distributed import Processes
    from fivefold.training.reference import ReferencePass, reference_logps

    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    imports_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs, steps = steps_of(file, arguments.pairs, arguments.steps + 1)
    config = T5Config.from_name_or_file(arguments.size, dropout_rate=0.0)
    model, _ = build("fivefold", config)
    mixed = {"device_type": device, "dtype": torch.bfloat16, "enabled": dtype == "bfloat16"}
    capacity, before = (INPUT_LENGTH, 2 * TARGET_LENGTH), 0.0
    if variant.startswith("fivefold"):
        how = ReferencePass("t5", 0, capacity, arguments.pairs // 2, getattr(torch, dtype))
        # One variant tells what precomputation takes; the other only needs what it learns from.
        asked = np.arange(len(pairs)) if "packed" in variant else np.concatenate(steps)
        reference = np.zeros((len(pairs), 2), np.float32)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            alone = Processes(0, 1, torch.device(device))
            (reference[asked],) = reference_logps(model, [some_of(pairs, asked)], how, Path(folder), alone)
        before = time.perf_counter() - start
        objective = PreferenceObjective(PreferenceLossSettings(beta=BETA))

        def loss_of(numbers: np.ndarray) -> "torch.Tensor":
            source = PreferenceSource(
                some_of(pairs, numbers),
                "t5",
                pad_id=0,
                seed=0,
                capacity=capacity if "packed" in variant else None,
                reference_logps=reference[numbers],
            )
            batch = tensors(source.batch(np.arange(source.samples_per_epoch or 0)))
            return objective(model, {name: tensor.to(device) for name, tensor in batch.items()}).loss_sum

    else:
        weights = model.state_dict()
        model, frozen = build("transformers", config)[0], build("transformers", config)[0]
        for each in (model, frozen):
            each.load_state_dict(weights, strict=False)
        del weights
        frozen.to(device).eval().requires_grad_(False)

        def loss_of(numbers: np.ndarray) -> "torch.Tensor":
            return four_passes(model, frozen, some_of(pairs, numbers), device)

    model.to(device).train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds, losses = [], []
    for numbers in steps:
        start = time.perf_counter()
        with torch.autocast(**mixed):
            loss = loss_of(numbers) / len(numbers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports_kib) * 1024
    lengths = pairs.row_lengths("t5").sum(1)
    print(
        json.dumps(
            {
                "seconds": sum(seconds[1:]),
                "tokens": int(sum(lengths[numbers].sum() for numbers in steps[1:])),
                "tokens_in_all": int(lengths.sum()),
                "precomputation": before,
                "memory": torch.cuda.max_memory_allocated() if device == "cuda" else peak,
                "losses": [losses[0], losses[-1]],
            }
        )
    )


def section(name: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """One corpus: its lengths, a row for each variant, and what precomputation costs."""
    file = folder / f"{Path(name).stem}.pickle"
    lines = [
        tokenise_corpus(name, file),
        "",
        "| dtype | DPO step | useful tokens/s | packed is | peak memory | packed takes | first and last loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in arguments.dtypes:
        results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for _ in range(arguments.rounds):
            for variant in VARIANTS:
                words = ["--measure", variant, dtype, file, "--size", arguments.size, "--threads", arguments.threads]
                words += ["--pairs", arguments.pairs, "--steps", arguments.steps]
                results[variant].append(in_own_process(__file__, *words))
        speeds = {variant: [run["tokens"] / run["seconds"] for run in runs] for variant, runs in results.items()}
        medians = {variant: statistics.median(values) for variant, values in speeds.items()}
        memory = {variant: statistics.median(run["memory"] for run in runs) for variant, runs in results.items()}
        ours, straightforward = VARIANTS[0], VARIANTS[-1]
        for variant in VARIANTS:
            is_ours = variant == ours
            ratio = "" if is_ours else f"**{medians[ours] / medians[variant]:.2f}x**"
            share = "" if is_ours else f"**{memory[ours] / memory[variant]:.2f}x**"
            first, last = results[variant][0]["losses"]
            lines.append(
                f"| {dtype} | {variant} | {medians[variant]:,.0f} ({min(speeds[variant]):,.0f} .. "
                f"{max(speeds[variant]):,.0f}) | {ratio} | {memory[variant] / 2**20:,.0f} MiB | {share} | "
                f"{first:.5f}, {last:.5f} |"
            )
        before = statistics.median(run["precomputation"] for run in results[ours])
        tokens = results[ours][0]["tokens_in_all"]
        epoch = tokens / medians[ours]
        amortised = [
            f"{epochs * tokens / (before + epochs * epoch) / medians[straightforward]:.2f}x over {epochs}"
            for epochs in (1, 2, 3)
        ]
        lines += [
            "",
            f"{dtype}: the reference's log-probabilities of all pairs take {before:.1f} s, once; an epoch of packed "
            f"steps takes {epoch:.0f} s. Precomputation included, packed is {', '.join(amortised)} epochs.",
        ]
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["zh_preferences", "en_preferences"])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16"])
    parser.add_argument("--size", default="small")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        variant, dtype, file = arguments.measure
        measure(variant, dtype, Path(file), arguments)
        return
    lines = [
        f"T5 v1.1 {arguments.size}, {arguments.threads} threads, {arguments.pairs} pairs a step; {arguments.rounds} "
        f"processes of {arguments.steps} steps each, taking turns. Median process, slowest to fastest in brackets.",
        "",
        measured_on("transformers"),
    ]
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.corpora:
            lines += ["", *section(name, arguments, Path(work))]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
