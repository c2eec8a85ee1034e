"""The commands of docs/methods/chinese_pipeline.md, in their order: each finds what the one before it left.

The model is tiny, the data few and the steps two; recipes and names of folders are the page's own.
"""

import io
import json
import re
import shlex
from pathlib import Path

from wiki_dump import articles, with_others, write_dump

from fivefold.cli import main
from fivefold.models.load import load_model

ROOT = Path(__file__).parents[2]
RANKS = "--loro_attn_rank 4 --loro_mlp_rank 4"
STEPS = "--batch_size 4 --total_batch_size 4 --eval_samples 4 --dtype float32"
SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "qk_norm": True}
SHAPE |= {"vocab_size": 1024, "position": "adaptive_alibi", "feed_forward": "swiglu", "tie_word_embeddings": False}
# What takes the place of a command's own flags and of its recipe's, by how the command begins.
SMALL = {
    "fivefold prepare --data zhwiki-": "--num_workers 0",
    "fivefold tokenizer": "--vocab_size 1024 --max_length 64",
    "fivefold prepare --data runs/": "--num_workers 0 --validation_frac 0.2",
    "fivefold pretrain": f"{RANKS} {STEPS} --model_config shape.json --input_length 48 --num_training_steps 2",
    "fivefold sft": f"{RANKS} {STEPS} --data answers.jsonl --epochs 0.2 --samples 1 --sample_tokens 4",
    "fivefold rejected": "--data answers.jsonl --max_new_tokens 6",
    "fivefold dpo": f"{RANKS} {STEPS} --data runs/rejected_zh.jsonl --epochs 0.2 --validation_frac 0.2 --kl_prompts 0",
    "fivefold chat": "--max_new_tokens 4",
    "fivefold report": "",
}


def commands() -> list[str]:
    text = (ROOT / "docs" / "methods" / "chinese_pipeline.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return block.replace("\\\n", " ").splitlines()


def test_every_stage_finds_what_the_one_before_it_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    write_dump(tmp_path / "zhwiki-pages-articles.xml.bz2", with_others(articles(60)))
    answers = [{"prompt": f"第{n}个问题是什么？", "response": f"那是关于第{n}条河的。"} for n in range(60)]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in answers), "utf-8")
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n"))
    for command in commands():
        (more,) = [words for begin, words in SMALL.items() if command.startswith(begin)]
        for name in re.findall(r"--\w+ ", more):
            command = re.sub(rf"{name}\S+", "", command)
        assert main(shlex.split(f"{command} {more}")[1:]) == 0, capsys.readouterr().err
    for run in ("t5_zh_130m", "t5_zh_130m_sft", "t5_zh_130m_dpo"):
        ranks = load_model(str(tmp_path / "runs" / run / "final")).config.low_rank["ranks"]
        assert set(ranks.values()) == {4}  # low rank at every stage
    assert (tmp_path / "runs" / "t5_zh_130m_dpo" / "report.html").is_file()
