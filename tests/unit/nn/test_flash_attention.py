"""Both blockwise attentions against the dense formula in float64, torch's own kernel and the tiled kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fivefold.errors import ModelError
from fivefold.nn.attention import attention
from fivefold.nn.flash_attention import BlockBias, flash_attention, memory_efficient_attention
from fivefold.nn.relative_bias import RelativePositionBias, relative_position_bucket

NO_MASKS = {"key_mask": None, "query_segments": None, "key_segments": None, "is_causal": False, "first_query": 0}
BOTH = pytest.mark.parametrize("blockwise", [flash_attention, memory_efficient_attention])


def _bucket_bias(weight):
    """T5's bias from its [num_buckets, H] table."""

    def block(weight, query, key):
        bucket = relative_position_bucket(key - query[:, None], num_buckets=weight.shape[0], max_distance=16)
        return F.embedding(bucket, weight).permute(2, 0, 1)[None]

    return BlockBias(weight, block)


def _dense_parts(q, k, bias, key_mask, query_segments, key_segments, is_causal, first_query):
    """The whole bias [1 or B, 1 or H, Q, K] (or None) and the pairs that are allowed, [B, 1, Q, K]."""
    query = torch.arange(q.shape[2]) + first_query
    key = torch.arange(k.shape[2])
    if isinstance(bias, BlockBias):
        bias = bias.block(bias.weight, query, key)
    allowed = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    if query_segments is not None:
        allowed = allowed & (query_segments[:, None, :, None] == key_segments[:, None, None, :])
    if is_causal:
        allowed = allowed & (query[:, None] >= key)
    return bias, allowed


def _formula(q, k, v, *, scale=1.0, bias=None, **masks):
    bias, allowed = _dense_parts(q, k, bias, **(NO_MASKS | masks))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scale * torch.einsum("bhqd,bhkd->bhqk", q, k)
    scores = (scores if bias is None else scores + bias).masked_fill(~allowed, float("-inf"))
    sees_none = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(sees_none, 0.0).softmax(-1).masked_fill(sees_none, 0.0) @ v


def _torch_kernel(q, k, v, *, scale, bias, **masks):
    bias, allowed = _dense_parts(q, k, bias, **masks)
    mask = (torch.zeros((), dtype=q.dtype) if bias is None else bias).masked_fill(~allowed, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


def _tiled_kernel(q, k, v, *, scale, bias, key_mask, **masks):
    bias, allowed = _dense_parts(q, k, bias, None, **masks)
    return attention(q, k, v, bias=bias.masked_fill(~allowed[:1], float("-inf")), key_mask=key_mask, scale=scale)


def _suits_tiled_kernel(q, k, v, *, bias, query_segments, **_):
    has_one_bias = isinstance(bias, BlockBias) or (
        bias is not None and bias.requires_grad and bias.shape[:2] == (1, q.shape[1])
    )
    return has_one_bias and query_segments is None and q.shape[1] == k.shape[1] and q.shape[3] == v.shape[3]


def _random_case(seed):
    """Inputs, keywords and leaves: any mixture of sizes, heads, bias, masks and memory layout."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[torch.randint(len(options), (), generator=g)]

    def randn(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    batch, key_heads, shared = pick(1, 2, 3), pick(1, 2, 3), pick(1, 1, 1, 2, 3)
    query_len, key_len, dim = pick(1, 2, 7, 16, 21), pick(1, 2, 8, 13, 33), pick(1, 3, 8)
    heads, value_dim = key_heads * shared, pick(dim, dim, dim, 5)
    shapes = [(batch, heads, query_len, dim), (batch, key_heads, key_len, dim), (batch, key_heads, key_len, value_dim)]
    if pick(True, False):
        leaves = [randn(*shape).requires_grad_() for shape in shapes]
        inputs = list(leaves)
    else:  # as projections leave them, [B, length, H, D]
        leaves = [randn(b, length, h, d).requires_grad_() for b, h, length, d in shapes]
        inputs = [leaf.transpose(1, 2) for leaf in leaves]

    bias, kind = None, pick("none", "matrix", "per row", "one head", "holes", "fixed", "buckets")
    if kind == "buckets":
        weight = randn(8, heads).requires_grad_()
        bias = _bucket_bias(weight)
        leaves.append(weight)
    elif kind != "none":
        bias = randn(batch if kind == "per row" else 1, 1 if kind == "one head" else heads, query_len, key_len)
        if kind == "holes":
            bias = bias.masked_fill(torch.rand(bias.shape, generator=g) < pick(0.2, 0.8), float("-inf"))
        if kind != "fixed":
            leaves.append(bias.requires_grad_())

    masks = NO_MASKS | {"is_causal": pick(True, False), "first_query": pick(0, 0, 1, 5, 40)}
    if pick(True, False):
        masks["key_mask"] = torch.rand(batch, key_len, generator=g) < pick(0.1, 0.7)
    if pick(True, False):
        masks["query_segments"] = torch.randint(3, (batch, query_len), generator=g).sort(-1).values
        masks["key_segments"] = torch.randint(3, (batch, key_len), generator=g).sort(-1).values
    keywords = {"bias": bias, "scale": pick(1.0, 0.3)} | masks
    grad = randn(batch, heads, query_len, value_dim)
    return inputs, keywords, leaves, grad, pick(3, 8, 16, 64)


@pytest.mark.parametrize("seed", range(300))
def test_outputs_and_gradients_equal_the_formula_and_torchs_kernels(seed):
    inputs, keywords, leaves, grad, block_size = _random_case(seed)
    expected = _formula(*inputs, **keywords)
    expected_grads = torch.autograd.grad(expected, leaves, grad)

    roads = {function: {"block_size": block_size} for function in (flash_attention, memory_efficient_attention)}
    roads |= {_torch_kernel: {}} | ({_tiled_kernel: {}} if _suits_tiled_kernel(*inputs, **keywords) else {})
    for function, more in roads.items():
        out = function(*inputs, **keywords, **more)
        torch.testing.assert_close(out, expected)
        for got, wanted in zip(torch.autograd.grad(out, leaves, grad), expected_grads, strict=True):
            torch.testing.assert_close(got, wanted)


def test_the_random_cases_cover_every_road():
    cases = [_random_case(seed) for seed in range(300)]
    counts = [
        (
            _suits_tiled_kernel(*inputs, **keywords),
            inputs[0].shape[1] != inputs[1].shape[1],
            isinstance(keywords["bias"], BlockBias),
            keywords["is_causal"] and keywords["key_segments"] is not None,
            bool((_formula(*inputs, **keywords) == 0).all(-1).any()),  # a query that sees no key
            inputs[0].shape[2] > block_size and inputs[0].shape[2] % block_size,
        )
        for inputs, keywords, *_, block_size in cases
    ]
    assert all(sum(map(bool, kind)) >= 20 for kind in zip(*counts, strict=True))


@BOTH
@pytest.mark.parametrize("kind", ["matrix", "block"])
def test_gradients_equal_finite_differences(blockwise, kind):
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 4, 2), (2, 1, 3, 2), (2, 1, 3, 1), (1, 2, 4, 3) if kind == "matrix" else (4, 2)]
    leaves = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    key_mask = torch.tensor([[True] * 3, [False, True, True]])  # the first query of row 1 sees no key

    def function(q, k, v, bias):
        bias = bias if kind == "matrix" else _bucket_bias(bias)
        return blockwise(q, k, v, bias=bias, key_mask=key_mask, is_causal=True, scale=0.5, block_size=2)

    assert torch.autograd.gradcheck(function, leaves)
    if blockwise is memory_efficient_attention:
        assert torch.autograd.gradgradcheck(function, leaves)
    else:
        with pytest.raises(ModelError, match="cannot be differentiated again"):
            torch.autograd.grad(function(*leaves).sum(), leaves[0], create_graph=True)


@BOTH
def test_a_block_bias_is_t5s_bias(blockwise):
    torch.manual_seed(0)
    table = RelativePositionBias(8, 4, 16, is_bidirectional=True)
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 30, 8)
    grad = torch.randn(2, 4, 9, 8)
    results = []
    for bias in (table(9, 30, first_query=21), _bucket_bias(table.weight)):
        out = blockwise(q, k, k, bias=bias, is_causal=True, first_query=21, block_size=8)
        results.append((out, *torch.autograd.grad(out, table.weight, grad)))
    for matrix, blocks in zip(*results, strict=True):
        torch.testing.assert_close(matrix, blocks)


@BOTH
def test_a_query_that_sees_no_key_gets_zeros_and_gives_no_gradient(blockwise):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 10, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 10, 10)
    bias[:, :, 4] = float("-inf")  # by the bias: query 4 of all rows
    bias.requires_grad_()
    key_mask = torch.ones(3, 10, dtype=torch.bool)
    key_mask[1] = False  # by padding: all of row 1
    segments = torch.zeros(3, 10, dtype=torch.long)
    segments[2, :3] = 1  # by packing: the first queries of row 2
    blind = torch.zeros(3, 10, dtype=torch.bool)
    blind[:, 4] = blind[1] = blind[2, :3] = True
    out = blockwise(
        q, k, v, bias=bias, key_mask=key_mask, query_segments=segments, key_segments=0 * segments, block_size=3
    )
    grads = torch.autograd.grad(out, (q, k, v, bias), torch.randn_like(out))
    assert all(x.isfinite().all() for x in (out, *grads))
    assert torch.equal(out.transpose(1, 2).abs().sum((2, 3)) == 0, blind)
    assert torch.equal(grads[0].transpose(1, 2).abs().sum((2, 3)) == 0, blind)
    assert all((grad[1] == 0).all() for grad in grads[:3])
    assert (grads[3][:, :, 4] == 0).all()


@BOTH
def test_a_row_of_the_smallest_number_keeps_its_weights(blockwise):
    """Other libraries mask so; the scores then drown in it, and every key weighs the same."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 4, requires_grad=True) for _ in range(3))
    bias = torch.zeros(1, 1, 6, 6)
    bias[:, :, 2] = torch.finfo(torch.float32).min
    grad = torch.randn(1, 1, 6, 4)
    results = []
    for function, more in ((blockwise, {"block_size": 4}), (_formula, {})):
        out = function(q, k, v, bias=bias, **more)
        results.append((out, *torch.autograd.grad(out, (q, k, v), grad)))
    torch.testing.assert_close(results[0][0][0, 0, 2], v[0, 0].mean(0))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_the_rounding_of_the_results(blockwise, dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 100, 16, generator=g).to(dtype).requires_grad_() for _ in range(3))
    bias = torch.randn(1, 4, 100, 100, generator=g).requires_grad_()  # a parameter, in float32
    grad = torch.randn(2, 4, 100, 16, generator=g).to(dtype)
    out = blockwise(q, k, v, bias=bias, block_size=32)
    truth = _formula(*(x.double() for x in (q, k, v)), bias=bias.double())
    assert out.dtype == dtype
    # One rounding: half a unit in the last place, and float32's own error, far below a tenth of it.
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), truth, rtol=0.55 * epsilon, atol=1e-6)
    leaves = (q, k, v, bias)
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(truth, leaves, grad.double()), strict=True
    ):
        assert got.dtype == wanted.dtype
        # One rounding more: the backward pass reads the rounded result.
        assert (got.double() - wanted.double()).norm() <= epsilon * wanted.double().norm()


@BOTH
def test_autocast_does_not_lower_the_precision(blockwise):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(3))
    plain = blockwise(q, k, v, block_size=8)
    with torch.autocast("cpu", torch.bfloat16):
        out = blockwise(q, k, v, block_size=8)
        # torch's own gradients are rounded where they are computed inside of autocast, ours are not.
        grads = torch.autograd.grad(out.sum(), (q, k, v)) if blockwise is flash_attention else None
    grads = grads or torch.autograd.grad(out.sum(), (q, k, v))
    assert torch.equal(out, plain)
    for got, expected in zip(grads, torch.autograd.grad(plain.sum(), (q, k, v)), strict=True):
        assert torch.equal(got, expected)


@BOTH
@pytest.mark.parametrize(("batch", "query_len", "key_len"), [(0, 5, 6), (2, 5, 0), (2, 0, 6)])
def test_nothing_to_attend_gives_zeros(blockwise, batch, query_len, key_len):
    q = torch.randn(batch, 4, query_len, 3, requires_grad=True)
    k = torch.randn(batch, 2, key_len, 3, requires_grad=True)
    bias = torch.randn(1, 4, query_len, key_len, requires_grad=True)
    mask = torch.ones(batch, key_len, dtype=torch.bool)
    out = blockwise(q, k, k, bias=bias, key_mask=mask, is_causal=True, block_size=4)
    assert out.shape == (batch, 4, query_len, 3)
    assert (out == 0).all()
    for grad in torch.autograd.grad(out.sum(), (q, k, bias)):
        assert (grad == 0).all()


@BOTH
def test_the_meta_device_gives_shapes(blockwise):
    q = torch.empty(2, 4, 30, 8, device="meta", requires_grad=True)
    k, v = torch.empty(2, 2, 20, 8, device="meta"), torch.empty(2, 2, 20, 5, device="meta")
    out = blockwise(q, k, v, is_causal=True, block_size=16)
    out.sum().backward()
    assert out.shape == (2, 4, 30, 5)
    assert q.grad is not None


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def _long_inputs(bias_kind):
    q, k, v = (torch.randn(2, heads, 512, 8, requires_grad=True) for heads in (4, 2, 2))
    if bias_kind == "block":
        return q, k, v, _bucket_bias(torch.randn(8, 4, requires_grad=True))
    return q, k, v, torch.randn(1, 4, 512, 512, requires_grad=True)


@BOTH
@pytest.mark.parametrize("bias_kind", ["block", "matrix"])
def test_no_tensor_is_larger_than_a_block_of_scores(blockwise, bias_kind):
    q, k, v, bias = _long_inputs(bias_kind)
    segments = torch.arange(512).div(200, rounding_mode="floor").expand(2, -1)
    masks = {"key_mask": segments >= 0, "query_segments": segments, "key_segments": segments, "is_causal": True}
    with _LargestTensor() as largest:
        blockwise(q, k, v, bias=bias, **masks, block_size=128).sum().backward()
    assert largest.numel == (2 * 4 * 128 * 128 if bias_kind == "block" else bias.numel())  # never [B, H, Q, K]
    with _LargestTensor() as largest:
        _formula(q, k, v, bias=bias, **masks)
    assert largest.numel == 2 * 4 * 512 * 512


def test_what_is_kept_for_the_backward_pass():
    q, k, v, bias = _long_inputs("block")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = flash_attention(q, k, v, bias=bias, is_causal=True)
    per_query = out.numel() // 8
    assert sum(kept) == sum(x.numel() for x in (q, k, v, bias.weight, out)) + 2 * per_query


@BOTH
def test_blocks_that_causality_hides_are_not_computed(blockwise):
    q, k, v, _ = _long_inputs("matrix")
    flops = []
    for is_causal in (True, False):
        with FlopCounterMode(display=False) as counter:
            blockwise(q, k, v, is_causal=is_causal, block_size=128).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] * 16 == flops[1] * 10  # 4 x 4 blocks, 6 of them above the diagonal


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(2, 5, 3)}, r"q is torch.float32 \[2, 5, 3\]; it must be floating-point \[batch, heads"),
        ({"k": torch.zeros(2, 3, 6, 3)}, "q has 4 heads and k has 3"),
        ({"k": torch.zeros(2, 2, 6, 8)}, r"k is \[2, 2, 6, 8\].* it must be \[2, 2, 6, 3\]"),
        ({"v": torch.zeros(2, 2, 7, 3)}, r"v is \[2, 2, 7, 3\]"),
        ({"bias": torch.zeros(5, 6)}, r"bias is torch.float32 \[5, 6\].*\[1 or 2, 1 or 4, 5, 6\]"),
        ({"bias": torch.zeros(1, 4, 1, 6)}, r"bias is .*\[1 or 2, 1 or 4, 5, 6\]"),
        ({"bias": torch.ones(1, 4, 5, 6, dtype=torch.bool)}, r"bias is torch.bool"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, r"key_mask is \[2, 5\].*\[2, 6\]"),
        ({"key_mask": torch.ones(2, 6)}, "key_mask is torch.float32; it must be bool"),
        ({"query_segments": torch.zeros(2, 5)}, "give both or none"),
        ({"first_query": -1}, "first_query is -1"),
        ({"block_size": 0}, "block_size 0"),
    ],
)
def test_arguments_that_do_not_fit(blockwise, changes, message):
    arguments = {"q": torch.zeros(2, 4, 5, 3), "k": torch.zeros(2, 2, 6, 3), "v": torch.zeros(2, 2, 6, 3)} | changes
    with pytest.raises(ModelError, match=message):
        blockwise(*[arguments.pop(name) for name in "qkv"], **arguments)
