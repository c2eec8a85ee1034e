"""From raw Chinese reviews to a T5 that fills in blanks, in a few minutes on two CPU cores (`make demo`).

Each step is a command that you could type; it is printed before it runs.
"""

import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fivefold.data.tokens import TokenShards
from fivefold.tokenizer.load import load_tokenizer

DEMO = Path("demo")
STEPS = 1200
NUM_SENTENCES = 6

HONEST = f"""
What this shows: the whole way from raw text to a model that writes, and a loss on unseen reviews that falls. After
{STEPS:,} steps a T5 of 5 million parameters, kept as 3.5 million in thin factors, knows how often words occur and a
little of what follows what: many of its guesses are commas and common words. What it cannot do: it knows no facts,
answers no question and cannot chat. T5 v1.1 small has fifteen times the parameters and read a trillion tokens, not
three million; for more, the same commands take a larger --model_config, more --data and more steps.
"""


def run(command: str) -> None:
    """Print a command and run it with this Python."""
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    assert words[0] == "fivefold"
    subprocess.run([sys.executable, "-m", *words], check=True)


def blank_out(sentence: str, chooser: random.Random) -> str:
    """Hide two or three characters of the sentence's middle behind ___."""
    length = chooser.choice([2, 3])
    start = chooser.randrange(4, len(sentence) - length - 3)
    return sentence[:start] + "___" + sentence[start + length :]


def held_out_sentences() -> list[str]:
    """Some reviews of middling length that the training never saw, decoded from their tokens."""
    shards = TokenShards.open(DEMO / "tokens" / "validation")
    tokenizer = load_tokenizer(DEMO / "tokens" / "tokenizer")
    texts = [str(tokenizer.decode(document)) for document in shards.documents()]
    return [text for text in texts if 18 <= len(text) <= 40][:NUM_SENTENCES]


def main() -> None:
    """Run the demo from an empty folder."""
    begin = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    run("fivefold tokenizer --data zh_reviews --vocab_size 4096 --max_length 128 --output_dir demo/tokenizer")
    run("fivefold prepare --data zh_reviews --tokenizer demo/tokenizer --validation_frac 0.03 --output_dir demo/tokens")
    run(
        "fivefold pretrain --data demo/tokens --model_config t5_mini --input_length 128 --batch_size 16"
        " --optimizer loro_muon --lr 3e-3 --loro_scope all --loro_attn_rank 64 --loro_mlp_rank 64"
        f" --num_training_steps {STEPS} --eval_every 200 --save_every 400 --log_every 20 --output_dir demo/run"
    )

    sentences = held_out_sentences()
    chooser = random.Random(0)
    blanks = [blank_out(sentence, chooser) for sentence in sentences]
    (DEMO / "blanks.txt").write_text("\n".join(blanks) + "\n", encoding="utf-8")
    run("fivefold generate --model demo/run/final --input_file demo/blanks.txt --output_file demo/filled.jsonl")
    for sentence, line in zip(sentences, (DEMO / "filled.jsonl").read_text(encoding="utf-8").splitlines(), strict=True):
        result = json.loads(line)
        print(f"\nheld out  {sentence}\nblank     {result['input']}\nfilled    {result['output']}")

    losses = [
        entry["eval_loss"]
        for entry in map(json.loads, (DEMO / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines())
        if "eval_loss" in entry
    ]
    print(f"\nHeld-out loss: {losses[0]:.3f} before training, {losses[-1]:.3f} after, in nats a token.")
    print(HONEST)
    print(f"Curves: {DEMO / 'run' / 'report.html'}. Everything took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()
