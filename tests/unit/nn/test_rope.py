"""RoPE against complex numbers in float64 and against transformers' LLaMA and GPT-NeoX, near and far out."""

import math

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from fivefold.errors import ModelError
from fivefold.nn.rope import RoPE, ntk_base, rope_angles, rope_frequencies, rotate

EXTENSIONS = {"linear": {"factor": 4.0}, "ntk": {}, "yarn": {"factor": 4.0}}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned_as_complex_numbers(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """The paper's equation 12 for each pair: a complex number times exp(i * position * theta)."""
    half = x.shape[-1] // 2
    theta = torch.tensor([base ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    angle = positions.double()[..., None] * theta
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_three_numbers():
    quarter = torch.tensor([[math.pi / 2]])
    x = torch.tensor([[1.0, 2.0, 5.0]])
    torch.testing.assert_close(rotate(x, quarter.cos(), quarter.sin()), torch.tensor([[-2.0, 1.0, 5.0]]))
    torch.testing.assert_close(rope_frequencies(4, 100.0), torch.tensor([1.0, 0.1], dtype=torch.float64))
    angles = rope_angles(torch.tensor([0, 3]), torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(angles, torch.tensor([[0.0, 0.0], [3.0, 0.3]]))
    # Twice the trained length doubles the slowest wavelength of 4 pairs: base^(6/8) grows by 2.
    assert ntk_base(10.0, rotary_dim=8, seq_len=20, max_seq_length=10) ** (6 / 8) == pytest.approx(2 * 10 ** (6 / 8))


def test_equals_complex_multiplication_forward_and_backward():
    query, key = random(2, 6, 9, 16).requires_grad_(), random(2, 3, 12, 16, seed=1).requires_grad_()  # GQA
    got = RoPE(16)(query, key)
    expected = [turned_as_complex_numbers(x, torch.arange(x.shape[-2])) for x in (query, key)]
    torch.testing.assert_close(got, tuple(expected))
    weights = [random(*x.shape, seed=2) for x in got]
    grads = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(turned, weights, strict=True)), [query, key])
        for turned in (got, expected)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("scaling", ["none", *EXTENSIONS])
def test_scores_depend_on_the_distance_only(scaling):
    rope = RoPE(16, 5000, scaling=scaling, **EXTENSIONS.get(scaling, {}))
    query, key, positions = random(1, 10, 16), random(1, 10, 16, seed=1), torch.arange(10)
    near_query, near_key = rope(query, key, positions, positions)
    far_query, far_key = rope(query, key, positions + 4000, positions + 4000)
    torch.testing.assert_close(far_query @ far_key.mT, near_query @ near_key.mT)
    assert not torch.allclose(near_query @ near_key.mT, query @ key.mT, atol=0.1)


@pytest.mark.parametrize("frac", [1.0, 0.5])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"rope_type": "default"}, {"max_seq_length": 400}),
        ({"rope_type": "linear", "factor": 4.0}, {"scaling": "linear", "factor": 4.0}),
        ({"rope_type": "dynamic", "factor": 1.0}, {"scaling": "ntk"}),
        ({"rope_type": "dynamic", "factor": 3.0}, {"scaling": "ntk", "factor": 3.0}),
        ({"rope_type": "yarn", "factor": 4.0}, {"scaling": "yarn", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 8.0, "beta_fast": 9.0, "beta_slow": 2.0, "attention_factor": 1.5},
            {"scaling": "yarn", "factor": 8.0, "beta_fast": 9.0, "beta_slow": 2.0, "attention_factor": 1.5},
        ),
    ],
)
def test_equals_transformers(theirs, ours, frac):
    parameters = {"rope_theta": 5000.0, "partial_rotary_factor": frac} | theirs
    if theirs["rope_type"] == "yarn":
        parameters["original_max_position_embeddings"] = 100
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 100}
    if frac == 1:
        peer = modeling_llama
        embedding = peer.LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=parameters))
    else:  # LLaMA itself has no partial rotary
        peer = modeling_gpt_neox
        embedding = peer.GPTNeoXRotaryEmbedding(GPTNeoXConfig(**sizes, rope_parameters=parameters))
    rope = RoPE(32, **({"max_seq_length": 100} | ours), base=5000.0, rotary_frac=frac)
    query, key, positions = random(2, 2, 400, 32).float(), random(2, 1, 400, 32, seed=1).float(), torch.arange(400)
    cos, sin = embedding(query, positions[None])
    num_pairs = rope.rotary_dim // 2
    # Their angles are float32: frequency and product are each rounded to 2^-24 of up to 400 radians.
    got = rope.cos_sin(positions, 400)
    torch.testing.assert_close(got[0], cos[0, :, :num_pairs], rtol=0, atol=400 * 2**-23)
    torch.testing.assert_close(got[1], sin[0, :, :num_pairs], rtol=0, atol=400 * 2**-23)
    expected = peer.apply_rotary_pos_emb(query, key, cos, sin)
    torch.testing.assert_close(rope(query, key), expected, rtol=0, atol=2 * 400 * 2**-23 * query.abs().max().item())


@pytest.mark.parametrize("scaling", EXTENSIONS)
def test_every_extension_reaches_far_beyond_the_trained_length(scaling):
    rope = RoPE(8, 16, scaling=scaling, **EXTENSIONS[scaling])
    query = random(1, 500, 8)
    turned, _ = rope(query, query)
    assert turned.isfinite().all()
    assert rope.frequencies(500)[-1] < 0.5 * rope_frequencies(8)[-1]


def test_ntk_looks_at_the_actual_length_and_remembers_none():
    rope, plain = RoPE(16, 32, scaling="ntk"), RoPE(16, 32)
    query = random(2, 200, 16)
    short = query[:, :32]
    longer = rope(query, query)[0]
    torch.testing.assert_close(rope(short, short), plain(short, short))
    assert not torch.allclose(longer[:, :32], rope(short, short)[0], atol=0.1)
    positions = torch.arange(200)
    torch.testing.assert_close(rope(query, query, positions, positions)[0], longer)
    torch.testing.assert_close(rope(query, short)[0], longer)  # one base for both


def test_yarn_divides_the_temperature_of_the_scores():
    query, key = random(1, 8, 16), random(1, 8, 16, seed=1)
    warm = RoPE(16, 64, scaling="yarn", factor=8.0, attention_factor=1.0)(query, key)
    sharp = RoPE(16, 64, scaling="yarn", factor=8.0)(query, key)
    torch.testing.assert_close(sharp[0] @ sharp[1].mT, (0.1 * math.log(8) + 1) ** 2 * (warm[0] @ warm[1].mT))


@pytest.mark.parametrize("scaling", ["none", *EXTENSIONS])
def test_cached_equals_uncached(scaling):
    rope = RoPE(16, 12 if scaling != "none" else 20, scaling=scaling, **EXTENSIONS.get(scaling, {}))
    query, key = random(2, 4, 20, 16), random(2, 2, 20, 16, seed=1)
    expected = rope(query, key)
    steps = []
    for start, end in ((0, 13), (13, 14), (14, 20)):
        positions = torch.arange(start, end)
        steps.append(rope(query[:, :, start:end], key[:, :, start:end], positions, positions, seq_len=20))
    for whole, parts in zip(expected, zip(*steps, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def test_packed_equals_separate():
    rope = RoPE(16, 32)
    query, key = random(2, 4, 9, 16), random(2, 2, 9, 16, seed=1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
    packed = rope(query, key, positions, positions)
    for row, cut in ((0, 4), (1, 7)):
        for part in (slice(cut), slice(cut, None)):
            alone = rope(query[row, :, part], key[row, :, part])
            torch.testing.assert_close((packed[0][row, :, part], packed[1][row, :, part]), alone)


def test_queries_and_keys_each_have_their_positions_and_dtype():
    rope = RoPE(16)
    query, key = random(2, 4, 9, 16), random(2, 4, 9, 16, seed=1).float()
    turned_query, turned_key = rope(query, key, torch.arange(9) + 5)
    torch.testing.assert_close(turned_query, turned_as_complex_numbers(query, torch.arange(9) + 5))
    torch.testing.assert_close(turned_key, turned_as_complex_numbers(key, torch.arange(9)).float())
    assert torch.equal(rope(query, key)[1], turned_key)
    torch.testing.assert_close(rope(query, query, torch.arange(9) + 5), (turned_query, rope(query, key)[0]))


def test_partial_rotary_turns_the_first_channels_as_a_smaller_head():
    query, key = random(2, 3, 7, 20), random(2, 3, 7, 20, seed=1)
    for turned, x in zip(RoPE(20, rotary_frac=0.4)(query, key), (query, key), strict=True):
        torch.testing.assert_close(turned[..., :8], turned_as_complex_numbers(x[..., :8], torch.arange(7)))
        assert torch.equal(turned[..., 8:], x[..., 8:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_out_only_the_result_is_rounded(dtype):
    rope, positions = RoPE(64, 200_000).to(dtype), torch.arange(100_000, 100_200)
    query = random(3, 200, 64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
        turned, _ = rope(query, query, positions, positions)
    assert turned.dtype == dtype
    expected = turned_as_complex_numbers(query.double(), positions)
    # Half a unit in the last place of the result, and float32's of the two products, each up to 4.
    torch.testing.assert_close(turned.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)


@pytest.mark.parametrize("scaling", ["none", *EXTENSIONS])
def test_learnable_frequencies_start_at_the_fixed_ones_and_get_exact_gradients(scaling):
    settings = {"scaling": scaling, **EXTENSIONS.get(scaling, {})}
    rope = RoPE(8, 6, learnable=True, **settings).double()
    query, key = random(2, 6, 8), random(2, 6, 8, seed=1)
    torch.testing.assert_close(rope(query, key), RoPE(8, 6, **settings)(query, key))

    def turned(log_stretch: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(rope, {"log_stretch": log_stretch}, (query, key))

    log_stretch = (0.1 * random(4, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(turned, (log_stretch, query.requires_grad_()))
    assert torch.autograd.gradgradcheck(turned, (log_stretch, query))


def test_learnable_frequencies_survive_being_trained_hard_and_are_put_back():
    rope = RoPE(8, 32, learnable=True)
    assert list(rope.state_dict()) == ["log_stretch"]
    with torch.no_grad():
        rope.log_stretch.fill_(-50.0)
    assert (rope.frequencies(32) > 0).all()
    rope = RoPE(8, 32, learnable=True).to("meta").to_empty(device="cpu")
    rope.reset_parameters()
    assert torch.equal(rope.frequencies(32), RoPE(8, 32).frequencies(32))


def test_holds_no_tensor_and_works_on_the_meta_device():
    rope = RoPE(8)
    assert not rope.state_dict()
    assert not list(rope.buffers())
    query = torch.empty(2, 3, 5, 8, device="meta")
    assert rope(query, query)[0].shape == query.shape


def test_any_memory_layout_and_no_rows():
    rope = RoPE(8)
    query = random(2, 5, 3, 8).transpose(1, 2)
    torch.testing.assert_close(rope(query, query), rope(query.contiguous(), query.contiguous()))
    empty = torch.empty(0, 3, 5, 8)
    positions = torch.empty(0, 5, dtype=torch.int64)
    assert rope(empty, empty, positions, positions)[0].shape == empty.shape
    assert rope(query[:, :, :0], query)[0].shape == (2, 3, 0, 8)


@pytest.mark.parametrize("learnable", [False, True])
def test_compiles_into_one_graph(learnable):
    rope = RoPE(8, 4, scaling="ntk", learnable=learnable)
    query, positions = random(2, 3, 5, 8).float(), torch.arange(5)
    compiled = torch.compile(rope, backend="eager", fullgraph=True)
    expected = rope(query, query, positions, positions, seq_len=5)
    torch.testing.assert_close(compiled(query, query, positions, positions, seq_len=5), expected)


@pytest.mark.parametrize("learnable", [False, True])
def test_too_long_without_an_extension_names_the_extensions(learnable):
    rope = RoPE(8, 16, learnable=learnable)
    query = random(1, 17, 8)
    with pytest.raises(ModelError, match=r"17 positions.*trained for 16.*'ntk'.*'linear'.*'yarn'"):
        rope(query, query[:, :3])
    with pytest.raises(ModelError, match="17 positions"):
        rope(query[:, :1], query[:, :1], torch.tensor([16]), torch.tensor([16]))
    with pytest.raises(ModelError, match="17 positions"):
        rope(query[:, :1], query[:, :1], torch.tensor([3]), torch.tensor([3]), seq_len=17)
    positions = torch.arange(17) % 16  # a packed row may be longer than its examples
    assert rope(query, query, positions, positions)[0].shape == query.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 7}, "dim=7 .* give 7 of them"),
        ({"dim": 12, "rotary_frac": 0.25}, "rotary_frac=0.25 give 3 of them"),
        ({"dim": 8, "rotary_frac": 0.1}, "give 0 of them"),
        ({"dim": 8, "rotary_frac": 0.0}, "rotary_frac=0.0"),
        ({"dim": 8, "rotary_frac": 1.5}, "rotary_frac=1.5"),
        ({"dim": 8, "scaling": "dynamic"}, "scaling='dynamic'; give one of none, linear, ntk, yarn"),
        ({"dim": 8, "scaling": "ntk", "factor": 0.5}, "factor=0.5"),
        ({"dim": 8, "scaling": "linear"}, "'linear' and 'yarn' need a factor above 1"),
        ({"dim": 8, "scaling": "yarn", "factor": math.nan}, "factor=nan"),
        ({"dim": 8, "factor": 2.0}, "'none' takes no factor"),
        ({"dim": 8, "base": 1.0}, "base above 1"),
        ({"dim": 8, "max_seq_length": 0}, "max_seq_length=0"),
        ({"dim": 8, "scaling": "yarn", "factor": 2.0, "beta_fast": 1.0}, "beta_slow < beta_fast"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ModelError, match=message):
        RoPE(**settings)


@pytest.mark.parametrize(
    ("width", "positions"),
    [
        (6, None),
        (8, torch.arange(4)),
        (8, torch.arange(5.0)),
        (8, torch.zeros(3, 5, dtype=torch.int64)),
        (8, torch.zeros(2, 3, 1, 5, dtype=torch.int64)),
    ],
)
def test_inputs_that_do_not_fit(width, positions):
    with pytest.raises(ModelError, match=r"got a key of shape|got key_positions"):
        RoPE(8)(random(2, 3, 5, 8), random(2, 3, 5, width), None, positions)
