"""The Triton kernels without a GPU: run by the interpreter, compiled for real ones, and chosen where they can be."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fivefold import T5Config, T5Model
from fivefold.errors import ModelError
from fivefold.nn import attention as module
from fivefold.nn import triton_attention, triton_kernels
from fivefold.nn.attention import attention, takes_distances
from fivefold.nn.flash_attention import BlockBias, DistanceBias
from fivefold.nn.relative_bias import RelativePositionBias

KIB = 1024


def test_run_by_the_interpreter_they_equal_the_formula():
    cases = Path(__file__).with_name("triton_under_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.fixture
def compiled_shared_bytes(tmp_path, monkeypatch):
    """Kernel, compute capability and head_dim to the shared memory of what Triton makes of them, without a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_kernel(name, capability, head_dim, *, dtype="bf16", is_causal=False, absent=(), ones=()):
        m, n, num_warps, num_stages = triton_attention.launch_settings(name, head_dim, 4 if dtype == "fp32" else 2)
        fixed = {"IS_CAUSAL": is_causal, "D": head_dim, "W": triton.next_power_of_2(head_dim), "M": m, "N": n}
        fixed |= dict.fromkeys(absent) | dict.fromkeys(ones, 1)  # how a launch passes None and 1
        statistics = ("weight_ptr", "log_sum_ptr", "dot_ptr", "sums_ptr")
        types = {"mask_ptr": "*i1", "query_segment_ptr": "*i64", "key_segment_ptr": "*i64", "scale": "fp32"}
        types |= dict.fromkeys(statistics, "*fp32") | dict.fromkeys(fixed, "constexpr")
        kernel = getattr(triton_kernels, name)
        signature = {
            argument: types.get(argument, f"*{dtype}" if argument.endswith("_ptr") else "i32")
            for argument in kernel.arg_names
        }
        aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
        source = ASTSource(kernel, signature, {name: fixed[name] for name in signature if name in fixed}, aligned)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

    return compile_kernel


@pytest.mark.parametrize("name", ["forward", "grad_queries", "grad_keys"])
@pytest.mark.parametrize(
    ("capability", "head_dim"),
    [
        (80, 64),
        pytest.param(80, 128, marks=pytest.mark.slow),
        pytest.param(90, 64, marks=pytest.mark.slow),
        (90, 128),
    ],
)
def test_they_compile_and_fit(compiled_shared_bytes, name, capability, head_dim):
    shared = compiled_shared_bytes(name, capability, head_dim, is_causal=head_dim == 64)
    assert shared <= {80: 99, 90: 227}[capability] * KIB  # 8.0 has 163, but consumer cards of its kind 99


@pytest.mark.parametrize("name", ["forward", "grad_queries", "grad_keys"])
def test_they_compile_without_masks_for_sizes_of_one_and_in_float32(compiled_shared_bytes, name):
    absent = ["mask_ptr", "query_segment_ptr", "key_segment_ptr"] + ["sums_ptr"] * (name == "grad_queries")
    ones = ["heads", "key_heads", "query_len", "key_len", "first_query"]
    assert compiled_shared_bytes(name, 80, 16, is_causal=True, absent=absent, ones=ones) <= 99 * KIB
    assert compiled_shared_bytes(name, 80, 64, dtype="fp32", absent=absent[:3]) <= 99 * KIB


def _inputs(dtype=torch.float32, dim=8):
    return [torch.randn(2, heads, 6, dim, dtype=dtype) for heads in (4, 2, 2)]


def _on_a_gpu(**changes):
    """As much of a tensor on a GPU as the choice of a kernel looks at."""
    facts = {"is_cuda": True, "device": torch.device("cuda"), "dtype": torch.bfloat16, "shape": (2, 4, 6, 8)}
    return SimpleNamespace(**facts | changes)


@pytest.fixture
def ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))


def _bias(heads=4):
    return RelativePositionBias(8, heads, 16, is_bidirectional=True).by_distance()


@pytest.mark.parametrize(
    ("inputs", "arguments", "sentence"),
    [
        (_inputs(), {}, "on the device 'cpu', not on an NVIDIA GPU; use 'auto', 'sdpa' or 'flash'"),
        (
            _inputs(),
            {"bias": torch.zeros(1, 4, 6, 6)},
            r"takes a DistanceBias, .* a matrix \[1, 4, 6, 6\]; use 'auto'",
        ),
        (_inputs(), {"bias": BlockBias(torch.zeros(4), lambda *_: None)}, "got another BlockBias; use 'auto'"),
        (_inputs(), {"bias": _bias(), "dropout_rate": 0.1}, "has no dropout; use 'auto', 'sdpa' or 'tiled'"),
        ([_on_a_gpu(dtype=torch.float64)] * 3, {}, "computes float32, bfloat16 and float16, not torch.float64"),
        ([_on_a_gpu(shape=(2, 4, 6, 256))] * 3, {}, "head_dim up to 128, the values' too, not 256 and 256"),
        ([_on_a_gpu(), None, _on_a_gpu(shape=(2, 4, 6, 4))], {}, "not 8 and 4"),
    ],
)
def test_by_name_it_is_refused_where_it_cannot(ampere, inputs, arguments, sentence):
    with pytest.raises(ModelError, match=f"kernel 'triton' .*{sentence}"):
        attention(*inputs, kernel="triton", **arguments)


def test_by_name_it_is_refused_where_triton_or_the_gpu_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ModelError, match=r"compute capability 8\.0\); use 'auto'"):
        attention(*[_on_a_gpu()] * 3, kernel="triton")
    monkeypatch.setattr(module, "_HAS_TRITON", False)
    with pytest.raises(ModelError, match=r"pip install 'fivefold\[triton\]'\); use 'auto', 'sdpa' or 'flash'"):
        attention(*_inputs(), kernel="triton", bias=_bias())


def test_a_t5_says_it_in_one_sentence_too():
    model = T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, attention="triton"))
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ModelError, match="'triton' cannot be used: the tensors are on the device 'cpu'"):
        model.eval()(input_ids=ids, labels=ids)


def test_on_a_gpu_it_is_chosen_for_t5s_bias_and_said_once(ampere, monkeypatch, caplog):
    module._say_once.cache_clear()
    facts = {"head_dim": 64, "query_len": 6, "dropout_rate": 0.0}
    with caplog.at_level(logging.INFO, logger="fivefold"):
        assert takes_distances("auto", _on_a_gpu(), **facts)
        monkeypatch.setattr(triton_attention, "triton_attention", lambda *_, **given: given["bias"])
        for _ in range(2):
            assert attention(*[_on_a_gpu()] * 3, bias=(bias := _bias())) is bias
        assert caplog.messages == ["attention with a DistanceBias on cuda: triton"]
        assert not takes_distances("auto", _on_a_gpu(), **facts | {"query_len": 1})
        assert not takes_distances("auto", torch.zeros(2), **facts)
        assert len(caplog.messages) == 1
        assert not takes_distances("auto", _on_a_gpu(), **facts | {"dropout_rate": 0.1})
        monkeypatch.setattr(module, "_HAS_TRITON", False)
        assert not takes_distances("auto", _on_a_gpu(), **facts)
    assert "it has no dropout" in caplog.messages[1]
    assert "pip install 'fivefold[triton]'" in caplog.messages[2]
    assert takes_distances("triton", torch.zeros(2), **facts)
    monkeypatch.setattr(module, "flash_attention", lambda *_, **given: "flash")
    assert attention(*[_on_a_gpu()] * 3, bias=_bias()) == "flash"


def test_elsewhere_a_bias_by_distance_is_flash_attentions():
    q, k, v = _inputs()
    table = RelativePositionBias(8, 4, 10, is_bidirectional=False)
    expected = attention(q, k, v, bias=table(6, 6), kernel="sdpa")
    for kernel in ("auto", "flash", "memory_efficient"):
        torch.testing.assert_close(attention(q, k, v, bias=table.by_distance(), kernel=kernel), expected)
    with pytest.raises(ModelError, match=r"weight is \[3, 9\]; it must be \[4, 2 \* reach \+ 1\]"):
        attention(q, k, v, bias=DistanceBias(torch.zeros(3, 9)))
