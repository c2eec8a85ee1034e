"""Adapters out of PEFT JSON files: they train although a file says otherwise, and peft opens what is saved."""

import json
import logging

import pytest
import torch
from peft import PeftModel

from fivefold import T5Config, T5Model
from fivefold.errors import CheckpointError, ConfigError
from fivefold.models.new_adapter import attach_adapter, load_adapter_weights, quiet_peft

SHAPE = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
BATCH = {"input_ids": torch.arange(2, 10)[None], "labels": torch.arange(2, 8)[None]}


def _model():
    torch.manual_seed(0)
    return T5Model(T5Config(**SHAPE))


def _file(tmp_path, **fields):
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q", "v"], **fields}))
    return str(path)


@pytest.mark.parametrize(
    "fields", [{}, {"peft_type": "IA3", "r": None}, {"use_dora": True}, {"task_type": "SEQ_2_SEQ_LM"}]
)
def test_only_the_adapter_trains(fields, tmp_path, caplog):
    described = {"peft_type": "LORA", "r": 2, "target_modules": ["q", "v"], "inference_mode": True} | fields
    if described["peft_type"] == "IA3":
        described |= {"feedforward_modules": []}
        del described["r"]
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps(described))
    with caplog.at_level(logging.INFO, "fivefold"):
        model = attach_adapter(_model(), str(path), "base", seed=0)
    assert "says inference_mode, under which nothing would train; it is left out" in caplog.text
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name or "ia3_" in name for name in trained)
    with quiet_peft():
        model(**BATCH).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_what_is_saved_is_opened_by_peft_and_loaded_again(tmp_path):
    model = attach_adapter(_model(), _file(tmp_path), str(tmp_path), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    with quiet_peft():
        model.save_pretrained(str(tmp_path / "saved"))
        expected = model(**BATCH).loss
        theirs = PeftModel.from_pretrained(_model(), str(tmp_path / "saved"))
        torch.testing.assert_close(theirs(**BATCH).loss, expected)
    described = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path)
    again = attach_adapter(_model(), _file(tmp_path), "base", seed=1)
    load_adapter_weights(again, tmp_path / "saved")
    with quiet_peft():
        torch.testing.assert_close(again(**BATCH).loss, expected)
    other = attach_adapter(_model(), _file(tmp_path, r=3), "base", seed=1)
    with pytest.raises(CheckpointError, match="is not of the shape that --adapter describes now"):
        load_adapter_weights(other, tmp_path / "saved")


def test_the_seed_decides_the_adapters_weights(tmp_path):
    states = [attach_adapter(_model(), _file(tmp_path), "base", seed=seed).state_dict() for seed in (0, 0, 1)]
    same, other = ([torch.equal(states[0][name], state[name]) for name in state] for state in states[1:])
    assert all(same)
    assert not all(other)


BAD = {
    "typo": ({"lora_alhpa": 4}, "has a field 'lora_alhpa' that LORA does not know; did you mean lora_alpha?"),
    "kind": ({"peft_type": "lora"}, "has the peft_type 'lora'; expected one of .*LORA"),
    "task": ({"task_type": "CAUSAL_LM"}, "is for the task CAUSAL_LM, but the model's is SEQ_2_SEQ_LM"),
    "target": ({"target_modules": ["q_proj"]}, "does not fit T5Model"),
    "rank": ({"r": 0}, "does not fit T5Model"),
    "prompts": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
        "of the kind PROMPT_TUNING, which adds to what",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_an_adapter_is_refused(name, tmp_path):
    fields, message = BAD[name]
    path = tmp_path / "adapter.json"
    described = {"peft_type": "LORA", "target_modules": ["q"]} | fields
    if fields.get("peft_type") == "PROMPT_TUNING":
        del described["target_modules"]
    path.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=message):
        attach_adapter(_model(), str(path), "base", seed=0)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "adapter.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        attach_adapter(_model(), str(tmp_path / "adapter.json"), "base", seed=0)
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        attach_adapter(_model(), str(tmp_path / "absent.json"), "base", seed=0)
