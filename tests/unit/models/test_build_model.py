"""Settings to models: weights from seeds, rows from tokenizers, factors where they are asked for."""

import logging

import pytest
import torch
from transformers import LlamaForCausalLM

from fivefold.errors import ConfigError, DataError, ModelError
from fivefold.llama.config import get_preset
from fivefold.lowrank.convert import factor_pairs
from fivefold.lowrank.settings import LowRankSettings
from fivefold.lowrank.store import save_model
from fivefold.models.build import build_model, check_length
from fivefold.models.load import load_model
from fivefold.models.settings import ModelSettings
from fivefold.t5.config import T5Config
from fivefold.t5.model import T5Model

FULL = LowRankSettings()
THIN = LowRankSettings(loro_scope="all", loro_attn_rank=4, loro_mlp_rank=6)


def build(settings, tokenizer, low_rank=FULL, seed=0):
    """The model and the report."""
    return build_model(settings, low_rank, tokenizer, seed, default_init="spectral")


def weights(model):
    """A copy of every parameter."""
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("low_rank", [FULL, THIN], ids=["full", "thin"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_weights_follow_from_the_seed_alone(family, low_rank, shapes, tokenizer):
    settings = ModelSettings(model_config=shapes[family])
    built = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        model, report = build(settings, tokenizer, low_rank, seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert isinstance(model, T5Model if family == "t5" else LlamaForCausalLM)
        assert (report is None) == (low_rank is FULL)
        assert len(factor_pairs(model)) == (0 if report is None else len(report.replaced))
        built.append(weights(model))
    assert all(map(torch.equal, built[0], built[1]))
    assert not all(map(torch.equal, built[0], built[2]))


def test_rows_follow_from_the_tokenizer(shapes, tokenizer):
    for family in ("t5", "llama"):
        mini = ModelSettings(family, f"{family}_mini")
        assert build(mini, tokenizer)[0].config.vocab_size == 512
        mini.vocab_size = 501
        assert build(mini, tokenizer)[0].config.vocab_size == 501
        mini.vocab_size = 499
        with pytest.raises(DataError, match="ids up to 499"):
            build(mini, tokenizer)
    with torch.device("meta"):
        assert build(ModelSettings("llama"), None)[0].config.vocab_size == 32000  # a dry run far from its tokenizer


def test_a_file_too_small_for_the_sentinels_alone_is_given_more_rows(shapes, tokenizer, tmp_path, caplog):
    def rows(vocab_size):
        (tmp_path / "shape.json").write_text((tmp_path / shapes["llama"]).read_text().replace("512", str(vocab_size)))
        return build(ModelSettings(model_config=str(tmp_path / "shape.json")), tokenizer)[0].config.vocab_size

    # 500 tokens, of which the last 103 are special.
    with caplog.at_level(logging.INFO, "fivefold"):
        assert rows(400) == 512
    assert "making room" in caplog.text
    with pytest.raises(DataError, match="ids up to 499, but the model's vocabulary has 390"):
        rows(390)


def test_a_decoder_knows_its_tokenizers_marks(shapes, tokenizer):
    config = build(ModelSettings(model_config=shapes["llama"]), tokenizer)[0].config
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, None)


def test_presets_that_stand_in_for_files_are_named(tokenizer, caplog):
    with caplog.at_level(logging.INFO, "fivefold"), torch.device("meta"):
        build(ModelSettings("t5", "configs/t5_mini.json"), tokenizer)
        build(ModelSettings("llama", "configs/llama_9m.json"), tokenizer)
        build(ModelSettings("llama", "9m"), tokenizer)
    assert [record.getMessage() for record in caplog.records] == [
        "There is no file configs/t5_mini.json; using the preset t5_mini.",
        "There is no file configs/llama_9m.json; using the preset llama_9m.",
    ]
    with pytest.raises(ConfigError, match="is the LLaMA preset llama_60m; give --model_type llama"):
        build(ModelSettings(model_config="configs/llama_60m.json"), tokenizer)
    with pytest.raises(ModelError, match="nor a LLaMA preset"):
        build(ModelSettings("llama", "t5_mini"), tokenizer)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_tied_on_request(family, shapes, tokenizer):
    for wanted in (True, False):
        settings = ModelSettings(model_config=shapes[family], tie_word_embeddings=wanted)
        model: torch.nn.Module = build(settings, tokenizer)[0]
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == wanted


@pytest.mark.parametrize("low_rank", [FULL, THIN], ids=["full", "thin"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_stored_model_comes_back_and_goes_on(family, low_rank, shapes, tokenizer, tmp_path):
    model, _ = build(ModelSettings(model_config=shapes[family]), tokenizer, low_rank)
    save_model(model, tmp_path / "stored")
    stored = ModelSettings(model=str(tmp_path / "stored"))
    again, report = build(stored, tokenizer, seed=5)
    assert report is None
    for other in (again, load_model(str(tmp_path / "stored"))):
        assert type(other) is type(model)
        assert all(map(torch.equal, weights(model), weights(other)))
    thinner = LowRankSettings(loro_scope="all", loro_attn_rank=3, loro_mlp_rank=2)
    changed, report = build(stored, tokenizer, thinner)
    assert report is not None
    assert {layer.rank for _, layer in factor_pairs(changed)} == {2, 3}


def test_dropout_of_a_stored_t5_is_changed(shapes, tokenizer, tmp_path):
    model, _ = build(ModelSettings(model_config=shapes["t5"], dropout_rate=0.0), tokenizer)
    model.save_pretrained(tmp_path)
    fresh, _ = build(ModelSettings(model_config=shapes["t5"], dropout_rate=0.3), tokenizer)
    stored, _ = build(ModelSettings(model=str(tmp_path), dropout_rate=0.3), tokenizer)
    ids, losses = torch.arange(3, 40)[None], []
    for each in (fresh, stored):
        torch.manual_seed(0)
        losses.append(each.train()(input_ids=ids, labels=ids).loss)
    assert losses[0] == losses[1] != model.eval()(input_ids=ids, labels=ids).loss


def test_low_rank_settings_that_would_change_nothing_are_refused(shapes, tokenizer, tmp_path):
    fresh = ModelSettings(model_config=shapes["llama"])
    for low_rank, sentence in (
        (LowRankSettings(loro_attn_rank=4), "--loro_attn_rank would change nothing without --loro_scope"),
        (LowRankSettings(loro_scope="mlp", loro_mlp_dense=True), "drop one"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build(fresh, tokenizer, low_rank)
    save_model(build(fresh, tokenizer, THIN)[0], tmp_path / "thin")
    stored = ModelSettings(model=str(tmp_path / "thin"))
    for low_rank, sentence in (
        (
            LowRankSettings(loro_scope="all", loro_init="orth"),
            "--loro_init would change nothing in a model that is low",
        ),
        (LowRankSettings(loro_scope="attn"), "leaves out layers that the model has at low rank"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build(stored, tokenizer, low_rank)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_low_rank_model_keeps_the_rank_that_is_not_given(family, shapes, tokenizer, tmp_path):
    def ranks(settings, low_rank):
        model, report = build(settings, tokenizer, low_rank)
        assert report is not None
        of_kind = {"attn": set(), "mlp": set()}
        for name, layer in factor_pairs(model):
            of_kind["attn" if "attn" in name or "Attention" in name else "mlp"].add(layer.rank)
        return of_kind

    fresh = ModelSettings(model_config=shapes[family])
    save_model(build(fresh, tokenizer, THIN)[0], tmp_path / "thin")
    stored = ModelSettings(model=str(tmp_path / "thin"))
    assert ranks(stored, LowRankSettings("all", loro_attn_rank=3)) == {"attn": {3}, "mlp": {6}}
    assert ranks(stored, LowRankSettings("all", loro_mlp_rank=9)) == {"attn": {4}, "mlp": {9}}
    assert ranks(stored, LowRankSettings("all")) == {"attn": {4}, "mlp": {6}}
    # A fresh one gets 128, or what its matrices allow.
    assert ranks(fresh, LowRankSettings("all", loro_attn_rank=3)) == {"attn": {3}, "mlp": {32}}


def test_a_fresh_model_gets_rank_128_if_none_is_given(tokenizer):
    with torch.device("meta"):
        model, _ = build(ModelSettings("llama", "60m"), tokenizer, LowRankSettings("all"))
    assert {layer.rank for _, layer in factor_pairs(model)} == {128}


def test_a_rank_of_layers_that_stay_full_rank_is_said_to_change_nothing(shapes, tokenizer, tmp_path, caplog):
    fresh = ModelSettings(model_config=shapes["llama"])
    with caplog.at_level(logging.INFO, "fivefold"):
        model, _ = build(fresh, tokenizer, LowRankSettings("attn", loro_attn_rank=4, loro_mlp_rank=4))
        save_model(model, tmp_path / "attn")
        build(ModelSettings(model=str(tmp_path / "attn")), tokenizer, LowRankSettings("all", loro_mlp_rank=4))
    assert caplog.messages == ["--loro_mlp_rank changes nothing: those layers stay full rank."] * 2


def test_attention_alone(shapes, tokenizer):
    for low_rank in (
        LowRankSettings(loro_scope="attn", loro_attn_rank=4),
        LowRankSettings(loro_scope="all", loro_attn_rank=4, loro_mlp_dense=True),
    ):
        model, _ = build(ModelSettings(model_config=shapes["llama"]), tokenizer, low_rank)
        assert {name.split(".")[-2] for name, _ in factor_pairs(model)} == {"self_attn"}


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_gradient_checkpointing_changes_no_gradient(family, shapes, tokenizer):
    ids, gradients = torch.arange(3, 40)[None], []
    for enabled in (False, True):
        settings = ModelSettings(model_config=shapes[family], gradient_checkpointing=enabled)
        model, _ = build(settings, tokenizer, THIN)
        torch.manual_seed(0)
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_samples_longer_than_the_positions_are_refused():
    with torch.device("meta"):
        decoder = LlamaForCausalLM(get_preset("9m"))
        turned = T5Model(T5Config.get_preset("t5_mini", position="rope", position_settings={"max_seq_length": 96}))
        endless = T5Model(T5Config.get_preset("t5_mini"))
    check_length(decoder, 1024)
    with pytest.raises(ConfigError, match="input_length is 1025, but the model has 1024 positions"):
        check_length(decoder, 1025)
    check_length(turned, 96)
    check_length(endless, 10**6)
    with pytest.raises(ConfigError, match="input_length is 97, but the model has 96 positions"):
        check_length(turned, 97)
