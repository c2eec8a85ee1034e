"""Which family a model is of, and what is refused because of it."""

import json

import pytest
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.errors import CheckpointError, ConfigError, ModelError
from fivefold.lowrank.convert import convert
from fivefold.lowrank.store import save_model
from fivefold.models.family import complete, stored_family
from fivefold.models.settings import ModelSettings

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stored models by name."""
    folder = tmp_path_factory.mktemp("models")
    t5 = T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2))
    t5.save_pretrained(folder / "t5")
    llama = LlamaForCausalLM(LlamaConfig(**SIZES))
    llama.save_pretrained(folder / "llama")
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder / "gpt2")
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(folder / "bert")
    for name, model in (("low_rank_t5", t5), ("low_rank_llama", llama)):
        convert(model, scope="all", attn_rank=2, mlp_rank=2, init="spectral")
        save_model(model, folder / name)
    (folder / "nothing").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "family"),
    [("t5", "t5"), ("low_rank_t5", "t5"), ("llama", "llama"), ("gpt2", "llama"), ("low_rank_llama", "llama")],
)
def test_a_stored_model_says_its_family(name, family, folders):
    assert stored_family(str(folders / name)) == family
    settings = ModelSettings(model=str(folders / name))
    completed = complete(settings)
    assert (completed.model_type, completed.model_config) == (family, None)
    assert complete(completed) == completed
    other = "t5" if family == "llama" else "llama"
    with pytest.raises(ConfigError, match=f"is of the family {family}, but --model_type is {other}"):
        complete(ModelSettings(model=str(folders / name), model_type=other))


def test_what_is_no_t5_and_no_decoder_is_refused(folders, tmp_path):
    with pytest.raises(ModelError, match="is of model type 'bert'"):
        stored_family(str(folders / "bert"))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        stored_family(str(folders / "nothing"))
    with pytest.raises(CheckpointError, match="No model at"):
        stored_family("no_such_model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="'unheard_of'"):
        stored_family(str(tmp_path))


def test_fresh_models_are_t5_unless_something_says_otherwise(shapes):
    assert complete(ModelSettings()) == ModelSettings("t5", "small")
    assert complete(ModelSettings("llama")) == ModelSettings("llama", "60m")
    assert complete(ModelSettings(model_config=shapes["t5"])).model_type == "t5"
    assert complete(ModelSettings(model_config=shapes["llama"])).model_type == "llama"
    with pytest.raises(ConfigError, match="is of the family llama, but --model_type is t5"):
        complete(ModelSettings("t5", shapes["llama"]))


@pytest.mark.parametrize("change", [{"model_config": "60m"}, {"vocab_size": 9}, {"tie_word_embeddings": False}])
def test_a_trained_model_has_its_own_shape(change, folders):
    with pytest.raises(ConfigError, match="has its own shape"):
        complete(ModelSettings(model=str(folders / "llama"), **change))


def test_decoders_have_no_dropout(folders):
    for settings in (ModelSettings("llama", dropout_rate=0.1), ModelSettings(model=str(folders / "gpt2"))):
        settings.dropout_rate = 0.1
        with pytest.raises(ConfigError, match="--dropout_rate would change nothing"):
            complete(settings)
    with pytest.raises(ConfigError, match=r"dropout_rate is 1\.5"):
        ModelSettings(dropout_rate=1.5)
