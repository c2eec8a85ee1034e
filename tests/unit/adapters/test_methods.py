"""Every method that peft has: it trains, is saved, and is opened again as the same model; or is refused by name."""

from functools import partial

import pytest
import torch
from peft import PeftModel, PeftType
from tiny import MODELS, llama, logits, trained

from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.config import preset_names
from fivefold.adapters.folder import merge_adapter, open_adapter, with_adapter
from fivefold.adapters.gradients import check_gradients
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import ConfigError, ModelError
from fivefold.nn.linear import as_plain_linear

# What peft's defaults are too large for here.
SMALL = {
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"r": 8, "gralora_k": 2},
    "MISS": {"r": 8},
    "PSOFT": {"r": 8},
    "RANDLORA": {"r": 8},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4, 5]},
    "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 100},
}
PROMPTS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CARTRIDGE", "ADAPTION_PROMPT"}
REFUSED = PROMPTS | {"CPT", "SHADOW", "XLORA", "POLY"}
NEEDS_SCIKIT_LEARN = {"ADAMSS"}
STAY_BESIDE = {"BEFT", "LILY"}
VARIANTS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_fast": {"init_lora_weights": "pissa_niter_4", "use_rslora": True, "rank_pattern": {"q": 4, "q_proj": 4}},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "mica": {"init_lora_weights": "mica"},
    "bias": {"lora_bias": True},
    "all_linear": {"target_modules": "all-linear"},
}
METHODS = {kind.value: {"peft_type": kind.value, **SMALL.get(kind.value, {})} for kind in PeftType}
METHODS = {name: fields for name, fields in METHODS.items() if name not in REFUSED | NEEDS_SCIKIT_LEARN}
METHODS |= {f"LORA {name}": {"peft_type": "LORA", **fields} for name, fields in VARIANTS.items()}
METHODS |= {f"preset {name}": name for name in preset_names() if "llama2" not in name}


@pytest.mark.filterwarnings("ignore")  # what peft's methods say of themselves
@pytest.mark.parametrize("where", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_and_is_opened_again_as_the_same_model(name, where, tmp_path):
    build, batch = MODELS[where]
    model = attach_adapter(build(), METHODS[name], "base", seed=0)
    before = {key: one.detach().clone() for key, one in model.named_parameters() if one.requires_grad}
    model.train()(**batch).loss.backward()
    check_gradients(model)
    model.zero_grad()
    losses = trained(model, batch)
    if name not in ("PVERA", "ADALORA", "preset adalora_rank8"):  # of which three steps say nothing
        assert losses[-1] < losses[0]
    assert any(not torch.equal(before[key], one) for key, one in model.named_parameters() if key in before)
    model.save_pretrained(str(tmp_path))
    expected = logits(model, batch)
    opened = build()
    if name == "GLORA":
        as_plain_linear(opened)
    theirs = PeftModel.from_pretrained(opened, str(tmp_path))
    # PiSSA and OLoRA are saved as plain LoRAs of twice the rank: the sums are others.
    tolerance = 1e-4 if any(word in name for word in ("pissa", "olora")) else 0
    torch.testing.assert_close(logits(theirs, batch), expected, rtol=tolerance, atol=tolerance)
    if name in STAY_BESIDE | {"LORA bias"}:
        with pytest.raises(ModelError, match="cannot be added to the weights"):
            merge_adapter(open_adapter(build(), tmp_path))
    # Products are summed in another order, and rotations round more often.
    torch.testing.assert_close(logits(with_adapter(build(), tmp_path), batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_changes_no_layer_is_refused_by_name(kind):
    fields = {"peft_type": kind}
    if kind == "MULTITASK_PROMPT_TUNING":
        fields["num_virtual_tokens"] = 4
    with quiet_peft(), pytest.raises(ConfigError, match=f"peft_type {kind} .*LORA|CPTConfig only supports"):
        attach_adapter(MODELS["t5"][0](), fields, "base", seed=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", MODELS)
def test_embeddings_can_be_adapted_or_trained_whole_although_they_are_the_output_too(where, tmp_path):
    build, batch = MODELS[where]
    if where == "llama":
        build = partial(llama, tie_word_embeddings=True)
    table = "shared" if "t5" in where else "embed_tokens"
    for fields in ({"target_modules": [table]}, {"target_modules": "all-linear", "modules_to_save": [table]}):
        model = attach_adapter(build(), {"peft_type": "LORA", **fields}, "base", seed=0)
        losses = trained(model, batch)
        assert losses[-1] < losses[0]
        model.save_pretrained(str(tmp_path))
        expected = logits(model, batch)
        assert torch.equal(logits(PeftModel.from_pretrained(build(), str(tmp_path)), batch), expected)
        torch.testing.assert_close(logits(with_adapter(build(), tmp_path), batch), expected, rtol=1e-4, atol=1e-4)
