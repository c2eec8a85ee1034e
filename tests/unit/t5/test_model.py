"""What must hold of a T5 whatever its weights: initialisation, memory-saving, padding, and its error sentences."""

import json
import math

import pytest
import torch

from fivefold import T5Config, T5Decoder, T5Encoder, T5Model
from fivefold.errors import CheckpointError, ModelError
from fivefold.models.build import checkpoint_blocks
from fivefold.t5.config import preset_names

TINY = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def _tiny(**changes):
    torch.manual_seed(0)
    return T5Model(T5Config(**(TINY | {"dropout_rate": 0.0} | changes)))


def _batch():
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 97, (3, 17), generator=generator)
    return {"input_ids": source, "labels": torch.randint(3, 97, (3, 11), generator=generator)}


@pytest.mark.parametrize("size", ["small", "base"])
def test_a_fresh_v1_1_starts_at_the_loss_of_guessing(size):
    torch.manual_seed(0)
    model = T5Model(T5Config.get_config(size))
    tokens = torch.randint(3, 32000, (2, 128))
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens[:, :64]).loss
    # Logits of variance 1 cost half a nat on average: 0.5 / ln(32128) is 4.8 %.
    assert abs(loss - math.log(32128)) <= 0.06 * math.log(32128)


def test_initialisation_has_t5xs_deviations():
    torch.manual_seed(0)
    config = T5Config.get_config("small", vocab_size=1000)
    model = T5Model(config)
    attention, feed_forward = model.decoder.block[3].layer[1].module, model.encoder.block[5].layer[1].module
    expected = {
        model.shared: 1.0,
        model.lm_head: 512**-0.5,
        attention.q: (512 * 64) ** -0.5,
        attention.k: 512**-0.5,
        attention.v: 512**-0.5,
        attention.o: 384**-0.5,
        feed_forward.wi_0: 512**-0.5,
        feed_forward.wi_1: 512**-0.5,
        feed_forward.wo: 1024**-0.5,
        # Uniform with variance 1 / mean of the fans: 32 buckets, 6 heads.
        model.encoder.block[0].layer[0].module.relative_attention_bias: (2 / (32 + 6)) ** 0.5,
    }
    for module, deviation in expected.items():
        # The bias table has 192 entries: a standard error of 5 %; the others have at least 150,000.
        tolerance = 0.15 if module.weight.numel() < 1000 else 0.01
        assert module.weight.std().item() == pytest.approx(deviation, rel=tolerance)
        assert abs(module.weight.mean()) < 4 * deviation / module.weight.numel() ** 0.5


def test_tied_means_one_tensor_and_untied_two():
    tied, untied = _tiny(tie_word_embeddings=True), _tiny(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.shared.weight
    assert untied.lm_head.weight is not untied.shared.weight
    assert untied.num_parameters() - tied.num_parameters() == 97 * 32


@pytest.mark.parametrize("changes", [{}, {"relative_bias_per_layer": True}, {"feed_forward_proj": "gated-silu"}])
def test_gradient_checkpointing_changes_no_gradient(changes):
    model = _tiny(dropout_rate=0.1, **changes).train()
    gradients = []
    for enabled in (False, True):
        if enabled:
            checkpoint_blocks(model)
        model.zero_grad()
        torch.manual_seed(3)
        model(**_batch()).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_padding_changes_no_loss_and_no_gradient():
    model, batch = _tiny().double(), _batch()
    padded = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 5)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), (0, 5)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 4), value=-100),
    }
    results = []
    for inputs in (batch, padded):
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one)


def test_encoder_states_computed_once_serve_many_targets():
    model, batch = _tiny(), _batch()
    states = model.encode(batch["input_ids"])
    torch.testing.assert_close(
        model(encoder_outputs=states, labels=batch["labels"]).logits, model(**batch).logits, rtol=0, atol=0
    )


def test_encoder_and_decoder_alone_make_the_whole(tmp_path):
    model, batch = _tiny(), _batch()
    model.save_pretrained(tmp_path)
    encoder, decoder = T5Encoder.from_pretrained(tmp_path), T5Decoder.from_pretrained(tmp_path)
    memory = encoder(input_ids=batch["input_ids"]).last_hidden_state
    decoder_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    torch.testing.assert_close(decoder(decoder_ids, memory), model(**batch).logits, rtol=0, atol=0)


def test_bfloat16_and_float16_autocast_stay_near_float32():
    model, batch = _tiny(), _batch()
    exact = model(**batch).logits
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            loss = model(**batch).loss
            assert torch.isfinite(loss)
            # Two layers of bfloat16 (8 bits) on logits of about 1.
            torch.testing.assert_close(model(**batch).logits.float(), exact, rtol=0.05, atol=0.05)


def test_every_preset_can_be_built():
    for name in preset_names():
        with torch.device("meta"):
            T5Model(T5Config.get_preset(name))


def test_modern_presets_are_v1_1_with_other_parts():
    for size in ("small", "base", "large"):
        modern, published = (T5Config.get_config(size, version=version) for version in ("modern", "1.1"))
        parts = {"position": "relative_bias", "qk_norm": False, "feed_forward_proj": "gated-gelu"}
        assert T5Config.from_dict(modern.to_dict() | parts | {"model_type": "t5"}).to_dict() == published.to_dict()
        assert not modern.is_standard


@pytest.mark.parametrize("change", [{"feed_forward": "geglu"}, {"feed_forward_proj": "gated-gelu"}])
@pytest.mark.parametrize("preset", ["modern_small", "t5_v1_1_large"])
def test_a_preset_takes_another_feed_forward_layer_by_either_name(preset, change):
    assert T5Config.get_preset(preset, **change).feed_forward_proj == "gated-gelu"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: T5Config.get_config("giant"), "There is no T5 preset 't5_v1_1_giant'; there are"),
        (lambda: T5Config(**(TINY | {"num_heads": 0})), "num_heads is 0; it must be at least 1"),
        (lambda: T5Config(feed_forward_proj="gated-tanh"), "use one of"),
        (lambda: T5Config(dropout_rate=1.5), "dropout_rate is 1.5"),
        (lambda: T5Config.from_dict({"model_type": "bert"}), "model type 'bert'"),
        (lambda: T5Config.from_name_or_file("nowhere.json"), "neither a file nor a preset"),
        (lambda: _tiny()(input_ids=torch.ones(1, 3).long()), "neither decoder_input_ids nor labels"),
        (lambda: _tiny()(labels=torch.ones(1, 3).long()), "either input_ids or inputs_embeds"),
        (lambda: _tiny()(**_batch(), output_attentions=True), "output_attentions"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(ModelError) as caught:
        call()
    assert sentence in str(caught.value)


def test_a_configuration_file_that_is_no_json(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        T5Config.from_name_or_file(str(tmp_path / "c.json"))


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        T5Model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(CheckpointError, match="No weights"):
        T5Model.from_pretrained(tmp_path)
    _tiny().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        T5Model.from_pretrained(tmp_path)
