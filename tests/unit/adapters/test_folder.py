"""Adapters: opened on their base wherever both lie, or refused in one sentence."""

import json
import shutil

import pytest
import torch
from chat_models import small_tokenizer, write_model
from safetensors.torch import load_file

from fivefold.errors import CheckpointError
from fivefold.models.family import stored_family
from fivefold.models.load import load_model
from fivefold.serving.open_model import open_model


@pytest.fixture
def adapter(tmp_path):
    return write_model("adapter_llama", tmp_path / "llama", small_tokenizer())


def change(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_its_weights_are_those_of_the_base_and_the_product_of_the_factors(adapter):
    assert stored_family(str(adapter)) == "llama"
    model, tokenizer = open_model(str(adapter))  # the tokenizer lies with the base
    assert len(tokenizer) == 600
    base = load_model(str(adapter.parent / "base" / "final")).state_dict()
    factors = {name.split("base_model.model.")[-1]: value for name, value in load_file(adapter / "adapter_model.safetensors").items()}  # fmt: skip  # noqa: E501
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] / 4  # rank 4
    changed = 0
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in factors:
            product = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
            torch.testing.assert_close(weight, base[name] + scale * product)
            changed += 1
        else:
            assert torch.equal(weight, base[name])
    assert changed == 4  # query and value of two layers


def test_both_may_be_moved_together(adapter, tmp_path, monkeypatch):
    change(adapter, base_model_name_or_path="llama/base/final")
    expected = load_model(str(adapter.parent / "base" / "final")).num_parameters()
    assert load_model(str(adapter)).num_parameters() == expected
    monkeypatch.chdir(tmp_path)
    assert load_model("llama/adapter").num_parameters() == expected


def test_what_cannot_be_opened_is_one_sentence(adapter):
    change(adapter, base_model_name_or_path="adapter")
    with pytest.raises(CheckpointError, match="names its own folder"):
        load_model(str(adapter))
    t5 = write_model("t5", adapter.parent / "other", small_tokenizer())
    change(adapter, base_model_name_or_path=str(t5))
    with pytest.raises(CheckpointError, match="does not fit its base model"):
        load_model(str(adapter))
    change(adapter, base_model_name_or_path=str(adapter.parent / "base" / "final"))
    shutil.rmtree(adapter.parent / "base")
    with pytest.raises(CheckpointError):
        load_model(str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(str(adapter))
