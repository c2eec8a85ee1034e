"""A tokenizer, and a tiny shape of each family as a file."""

import json
import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 512}
LLAMA = {
    "architectures": ["LLaMAForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """300 lines of invented words."""
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 7))) for _ in range(200)]
    return [" ".join(words.choices(vocabulary, k=words.randint(3, 40))) for _ in range(300)]


@pytest.fixture(scope="session")
def tokenizer(lines: list[str]) -> PreTrainedTokenizerBase:
    """500 tokens, 100 of them sentinels."""
    return train_tokenizer(lines, TokenizerSettings("", vocab_size=500, num_sentinels=100)).tokenizer


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By family; the decoder's in GaLore's spelling."""
    folder: Path = tmp_path_factory.mktemp("shapes")
    for family, fields in (("t5", T5), ("llama", LLAMA)):
        (folder / f"{family}.json").write_text(json.dumps(fields))
    return {family: str(folder / f"{family}.json") for family in ("t5", "llama")}
