"""Tiny models of every kind that can answer, each a folder as training leaves one, their weights drawn and large."""

import random
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.lowrank.settings import LowRankSettings
from fivefold.lowrank.store import save_model
from fivefold.models.build import build_model
from fivefold.models.settings import ModelSettings
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

KINDS = ("t5", "llama", "low_rank_t5", "adapter_t5", "adapter_llama")

_SHAPES = {
    "t5": '{"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 640}',
    "llama": '{"architectures": ["LLaMAForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "vocab_size": 640,'
    ' "num_hidden_layers": 2, "num_attention_heads": 4}',
}
_THIN = LowRankSettings(loro_scope="all", loro_attn_rank=4, loro_mlp_rank=6)


def small_tokenizer() -> PreTrainedTokenizerBase:
    """English words, Chinese characters, and bytes for all others."""
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 7))) for _ in range(200)]
    vocabulary += list("你好吗我很今天气真不错谢谢")
    lines = [" ".join(words.choices(vocabulary, k=words.randint(3, 40))) for _ in range(300)]
    settings = TokenizerSettings("", vocab_size=600, num_sentinels=10)
    return train_tokenizer(lines, settings).tokenizer


def write_model(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder to name with --model."""
    if kind.startswith("adapter"):
        base = write_model(kind.removeprefix("adapter_"), folder / "base", tokenizer)
        _write_adapter(base, folder / "adapter")
        return folder / "adapter"
    family = kind.removeprefix("low_rank_")
    shape = folder / f"{family}.json"
    folder.mkdir(parents=True, exist_ok=True)
    shape.write_text(_SHAPES[family])
    low_rank = _THIN if kind.startswith("low_rank") else LowRankSettings()
    settings = ModelSettings(model_config=str(shape))
    model, _ = build_model(settings, low_rank, tokenizer, 0, default_init="spectral")
    with torch.no_grad():  # a fresh model says the same whatever it is asked
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    save_model(model, folder / "final")
    save_tokenizer(tokenizer, folder / "final")
    return folder / "final"


def _write_adapter(base: Path, folder: Path) -> None:
    from fivefold.models.load import load_model

    model: PreTrainedModel = load_model(str(base))
    torch.manual_seed(1)
    names = ["q", "v"] if (base.parent / "t5.json").exists() else ["q_proj", "v_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what peft still asks of transformers
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(folder))
