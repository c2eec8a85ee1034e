"""From raw Chinese reviews to a T5 that tells praise from complaint, in minutes on two CPU cores (`make demo`).

Each step is a command that you could type; it is printed before it runs. Of some 17,000 reviews a twelfth is held
out: neither tokenizer nor any model sees it. All others are raw text to pretrain on; 6,000 of them have a label in SFT,
and 4,000 more have one in DPO, where the SFT model's own wrong answers are the rejected ones.
"""

import argparse
import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.held_out import text_digest
from fivefold.models.answers import Answerer
from fivefold.models.decoding import DecodingSettings
from fivefold.serving.open_model import open_model

QUESTION = "好评还是差评？"
ANSWERS = {"positive": "好评。写的人很满意。", "negative": "差评。写的人不满意。"}
HELD_OUT_PART = 12
NUM_TAUGHT, NUM_COMPARED = 6000, 3000

FRESH = "--model_config modern_mini --loro_scope all --loro_attn_rank 64 --loro_mlp_rank 64 --optimizer loro_muon"
SFT = (
    "--packing --input_length 256 --target_length 48 --batch_size 16 --optimizer loro_muon --lr 2e-3"
    " --eval_every 50 --save_every 0"
)
# As long as pretraining and two epochs take together.
SCRATCH_EPOCHS = 5.0
# Hot draws from the two likeliest tokens: where the model is sure of an answer, too, it writes the other one. Pairs
# made of mistakes alone would teach it to doubt whatever it thinks: docs/methods/dpo.md has the figures.
REJECTED = "--max_new_tokens 12 --batch_size 128 --temperature 2 --top_k 2"
DPO = (
    "--packing --input_length 256 --target_length 96 --batch_size 16 --optimizer loro_muon --lr 1e-3 --beta 0.3"
    " --sft_weight 1 --validation_frac 0.1 --log_every 2 --eval_every 6 --save_every 0"
)
SAID = ("房间干净，早餐好吃，下次还住这里。", "用了三天就坏了，客服也没有人理。", "故事感人，一口气读完，推荐给朋友。")

HONEST = """
What this shows: the whole way from raw text to a chat, and what pretraining on raw text is worth where few texts have a
label. What it cannot do: this T5 of 3 million parameters has read a million characters and knows two sentences to say.
Differences of a point are noise in a single run; benchmarks/results/demo_seeds.md has three seeds. For more, the same
commands take a larger --model_config, more --data and more steps.
"""


class Review(NamedTuple):
    """What somebody wrote, and whether it is praise."""

    text: str
    label: str

    @property
    def question(self) -> str:
        """What the model is asked."""
        return f"{QUESTION}{self.text}"


def run(command: str, typed: str | None = None) -> float:
    """Print a command, run it with this Python and perhaps type something into it; its seconds."""
    print(f"\n$ {command}", *(f"> {line}" for line in (typed or "").splitlines()), sep="\n", flush=True)
    words = shlex.split(command)
    assert words[0] == "fivefold"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", *words], input=typed, text=True, check=True)
    return time.monotonic() - begin


def write_lines(file: Path, records: Iterable[dict[str, str]]) -> None:
    """Write JSON lines."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text("".join(lines), encoding="utf-8")


def split_reviews(demo: Path, seed: int) -> list[Review]:
    """Write what each step reads; the held-out reviews, which none does."""
    reviews = [Review(record["text"], record["label"]) for record in open_corpus(CorpusSettings(["zh_reviews"]))]
    held_out = [review for review in reviews if text_digest(review.text) % HELD_OUT_PART == 0]
    others = [review for review in reviews if text_digest(review.text) % HELD_OUT_PART]
    random.Random(seed).shuffle(others)
    taught, compared = others[:NUM_TAUGHT], others[NUM_TAUGHT : NUM_TAUGHT + NUM_COMPARED]
    demo.mkdir(parents=True)
    write_lines(demo / "reviews.jsonl", ({"text": review.text} for review in others))
    write_lines(demo / "taught.jsonl", ({"prompt": one.question, "response": ANSWERS[one.label]} for one in taught))
    write_lines(demo / "compared.jsonl", ({"prompt": one.question, "chosen": ANSWERS[one.label]} for one in compared))
    return held_out


def accuracy(model: Path, reviews: list[Review]) -> float:
    """Share of the reviews that a model answers with exactly the right sentence."""
    answerer = Answerer(*open_model(str(model)))
    reviews = sorted(reviews, key=lambda review: len(review.text))
    right = 0
    for start in range(0, len(reviews), 64):
        batch = reviews[start : start + 64]
        questions = [[{"role": "user", "content": review.question}] for review in batch]
        answers = answerer.write(questions, DecodingSettings(max_new_tokens=12))
        right += sum(answer == ANSWERS[review.label] for answer, review in zip(answers, batch, strict=True))
    return right / len(reviews)


def pretrain(demo: Path, seed: int) -> float:
    """Tokens and a T5 that has read them; the seconds of the training."""
    run(
        f"fivefold tokenizer --data {demo}/reviews.jsonl --vocab_size 4096 --max_length 256"
        f" --output_dir {demo}/tokenizer"
    )
    run(
        f"fivefold prepare --data {demo}/reviews.jsonl --tokenizer {demo}/tokenizer --validation_frac 0.02"
        f" --output_dir {demo}/tokens"
    )
    return run(
        f"fivefold pretrain --data {demo}/tokens {FRESH} --lr 1e-2 --dense_lr 3e-2 --input_length 64 --batch_size 64"
        f" --num_training_steps 300 --eval_every 50 --save_every 0 --seed {seed} --output_dir {demo}/run"
    )


def teach(demo: Path, source: str, name: str, seed: int, epochs: float = 2) -> float:
    """SFT into a folder; its seconds."""
    return run(
        f"fivefold sft --data {demo}/taught.jsonl {source} {SFT} --epochs {epochs} --seed {seed}"
        f" --output_dir {demo}/{name}"
    )


def prefer(demo: Path, sft: str, name: str, seed: int) -> tuple[float, dict[str, float]]:
    """DPO against wrong answers of the SFT model itself; its seconds, and what held-out pairs showed in the end."""
    seconds = run(
        f"fivefold rejected --model {demo}/{sft}/final --data {demo}/compared.jsonl {REJECTED} --seed {seed}"
        f" --output_file {demo}/{name}_pairs.jsonl"
    )
    seconds += run(
        f"fivefold dpo --model {demo}/{sft}/final --data {demo}/{name}_pairs.jsonl {DPO} --seed {seed}"
        f" --output_dir {demo}/{name}"
    )
    log = (demo / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, [entry for entry in map(json.loads, log) if "eval_loss" in entry][-1]


def majority(reviews: list[Review]) -> float:
    """The accuracy of giving the commoner answer always."""
    good = sum(review.label == "positive" for review in reviews) / len(reviews)
    return max(good, 1 - good)


def main() -> None:
    """Run the demo from an empty folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    arguments = parser.parse_args()
    demo, seed = arguments.output_dir, arguments.seed
    begin = time.monotonic()
    shutil.rmtree(demo, ignore_errors=True)
    held_out = split_reviews(demo, seed)

    pretraining = pretrain(demo, seed)
    sft = teach(demo, f"--model {demo}/run/final", "sft", seed)
    scratch = teach(demo, f"--tokenizer {demo}/tokenizer {FRESH}", "scratch", seed, SCRATCH_EPOCHS)
    dpo, pairs = prefer(demo, "sft", "dpo", seed)
    run(f"fivefold chat --model {demo}/dpo/final --no_do_sample", "\n/reset\n".join(QUESTION + text for text in SAID))
    run(f"fivefold report {demo}/dpo")

    print(f"\nRight answers to {len(held_out):,} held-out reviews, and seconds of training:")
    print(f"the commoner answer, always    {majority(held_out):6.1%}")
    for name, folder, seconds in (
        ("SFT, from scratch", "scratch", scratch),
        ("pretraining, SFT", "sft", pretraining + sft),
        ("pretraining, SFT, DPO", "dpo", pretraining + sft + dpo),
    ):
        print(f"{name:<31}{accuracy(demo / folder / 'final', held_out):6.1%}  {seconds:4.0f} s")
    accurate, margin = pairs["eval_reward_accuracy"], pairs["eval_reward_margin"]
    print(f"Held-out pairs after DPO: reward accuracy {accurate:.1%}, reward margin {margin:.2f}.")
    print(HONEST)
    print(f"All curves: {demo / 'dpo' / 'report.html'}. Everything took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()
