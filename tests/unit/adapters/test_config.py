"""PEFT JSON files: whatever is wrong with one is told by the name of its key."""

import json
import logging
import random

import pytest
import torch
from tiny import LLAMA_BATCH, llama, t5, trained

from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.config import find_adapter_file, preset_names, read_adapter_config
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import ConfigError

DOCUMENT = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "bias": "none",
    "inference_mode": True,
}


def write(folder, name="adapter.json", **fields):
    (folder / name).write_text(json.dumps(fields))
    return str(folder / name)


def test_any_file_name_and_lower_case_will_do(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fivefold"):
        file = write(tmp_path, "my own.json", **DOCUMENT | {"peft_type": "lora", "task_type": "causal_lm"})
        config = read_adapter_config(file, is_t5=False)
    assert (config.r, config.lora_alpha, config.task_type, config.inference_mode) == (4, 8, "CAUSAL_LM", False)
    assert caplog.text.count("says inference_mode, under which nothing would train; it is left out") == 1
    write(tmp_path, "adapter_config.json", **DOCUMENT)
    assert read_adapter_config(str(tmp_path), is_t5=False).r == 4


def test_a_missing_file_that_is_called_like_a_preset_is_that_preset(caplog):
    with caplog.at_level(logging.INFO, "fivefold"):
        file = find_adapter_file("config/lora_llama2_7b_rank4.json")
    assert "there is no such file; the preset lora_llama2_7b_rank4 is taken" in caplog.text
    expected = {name: value for name, value in DOCUMENT.items() if name != "inference_mode"}
    assert json.loads(file.read_text()) == expected
    assert find_adapter_file("ia3").name == "ia3.json"
    with pytest.raises(ConfigError, match=r"no preset of that name; did you mean .*lora_rank8"):
        find_adapter_file("lora_rank9")
    assert len(preset_names()) == 16


BAD = {
    "typo": ({"lora_alhpa": 4}, "has a field 'lora_alhpa' that LORA does not know; did you mean lora_alpha"),
    "text": ({"r": "8"}, "r is '8'; expected a whole number"),
    "truth": ({"r": True}, "r is True; expected a whole number"),
    "fraction": ({"r": 2.5}, "r is 2.5; expected a whole number"),
    "zero": ({"r": 0}, "r is 0; it must be 1 or above"),
    "below": ({"lora_alpha": -1}, "lora_alpha is -1; it must be 1 or above"),
    "pattern": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is .*; it must be 1 or above"),
    "dropout": ({"lora_dropout": 1.5}, "lora_dropout is 1.5; it must be at least 0 and below 1"),
    "bias": ({"bias": "some"}, "bias is 'some'; expected one of none, all, lora_only"),
    "choice": ({"init_lora_weights": "pisa"}, "init_lora_weights is 'pisa'; expected .*pissa"),
    "start": ({"init_lora_weights": "eva"}, "init_lora_weights eva starts from a look at the data"),
    "kind": ({"peft_type": "LORRA"}, "has the peft_type 'LORRA', which peft does not have; did you mean LORA"),
    "no kind": ({"peft_type": None}, "has no peft_type"),
    "task": ({"task_type": "SEQ_2_SEQ_LM"}, "has the task_type 'SEQ_2_SEQ_LM', but the model's is CAUSAL_LM"),
    "classes": ({"task_type": "SEQ_CLS"}, "has the task_type SEQ_CLS, which labels a text with a head of its own"),
    "tokens": ({"task_type": "TOKEN_CLS"}, "has the task_type TOKEN_CLS, which labels each token"),
    "no task": ({"task_type": "CHAT"}, "has the task_type 'CHAT', but the model's is CAUSAL_LM"),
    "target": ({"target_modules": ["q_proj", "k"]}, "target_modules names 'k', which no layer is called.*k_proj"),
    "saved": ({"modules_to_save": ["lm_haed"]}, "modules_to_save names 'lm_haed'.*near it are lm_head"),
    "comma": ({"target_modules": "q_proj,v_proj"}, "target_modules is 'q_proj,v_proj', .*a list of names is written"),
    "regex": ({"target_modules": "["}, "target_modules is '\\[', no regular expression"),
    "norm": ({"target_modules": ["input_layernorm"]}, "Target module LlamaRMSNorm.*is not supported"),
    "other": (
        {"target_modules": ["q", "v"], "base_model_name_or_path": "google/t5"},
        "target_modules names 'q'.*It was saved for google/t5",
    ),
    "adalora": ({"peft_type": "ADALORA", "target_r": 12}, "target_r is 12 and init_r 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_by_its_key(name, tmp_path):
    fields, message = BAD[name]
    kept = ("task_type", "target_modules", "inference_mode") if "peft_type" in fields else tuple(DOCUMENT)
    described = {"peft_type": "LORA"} | {key: DOCUMENT[key] for key in kept} | fields
    with pytest.raises(ConfigError, match=message) as caught:
        attach_adapter(llama(), write(tmp_path, **described), "base", seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", ""])
def test_a_file_without_fields_is_refused(text, tmp_path):
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be read as JSON|expected an object"):
        read_adapter_config(str(tmp_path / "adapter.json"), is_t5=False)
    with pytest.raises(ConfigError, match="is a folder without adapter_config"):
        read_adapter_config(str(tmp_path), is_t5=False)


def test_an_adapter_of_another_model_is_used_where_it_fits_and_that_is_said(tmp_path, caplog):
    file = write(tmp_path, **DOCUMENT, base_model_name_or_path="meta-llama/Llama-2-7b-hf")
    with caplog.at_level(logging.INFO, "fivefold"):
        attach_adapter(llama(), file, "mine", seed=0)
    assert "was saved for meta-llama/Llama-2-7b-hf; here it is for mine" in caplog.text
    with pytest.raises(ConfigError, match="task_type 'CAUSAL_LM', but the model's is SEQ_2_SEQ_LM"):
        attach_adapter(t5(), file, "mine", seed=0)


# What people and editors do to such files.
_VALUES = [0, 1, 4, -3, 0.5, 2.0, 1.5, "8", "none", "all", "all-linear", "q_proj", "", True, False, None]
_VALUES += [[], ["q_proj"], ["q_proj", "v_proj"], ["query"], [0], {}, {"q_proj": 2}, {"q_proj": "x"}]
_KINDS = ["LORA", "LORA", "LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "HRA", "lora", "Lora", "LORRA"]


def _fuzzed(seed):
    """A valid file with up to two changes: a value, a key that is spelt wrong, a key that is gone."""
    draw = random.Random(seed)
    kind = draw.choice(_KINDS)
    fields = {"peft_type": kind, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
    if kind.upper() == "LORA":
        fields |= {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "use_dora": False, "use_rslora": False}
    if kind == "IA3":
        fields["feedforward_modules"] = ["down_proj"]
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        name = draw.choice(list(fields))
        match draw.choice(["value", "value", "spelling", "gone", "added"]):
            case "value":
                fields[name] = draw.choice(_VALUES)
            case "spelling":
                fields[name[:-2] + name[-1] + name[-2]] = fields.pop(name)
            case "gone":
                del fields[name]
            case "added":
                fields[draw.choice(["inference_mode", "layers_to_transform", "modules_to_save"])] = draw.choice(_VALUES)
    return fields


def test_fifty_fuzzed_files_train_or_are_refused_by_their_key(tmp_path):
    refusals, moved = [], []
    for seed in range(50):
        fields = _fuzzed(seed)
        try:
            with quiet_peft():
                model = attach_adapter(llama(), write(tmp_path, **fields), "base", seed=0)
                before = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
                trained(model, LLAMA_BATCH, steps=2)
        except ConfigError as error:
            refusals.append((fields, str(error)))
        else:
            now = dict(model.named_parameters())
            moved.append([name for name in before if not torch.equal(before[name], now[name])])
    assert len(moved) >= 20
    assert all(moved)
    for fields, message in refusals:
        assert any(key in message for key in (*fields, "peft_type")), f"{fields}: {message}"
        assert "\n" not in message
