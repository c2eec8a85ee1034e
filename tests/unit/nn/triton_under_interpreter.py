"""The Triton kernels run by Triton's interpreter, against the formula in float64; `test_triton_attention.py` starts it.

TRITON_INTERPRET=1 must stand before triton is imported, by whomever, so this has a process of its own.
"""

import pytest
import torch
from triton.runtime import interpreter

from fivefold import T5Config, T5Model
from fivefold.errors import ModelError
from fivefold.nn.attention import attention
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.nn.triton_attention import distance_attention, triton_attention

_multiply = interpreter.InterpreterBuilder.create_dot


def _multiply_any(builder, left, right, *rest):
    """The interpreter's product, which takes bfloat16 for the integers that it keeps it in; widening is exact."""
    wide = interpreter.tl.float32
    left, right = (builder.cast_impl(x, wide) if x.dtype.scalar.is_bf16() else x for x in (left, right))
    return _multiply(builder, left, right, *rest)


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch):
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _multiply_any)


def _formula(q, k, v, bias, scale, masks):
    """In float64, with the whole matrix of scores; `bias` is [1, H, Q, K]."""
    shared = q.shape[1] // k.shape[1]
    q, k, v, bias = (x.double() for x in (q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), bias))
    visible = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if masks["is_causal"]:
        visible &= torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + masks["first_query"]
    if masks["key_mask"] is not None:
        visible &= masks["key_mask"][:, None, None]
    if masks["query_segments"] is not None:
        visible &= (masks["query_segments"][:, :, None] == masks["key_segments"][:, None])[:, None]
    # A row of -inf has no softmax: its scores are set to anything finite, its weights to zero.
    weights = (scale * q @ k.mT + bias).masked_fill(~visible, -1e30).softmax(-1) * visible
    return weights @ v


def _random_case(seed):
    """Inputs, table, keywords and the gradient that arrives: any mixture of sizes, heads, masks, types and layout."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=g))]

    batch, key_heads, shared, dim = pick(1, 2), pick(1, 2), pick(1, 1, 2, 3), pick(3, 8, 16, 20)
    query_len, key_len, first_query = pick(1, 7, 16, 20, 37), pick(1, 9, 16, 33, 50), pick(0, 0, 3, 16, 40)
    dtype = pick(torch.float32, torch.float32, torch.bfloat16, torch.float16)
    heads = key_heads * shared
    shapes = [(batch, query_len, heads, dim), (batch, key_len, key_heads, dim), (batch, key_len, key_heads, dim)]
    q, k, v = (torch.randn(shape, generator=g).to(dtype).transpose(1, 2) for shape in shapes)
    if pick(True, False):
        q, k, v = q.contiguous(), k, v.contiguous()
    table = RelativePositionBias(pick(8, 16), heads, pick(10, 18, 60), is_bidirectional=pick(True, False))
    torch.nn.init.normal_(table.weight, generator=g)
    masks = {"is_causal": pick(True, False), "first_query": first_query, "key_mask": None}
    masks |= {"query_segments": None, "key_segments": None}
    if pick(True, False):
        masks["key_mask"] = torch.rand(batch, key_len, generator=g) < pick(0.2, 0.7)
    if pick(True, False, False):
        masks["query_segments"] = torch.randint(3, (batch, query_len), generator=g).sort(-1).values
        masks["key_segments"] = torch.randint(3, (batch, key_len), generator=g).sort(-1).values
    grad = torch.randn(batch, heads, query_len, dim, generator=g).to(dtype)
    return [x.requires_grad_() for x in (q, k, v)], table, masks, pick(1.0, 0.3), grad


@pytest.mark.parametrize("seed", range(30))
def test_outputs_and_gradients_equal_the_formula(seed):
    inputs, table, masks, scale, grad = _random_case(seed)
    leaves = (*inputs, table.weight)
    got = triton_attention(*inputs, bias=table.by_distance(), scale=scale, block_size=16, **masks)
    matrix = table(grad.shape[2], inputs[1].shape[2], masks["first_query"])
    expected = _formula(*inputs, matrix, scale, masks)
    assert got.dtype == inputs[0].dtype
    results = zip(
        (got, *torch.autograd.grad(got, leaves, grad)),
        (expected, *torch.autograd.grad(expected, leaves, grad.double())),
        strict=True,
    )
    # Weights and score gradients are rounded to the inputs' type before the second product, results after it. Errors go
    # with what arrives, also where a sum of it comes to nothing.
    tolerance = 2 * max(torch.finfo(got.dtype).eps, 1e-6)
    for ours, theirs in results:
        assert ours.isfinite().all()
        assert (ours.double() - theirs.double()).norm() <= tolerance * max(grad.double().norm(), theirs.double().norm())
    sees_none = (expected == 0).all(-1)
    assert (got[sees_none] == 0).all()


def test_the_random_cases_cover_every_road():
    cases = [_random_case(seed) for seed in range(30)]
    counts = [
        (
            masks["is_causal"],
            masks["is_causal"] and masks["first_query"] > 0,
            masks["key_mask"] is not None,
            masks["key_segments"] is not None,
            inputs[0].shape[1] != inputs[1].shape[1],
            inputs[0].dtype == torch.bfloat16,
            inputs[0].dtype == torch.float16,
            table.is_bidirectional and not masks["is_causal"],
            inputs[1].shape[2] > masks["first_query"] + 16 + table.max_distance,  # a tile beyond reach, after
            masks["first_query"] >= 16 + table.max_distance,  # and before
        )
        for inputs, table, masks, *_ in cases
    ]
    assert all(sum(kind) >= 3 for kind in zip(*counts, strict=True))


def test_two_runs_give_the_same_bits_and_no_bias_is_none():
    (q, k, v), table, masks, scale, grad = _random_case(3)
    leaves = (q, k, v, table.weight)
    runs = []
    for _ in range(2):
        out = triton_attention(q, k, v, bias=table.by_distance(), scale=scale, block_size=16, **masks)
        runs.append((out, *torch.autograd.grad(out, leaves, grad)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    plain = triton_attention(q, k, v, scale=scale, block_size=32, **masks)
    zeros = torch.zeros(1, q.shape[1], q.shape[2], k.shape[2])
    torch.testing.assert_close(plain.double(), _formula(q, k, v, zeros, scale, masks), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("batch", "query_len", "key_len"), [(0, 5, 6), (2, 5, 0), (2, 0, 6)])
def test_nothing_to_attend_gives_zeros(batch, query_len, key_len):
    q = torch.randn(batch, 4, query_len, 3, requires_grad=True)
    k = torch.randn(batch, 2, key_len, 3, requires_grad=True)
    table = RelativePositionBias(8, 4, 16, is_bidirectional=True)
    out = attention(q, k, k, bias=table.by_distance(), kernel="triton")
    assert out.shape == (batch, 4, query_len, 3)
    for x in (out, *torch.autograd.grad(out.sum(), (q, k, table.weight))):
        assert (x == 0).all()


def test_it_is_an_operation_that_torch_compile_knows():
    inputs, table, masks, scale, _ = _random_case(1)
    q, k, v = (x.detach().float().transpose(1, 2).contiguous().requires_grad_() for x in inputs)
    weight = table.by_distance().weight.detach().requires_grad_()
    order = ("key_mask", "query_segments", "key_segments", "is_causal", "first_query")
    arguments = (q, k, v, weight, *(masks[name] for name in order), scale, 16)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(distance_attention, arguments, test_utils=tests)


def test_its_gradient_cannot_be_differentiated_again():
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    with pytest.raises(ModelError, match="cannot be differentiated again"):
        torch.autograd.grad(triton_attention(q, q, q).sum(), q, create_graph=True)


def _model(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    return T5Model(T5Config(dropout_rate=0.0, **sizes | buckets | changes))


def _batch(is_packed):
    g = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(2, 40, (2, 24), generator=g),
        "labels": torch.randint(2, 40, (2, 18), generator=g),
    }
    if is_packed:
        segments = torch.tensor([[1] * 10 + [2] * 14, [1] * 20 + [2] * 4])
        return batch | {"segments": segments, "decoder_segments": segments[:, :18]}
    return batch | {"attention_mask": (torch.arange(24) < torch.tensor([[24], [15]])).long()}


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_t5_gets_the_loss_and_gradients_of_the_other_kernels(is_packed):
    results = []
    for kernel in ("sdpa", "triton"):
        model = _model(attention=kernel, num_key_value_heads=1)
        loss = model(**_batch(is_packed)).loss
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)  # float32, other orders of summation


def test_a_t5_generates_the_same_tokens_with_a_cache():
    batch = {name: tensor for name, tensor in _batch(False).items() if name != "labels"}
    lengths = {"max_new_tokens": 4, "min_new_tokens": 4}
    models = [_model(attention=kernel).eval() for kernel in ("sdpa", "triton")]
    expected, got = (model.generate(**batch, **lengths) for model in models)
    assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch._dynamo does it itself
def test_a_compiled_t5_is_one_graph_with_the_same_gradients():
    model, batch = _model(attention="triton"), _batch(False)
    weights = list(model.parameters())
    expected = torch.autograd.grad(model(**batch).loss, weights)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(torch.autograd.grad(compiled(**batch).loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
