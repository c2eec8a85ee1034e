"""Adapters out of PEFT JSON files: they train although a file says otherwise, and peft opens what is saved."""

import json
import logging

import pytest
import torch
from peft import PeftModel

from fivefold import T5Config, T5Model
from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.folder import load_adapter_weights
from fivefold.adapters.gradients import check_gradients
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import CheckpointError, ModelError
from fivefold.lowrank.store import save_model
from fivefold.models.load import load_model

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


def test_a_tensor_that_would_never_learn_is_told_by_name(tmp_path):
    model = attach_adapter(_model(), _file(tmp_path, modules_to_save=["lm_head"]), "base", seed=0)
    with quiet_peft():
        model(**BATCH).loss.backward()
    check_gradients(model)
    next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).grad = None
    with pytest.raises(ModelError, match=r"1 of the adapter's \d+ tensors, such as .*lora_B.*, got no gradient"):
        check_gradients(model)
    check_gradients(_model())  # without an adapter it is no business of this one


def test_the_next_adapter_is_trained_on_what_the_last_one_made(tmp_path):
    save_model(_model(), tmp_path / "base")
    below = str(tmp_path / "base")
    for number in range(3):
        model = attach_adapter(load_model(below), _file(tmp_path), below, seed=number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        below = str(tmp_path / f"adapter {number}")
        with quiet_peft():
            model.save_pretrained(below)
            expected = model.eval()(**BATCH).logits
        torch.testing.assert_close(load_model(below).eval()(**BATCH).logits, expected)
