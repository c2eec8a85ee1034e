"""Our T5 against transformers' T5: the same weights must give the same numbers and the same tokens.

Real sizes and shapes: tiny ones for every combination, v1.1-small once.
"""

import json

import pytest
import torch
import transformers
from transformers import T5Config as HuggingFaceConfig
from transformers import T5ForConditionalGeneration, UMT5Config, UMT5ForConditionalGeneration

from fivefold import T5Config, T5Encoder, T5Model

TINY = {"vocab_size": 131, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 5, "dropout_rate": 0.0}
SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "dropout_rate": 0.0}
KINDS = ["v1.0 tied", "v1.1 untied", "umt5"]


def _theirs(kind, shape):
    torch.manual_seed(0)
    shape = {**shape, "decoder_start_token_id": 0}
    if kind == "umt5":
        model = UMT5ForConditionalGeneration(UMT5Config(**shape))
    elif kind == "v1.0 tied":
        model = T5ForConditionalGeneration(HuggingFaceConfig(**shape, feed_forward_proj="relu"))
    else:
        config = HuggingFaceConfig(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        model = T5ForConditionalGeneration(config)
        # Since version 5 a fresh model ties its output layer whatever it is told; published v1.1 weights do not.
        model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(params=KINDS)
def pair(request, tmp_path):
    """(transformers' model, ours from its saved folder)."""
    theirs = _theirs(request.param, TINY)
    theirs.save_pretrained(tmp_path)
    return theirs, T5Model.from_pretrained(tmp_path)


def _batch(vocab_size, source_len=200, target_len=150, batch=3):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, vocab_size, (batch, source_len), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, source_len // 2 :] = 0
    labels = torch.randint(3, vocab_size, (batch, target_len), generator=generator)
    labels[0, target_len // 3 :] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _assert_same_training_step(theirs, ours, batch):
    theirs.train(), ours.train()
    expected, got = theirs(**batch), ours(**batch)
    # Relative to the largest entry: 1e-5 is a few dozen float32 roundings.
    assert (got.logits - expected.logits).abs().max() <= 1e-5 * expected.logits.abs().max()
    torch.testing.assert_close(got.loss, expected.loss)
    expected.loss.backward(), got.loss.backward()
    parameters = dict(theirs.named_parameters())
    assert set(dict(ours.named_parameters())) == set(parameters)
    for name, parameter in ours.named_parameters():
        reference = parameters[name].grad
        assert (parameter.grad - reference).abs().max() <= 1e-5 * reference.abs().max(), name


def test_logits_and_all_gradients(pair):
    theirs, ours = pair
    _assert_same_training_step(theirs, ours, _batch(TINY["vocab_size"]))


def test_logits_and_all_gradients_in_the_shape_of_v1_1_small(tmp_path):
    theirs = _theirs("v1.1 untied", {**SMALL, "vocab_size": 32128})
    theirs.save_pretrained(tmp_path)
    _assert_same_training_step(theirs, T5Model.from_pretrained(tmp_path), _batch(32128, 128, 40, 2))


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_tokens_in_float64(pair, beams, use_cache):
    theirs, ours = (model.double().eval() for model in pair)
    batch = _batch(TINY["vocab_size"], source_len=40)
    arguments = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "max_new_tokens": 30,
        "num_beams": beams,
    }
    assert torch.equal(
        ours.generate(**arguments, use_cache=use_cache), theirs.generate(**arguments, use_cache=use_cache)
    )


def test_generated_tokens_in_float32_where_the_margin_decides(pair):
    theirs, ours = (model.eval() for model in pair)
    batch = _batch(TINY["vocab_size"], source_len=40)
    expected, got = (
        model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=30,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for model in (theirs, ours)
    )
    checked = 0
    for row in range(len(expected.sequences)):
        for step, logits in enumerate(expected.logits):
            best, second = logits[row].topk(2).values
            if best - second <= 1e-4:
                break  # from here on the two may rightly go different ways
            assert got.sequences[row, step + 1] == expected.sequences[row, step + 1]
            checked += 1
    assert checked > 30


def test_sampling_draws_the_same_tokens_with_the_same_seed(pair):
    theirs, ours = (model.double().eval() for model in pair)
    batch = _batch(TINY["vocab_size"], source_len=20)
    sequences = []
    for model in (theirs, ours):
        torch.manual_seed(7)
        sequences.append(model.generate(input_ids=batch["input_ids"], do_sample=True, top_k=20, max_new_tokens=15))
    assert torch.equal(*sequences)


def test_a_static_cache_gives_the_same_tokens(pair):
    _, ours = pair
    ours.double().eval()
    input_ids = _batch(TINY["vocab_size"], source_len=20)["input_ids"]
    dynamic = ours.generate(input_ids=input_ids, max_new_tokens=12)
    static = ours.generate(input_ids=input_ids, max_new_tokens=12, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, dynamic)


def test_what_we_save_transformers_opens(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    back = getattr(transformers, config["architectures"][0]).from_pretrained(tmp_path / "ours")
    batch = _batch(TINY["vocab_size"])
    torch.testing.assert_close(back(**batch).logits, theirs(**batch).logits)
    again = T5Model.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("kind", ["v1.0 tied", "v1.1 untied"])
def test_a_configuration_as_version_4_wrote_it(kind, tmp_path):
    theirs = _theirs(kind, TINY)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for name in ("scale_decoder_outputs", "is_gated_act", "dense_act_fn", "dtype", "transformers_version"):
        config.pop(name, None)
    config.update(tie_word_embeddings=kind == "v1.0 tied", torch_dtype="float32", n_positions=512, output_past=True)
    file.write_text(json.dumps(config))
    ours = T5Model.from_pretrained(tmp_path)
    assert ours.config.tie_word_embeddings == ours.config.scale_decoder_outputs == (kind == "v1.0 tied")
    batch = _batch(TINY["vocab_size"])
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_with_every_copy_of_the_embeddings(kind, tmp_path):
    theirs = _theirs(kind, TINY)
    theirs.config.save_pretrained(tmp_path)
    state = dict(theirs.state_dict())
    # What the first published checkpoints carry, and nobody uses.
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(32, 5)
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = T5Model.from_pretrained(tmp_path)
    assert ours.config.tie_word_embeddings == (kind != "v1.1 untied")
    batch = _batch(TINY["vocab_size"])
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits)


def test_embeddings_stored_only_under_the_encoders_name(tmp_path):
    theirs = _theirs("v1.1 untied", TINY)
    theirs.config.save_pretrained(tmp_path)
    state = {name: value for name, value in theirs.state_dict().items() if name != "shared.weight"}
    state.pop("decoder.embed_tokens.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    batch = _batch(TINY["vocab_size"])
    torch.testing.assert_close(T5Model.from_pretrained(tmp_path)(**batch).logits, theirs(**batch).logits)


def test_sharded_weights(pair, tmp_path):
    theirs, _ = pair
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    batch = _batch(TINY["vocab_size"])
    torch.testing.assert_close(T5Model.from_pretrained(tmp_path / "sharded")(**batch).logits, theirs(**batch).logits)


def test_the_encoder_alone(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    batch = _batch(TINY["vocab_size"])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = theirs.get_encoder()(**inputs).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(T5Encoder.from_pretrained(tmp_path)(**inputs).last_hidden_state[real], expected[real])


def test_presets_have_the_published_parameter_counts():
    counts = {("small", "1.0"): 60_506_624, ("base", "1.0"): 222_903_552, ("small", "1.1"): 76_961_152}
    for (size, version), expected in counts.items():
        with torch.device("meta"):
            model = T5Model(T5Config.get_config(size, version))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
