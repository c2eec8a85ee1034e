"""T5s put together from other parts, against the whole model written out in float64 and where two roads meet."""

import math

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from fivefold import T5Config, T5Model
from fivefold.errors import ModelError
from fivefold.lowrank.convert import convert
from fivefold.lowrank.store import load_factored, save_model
from fivefold.models.build import checkpoint_blocks
from fivefold.optim.parameters import query_lr_factors

SIZES = {"vocab_size": 40, "d_model": 32, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4}
COMBINATIONS = {
    "t5": {},
    "rope": {"position": "rope"},
    "rope ntk": {"position": "rope", "position_settings": {"scaling": "ntk", "max_seq_length": 4}},
    "rope learned, partial": {"position": "rope", "position_settings": {"learnable": True, "rotary_frac": 2 / 3}},
    "alibi": {"position": "alibi"},
    "adaptive alibi": {"position": "adaptive_alibi"},
    "none": {"position": "none"},
    "layernorm": {"norm": "layernorm"},
    "group norm": {"norm": "group_rmsnorm"},
    "swiglu": {"feed_forward": "swiglu"},
    "bilinear": {"feed_forward": "bilinear"},
    "qk norm": {"qk_norm": True},
    "grouped queries": {"num_key_value_heads": 2},
    "many at once": {
        "position": "rope",
        "norm": "layernorm",
        "feed_forward": "glu",
        "qk_norm": True,
        "num_key_value_heads": 1,
        "num_decoder_layers": 3,
        "tie_word_embeddings": False,
    },
}


def _model(changes: dict, seed: int = 0) -> T5Model:
    torch.manual_seed(seed)
    model = T5Model(T5Config(**SIZES | {"dropout_rate": 0.0} | changes)).double()
    with torch.no_grad():  # nothing stays at a start where a mistake would not show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=COMBINATIONS)
def model(request) -> T5Model:
    return _model(COMBINATIONS[request.param])


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(2, 40, (3, 9), generator=generator)
    labels = torch.randint(2, 40, (3, 7), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    labels[2, 4:] = -100
    return {"input_ids": source, "attention_mask": mask, "labels": labels}


class Formula:
    """The model as one would write it down: a matrix of scores for each head, no cache, no kernels."""

    def __init__(self, model: T5Model) -> None:
        self.config, self.weights = model.config, dict(model.named_parameters())
        self.weights |= {"lm_head.weight": model.lm_head.weight}

    def logits(self, source: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        seen = mask[:, None, :].bool()
        memory = self.side("encoder", source, seen.expand(-1, source.shape[1], -1), None, None)
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).tril()
        states = self.side("decoder", target, causal.expand(len(target), -1, -1), memory, seen)
        scale = self.config.d_model**-0.5 if self.config.scale_decoder_outputs else 1.0
        return scale * states @ self.weights["lm_head.weight"].T

    def side(self, name, ids, visible, memory, memory_visible):
        x = self.weights["shared.weight"][ids]
        layers = self.config.num_layers if name == "encoder" else self.config.num_decoder_layers
        for block in range(layers):
            at = f"{name}.block.{block}.layer"
            normed = self.norm(x, f"{at}.0.layer_norm")
            x = x + self.attend(normed, normed, visible, f"{at}.0.SelfAttention", name)
            if memory is not None:
                normed = self.norm(x, f"{at}.1.layer_norm")
                x = x + self.attend(normed, memory, memory_visible, f"{at}.1.EncDecAttention", None)
            last = 1 if memory is None else 2
            x = x + self.feed_forward(self.norm(x, f"{at}.{last}.layer_norm"), f"{at}.{last}.DenseReluDense")
        return self.norm(x, f"{name}.final_layer_norm")

    def norm(self, x, name, kind=None):
        kind, eps = kind or self.config.norm, self.config.layer_norm_epsilon
        if kind == "layernorm":
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
            return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        groups = x.unflatten(-1, (8 if kind == "group_rmsnorm" else 1, -1))
        x = (groups / (groups.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
        return x * self.weights[f"{name}.weight"]

    def attend(self, x, source, visible, at, side):
        config = self.config
        share = config.num_heads // config.num_key_value_heads
        outputs = []
        for head in range(config.num_heads):
            q, k, v = (
                y @ self.weights[f"{at}.{name}.weight"][i * config.d_kv : (i + 1) * config.d_kv].T
                for y, name, i in ((x, "q", head), (source, "k", head // share), (source, "v", head // share))
            )
            scale = 1.0
            if config.qk_norm:
                q, k = self.norm(q, f"{at}.q_norm", "rmsnorm"), self.norm(k, f"{at}.k_norm", "rmsnorm")
                scale = config.d_kv**-0.5
            if side and config.position == "rope":
                q, k = self.turn(q, side), self.turn(k, side)
            scores = scale * q @ k.mT
            if side:
                scores = scores + self.bias(x.shape[1], head, side)
            outputs.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v)
        return torch.cat(outputs, -1) @ self.weights[f"{at}.o.weight"].T

    def turn(self, x, side):
        """Each pair of channels as a complex number, multiplied by exp(i * position * frequency)."""
        settings, length = self.config.position_settings or {}, x.shape[1]
        turning = round(self.config.d_kv * settings.get("rotary_frac", 1))
        base = 10000.0
        if settings.get("scaling") == "ntk":
            base *= max(1, length / settings["max_seq_length"]) ** (turning / (turning - 2))
        frequencies = base ** (-torch.arange(0, turning, 2, dtype=torch.float64) / turning)
        if settings.get("learnable"):
            frequencies = frequencies * self.weights[f"{side}.position.log_stretch"].exp()
        angles = torch.arange(length)[:, None] * frequencies
        pairs = torch.complex(x[..., : turning // 2], x[..., turning // 2 : turning]) * torch.exp(1j * angles)
        return torch.cat([pairs.real, pairs.imag, x[..., turning:]], -1)

    def bias(self, length, head, side):
        config, distance = self.config, torch.arange(length)[None, :] - torch.arange(length)[:, None]
        if config.position == "relative_bias":
            table = self.weights[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][:, head]
            # Texts of at most nine tokens stay within the buckets that hold one distance each, and the next one.
            after = 16 * (distance > 0)
            bucket = distance.abs() + after if side == "encoder" else (-distance).clamp(min=0)
            return table[bucket]
        if "alibi" in config.position:
            slope = 2.0 ** (-8 * (head + 1) / config.num_heads)
            before = after = slope
            if config.position == "adaptive_alibi":
                stretch = self.weights[f"{side}.position.log_stretch"].view(-1, config.num_heads)[:, head].exp()
                before, after = slope * stretch[0], slope * stretch[-1]
            elif side == "encoder":
                after = slope / 2
            return torch.where(distance < 0, before * distance, -after * distance)
        return 0.0

    def feed_forward(self, x, at):
        gelu = {"relu": torch.relu, "silu": lambda z: z * z.sigmoid(), "sigmoid": torch.sigmoid, "linear": lambda z: z}
        proj = self.config.feed_forward_proj
        inner, rest = ("wi_0", "wi_1") if proj.startswith("gated-") else ("wi", None)
        hidden = gelu[proj.removeprefix("gated-")](x @ self.weights[f"{at}.{inner}.weight"].T)
        if rest:
            hidden = hidden * (x @ self.weights[f"{at}.{rest}.weight"].T)
        return hidden @ self.weights[f"{at}.wo.weight"].T


def test_logits_and_gradients_equal_the_formula(model):
    batch = _batch()
    target = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    expected = Formula(model).logits(batch["input_ids"], batch["attention_mask"], target)
    got = model(**batch).logits
    torch.testing.assert_close(got, expected)
    signs = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(2))
    ours, theirs = (torch.autograd.grad((logits * signs).sum(), list(model.parameters())) for logits in (got, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernel", ["sdpa", "tiled", "flash", "memory_efficient"])
def test_kernels_by_name_agree(model, kernel):
    expected = model(**_batch()).logits
    for module in model.modules():
        if hasattr(module, "kernel"):
            module.kernel = kernel
    torch.testing.assert_close(model(**_batch()).logits, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch._dynamo does it itself
@pytest.mark.parametrize("name", ["t5", "alibi", "many at once"])
def test_compiled_it_is_one_graph_with_the_same_gradients(name):
    model, batch = _model(COMBINATIONS[name]), _batch()
    weights = list(model.parameters())
    expected = torch.autograd.grad(model(**batch).loss, weights)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(torch.autograd.grad(compiled(**batch).loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("generation", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_cache_changes_no_token(model, generation):
    batch = {name: _batch()[name] for name in ("input_ids", "attention_mask")}
    lengths = {"max_new_tokens": 12, "min_new_tokens": 12}
    cached = model.eval().generate(**batch, **lengths, **generation)
    generation = {name: value for name, value in generation.items() if name == "num_beams"}
    assert torch.equal(cached, model.generate(**batch, **lengths, **generation, use_cache=False))


# NTK's base follows the length of the row, not of the example.
@pytest.mark.parametrize("name", [name for name in COMBINATIONS if name != "rope ntk"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(name):
    model, batch = _model(COMBINATIONS[name]), _batch()
    padded = model(**batch).loss
    rows = [(source[mask.bool()], labels[labels != -100]) for source, mask, labels in zip(*batch.values(), strict=True)]
    source, labels = (torch.cat([row[side] for row in rows]) for side in (0, 1))
    segments, decoder_segments = (
        torch.cat([torch.full_like(row[side], number) for number, row in enumerate(rows, 1)]) for side in (0, 1)
    )
    packed = model(
        input_ids=source[None], labels=labels[None], segments=segments[None], decoder_segments=decoder_segments[None]
    ).loss
    torch.testing.assert_close(packed, padded)
    weights = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(packed, weights), torch.autograd.grad(padded, weights), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointed_blocks_give_the_same_gradients(model):
    weights = list(model.parameters())
    expected = torch.autograd.grad(model(**_batch()).loss, weights)
    checkpoint_blocks(model)
    model.train()
    for ours, theirs in zip(torch.autograd.grad(model(**_batch()).loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_auto_classes_open_what_was_saved(model, tmp_path):
    model.save_pretrained(tmp_path)
    opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(opened, T5Model) != model.config.is_standard  # a standard one opens as transformers' own
    batch = _batch()
    torch.testing.assert_close(opened(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    again = T5Model.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["vocab_size"] == 40


def test_converts_to_low_rank_and_comes_back_from_disk(model, tmp_path):
    report = convert(model, scope="all", attn_rank=3, mlp_rank=4, init="spectral")
    assert len(report.replaced) == sum(type(m).__name__ == "LowRankLinear" for m in model.modules()) > 0
    model.float()
    save_model(model, tmp_path)
    batch = _batch()
    torch.testing.assert_close(load_factored(tmp_path)(**batch).logits, model.eval()(**batch).logits)


def test_a_fresh_model_starts_at_the_loss_of_guessing():
    for changes in COMBINATIONS.values():
        torch.manual_seed(0)
        sizes = SIZES | {"vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 128} | {"tie_word_embeddings": False}
        model = T5Model(T5Config(**sizes | changes)).eval()
        generator = torch.Generator().manual_seed(3)
        source, labels = (torch.randint(2, 500, (16, 24), generator=generator) for _ in range(2))
        # Logits of deviation 1 add half a nat; some parts of a nat more or less come from what passes the norms.
        assert abs(model(input_ids=source, labels=labels).loss.item() - math.log(500) - 0.5) < 0.25


def test_queries_that_are_normalised_take_the_rate_of_the_others():
    assert query_lr_factors(_model({}))
    assert not query_lr_factors(_model({"qk_norm": True}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"position": "learned"}, "position is 'learned'; use one of relative_bias, rope"),
        ({"position": "rope", "d_kv": 5}, "RoPE"),
        ({"position": "rope", "position_settings": {"theta": 3}}, "'theta'"),
        ({"position": "alibi", "position_settings": {"buckets": 32}}, "'buckets'"),
        ({"position": "none", "position_settings": {"base": 3}}, "takes no position_settings"),
        ({"position": "alibi", "relative_bias_per_layer": True}, "goes with the position 'relative_bias'"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'; use one of rmsnorm"),
        ({"norm": "group_rmsnorm", "d_model": 30}, "must divide"),
        ({"feed_forward": "mlp"}, "feed_forward is 'mlp'; use one of glu"),
        ({"feed_forward": "swiglu", "feed_forward_proj": "gated-gelu"}, "means feed_forward_proj 'gated-silu', but"),
        ({"attention": "cudnn"}, "no attention kernel 'cudnn'; there are auto"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide num_heads, 4"),
    ],
)
def test_impossible_combinations_are_one_sentence(changes, sentence):
    with pytest.raises(ModelError) as caught:
        T5Model(T5Config(**SIZES | changes))
    assert sentence in str(caught.value)


def test_a_text_beyond_what_rope_was_trained_for_is_refused():
    model = _model({"position": "rope", "position_settings": {"max_seq_length": 8}})
    with pytest.raises(ModelError, match="9 positions, but is trained for 8"):
        model(**_batch())
