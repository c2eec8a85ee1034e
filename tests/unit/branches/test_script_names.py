"""The names that scripts for parallel branches import: the document's own way from a base model to a trained one."""

import json
from pathlib import Path

import pytest
import torch
from chat_models import small_tokenizer, write_model
from transformers import AutoModelForCausalLM

import fivefold.branches
from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.lora_files import load_lora_file, write_lora_file
from fivefold.branches import (
    BranchScheme,
    ParallelPretrainCollator,
    ParallelPretrainDataset,
    apply_lora,
    auto_pair_indices,
    branch_arguments,
    load_lora,
    patch_model_with_interleaved_2d_rope,
    prepare_for_branches,
)
from fivefold.errors import CheckpointError, ModelError
from fivefold.models.load import load_model
from fivefold.objectives.branches import BranchObjective
from fivefold.objectives.settings import LossSettings

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "all-linear", "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("base"), small_tokenizer())


@pytest.fixture
def lora_file(folder, tmp_path):
    """Of an adapter that says something, and the model with it."""
    adapted = attach_adapter(load_model(str(folder)), LORA, str(folder), seed=0)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    write_lora_file(tmp_path / "adapter", tmp_path / "lora.pth")
    return tmp_path / "lora.pth", adapted.eval()


def test_every_name_is_there():
    for name in fivefold.branches.__all__:
        assert getattr(fivefold.branches, name) is not None
    with pytest.raises(AttributeError):
        _ = fivefold.branches.nothing


def test_the_documents_way_to_a_trained_model(folder, lora_file):
    file, adapted = lora_file
    model = AutoModelForCausalLM.from_pretrained(folder)
    patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, ratio=0.5))
    apply_lora(model, rank=4)
    load_lora(model, file)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, adapted(ids).logits)
    again = attach_adapter(load_model(str(folder)), LORA, str(folder), seed=7)
    load_lora_file(again, file)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, adapted(ids).logits)


def test_other_files_are_refused(folder, lora_file, tmp_path):
    file, _ = lora_file
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ModelError, match="call apply_lora first"):
        load_lora(model, file)
    apply_lora(model, rank=2)
    with pytest.raises(CheckpointError, match="is the LoRA of another model"):
        load_lora(model, file)
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(CheckpointError, match="holds no LoRA that can be read"):
        load_lora(model, tmp_path / "text.pth")


def test_a_loop_of_ones_own_learns(folder, tmp_path):
    rows = [{"main": f"abc {n} ", "branches": [f"de {n % 3}", "fgh", f"ij {n}"]} for n in range(12)]
    Path(tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ParallelPretrainDataset(tmp_path / "rows.jsonl")
    assert len(data) == 12
    model, scheme = AutoModelForCausalLM.from_pretrained(folder), BranchScheme()
    prepare_for_branches(model, scheme)
    collate = ParallelPretrainCollator(small_tokenizer(), branches_per_sample=2)
    objective = BranchObjective(LossSettings(), scheme)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        for batch in torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate):
            assert len(batch["input_ids"]) == 8  # three branches are two rows
            loss = objective(model, batch).loss_sum / objective.count(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert set(branch_arguments(model, batch["branches"], batch["times"], scheme)) == {
        "position_ids",
        "attention_mask",
        "branches",
    }
