"""Factored models on disk: bitwise the same after loading, refused when damaged, and never mistaken for dense ones."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, load_model, save_file
from tiny_models import DECODERS, FAMILIES, T5S, build, logits
from transformers import GenerationConfig

from fivefold import T5Decoder, T5Encoder, T5Model
from fivefold.errors import CheckpointError, FivefoldError, ModelError
from fivefold.lowrank.convert import convert, merge
from fivefold.lowrank.store import is_factored, load_factored, load_weights, save_model, weights_file

WEIGHTS = "low_rank.safetensors"


def _factored(family, scope="all"):
    model = build(family)
    convert(model, scope=scope, attn_rank=8, mlp_rank=12, init="xavier")
    return model


@pytest.fixture
def folder(tmp_path):
    save_model(_factored("llama"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["all", "mlp"])
def test_loaded_weights_are_bitwise_the_saved_ones(family, scope, tmp_path):
    model = _factored(family, scope)
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, decoder_start_token_id=0)
    model.save_pretrained(tmp_path)  # convert made it save_model
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", WEIGHTS}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    loaded = load_factored(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert isinstance(loaded, T5Model if family in T5S else type(model))
    before, after = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert loaded.config.low_rank == model.config.low_rank
    assert loaded.generation_config.max_new_tokens == 7
    assert not loaded.training
    # Ours computes transformers' T5 by another road; a model's own class must repeat itself exactly.
    tolerance = 1e-5 if family.startswith("hf") else 0.0
    torch.testing.assert_close(logits(loaded), logits(model), rtol=tolerance, atol=tolerance)
    is_tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert is_tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_else_opens_a_factored_folder(family, tmp_path):
    save_model(_factored(family), tmp_path)
    auto = [getattr(transformers, f"AutoModel{kind}") for kind in ("", "ForCausalLM", "ForSeq2SeqLM")]
    own = [transformers.T5Model, transformers.T5ForConditionalGeneration, transformers.LlamaForCausalLM]
    for opener in (transformers.AutoConfig, *auto, *own, (DECODERS | T5S)[family][0]):
        with pytest.raises((ValueError, OSError, FivefoldError)):
            opener.from_pretrained(tmp_path)
    for opener in (T5Model, T5Encoder, T5Decoder):
        with pytest.raises(ModelError, match=f"low_rank_{build(family).config.model_type.replace('hf_', '')}"):
            opener.from_pretrained(tmp_path)


def test_a_merged_model_is_stored_as_a_dense_one(tmp_path):
    model = _factored("llama")
    expected = logits(model)
    merge(model)
    save_model(model, tmp_path)
    assert not is_factored(tmp_path)
    assert weights_file(tmp_path) == tmp_path / "model.safetensors"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)


def test_a_model_that_is_built_already_takes_the_weights(folder):
    assert is_factored(folder)
    stored, twin = _factored("llama"), _factored("llama")
    for load in (load_weights, lambda model, folder: load_model(model, weights_file(folder))):
        twin.model.layers[0].mlp.up_proj.left.weight.data.zero_()
        load(twin, folder)
        assert torch.equal(logits(twin), logits(stored))


def test_tied_weights_lie_in_the_file_once(tmp_path):
    for family in ("t5", "hf_t5", "llama_tied"):
        save_model(_factored(family), tmp_path / family)
        names = set(load_file(tmp_path / family / WEIGHTS))
        assert names & {"shared.weight", "model.embed_tokens.weight"}
        assert not names & {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def test_weights_of_any_type_come_back_in_float32(tmp_path):
    model = _factored("t5").bfloat16()
    save_model(model, tmp_path)
    assert load_file(tmp_path / WEIGHTS)["shared.weight"].dtype == torch.bfloat16
    loaded = load_factored(tmp_path)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.shared.weight, model.shared.weight.float())


def _tamper(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


NAME = "model.layers.1.self_attn.q_proj.left.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors.pop(NAME), f"{NAME} is missing"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "extra has no place in the model"),
        (
            lambda tensors: tensors.update({NAME: tensors[NAME][:, :4].clone()}),
            r"has the shape \[32, 4\], not \[32, 8\]",
        ),
        (lambda tensors: tensors.update({NAME: tensors.pop(NAME.replace("left", "right"))}), r"\(1 more like it\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(folder, change, sentence):
    _tamper(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_factored(folder)
    built = _factored("llama")
    before = {name: value.clone() for name, value in built.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        load_weights(built, folder)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


def _rewrite(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("spoil", "kind", "sentence"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), CheckpointError, "cannot be read as weights"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), CheckpointError, "cannot be read as weights"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "holds no low-rank model"),
        (lambda folder: _rewrite(folder, model_type="llama"), CheckpointError, "holds no low-rank model"),
        (lambda folder: _rewrite(folder, model_type="low_rank_vit"), ModelError, "'vit' is neither"),
        (lambda folder: _rewrite(folder, low_rank=None), CheckpointError, "describes no model that can be built"),
        (lambda folder: _rewrite(folder, low_rank={"ranks": {"lm": 3}}), CheckpointError, "KeyError: 'lm'"),
        (lambda folder: _rewrite(folder, hidden_size="wide"), CheckpointError, "describes no model that can be built"),
        (lambda folder: _rewrite(folder, num_hidden_layers=3), CheckpointError, "layers.2.*is missing"),
    ],
)
def test_damaged_folders_are_one_sentence(folder, spoil, kind, sentence):
    spoil(folder)
    with pytest.raises(kind, match=sentence) as caught:
        load_factored(folder)
    assert "\n" not in str(caught.value)


def test_a_factored_model_does_not_go_where_a_dense_one_lies(tmp_path):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a dense model already"):
        save_model(_factored("llama"), tmp_path)


def test_a_loaded_model_generates(folder):
    tokens = load_factored(folder).generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, do_sample=False)
    assert tokens.shape[1] > 3
