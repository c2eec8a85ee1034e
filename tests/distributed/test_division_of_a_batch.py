"""However a global batch of 8 is divided, gradients and logged numbers are those of one batch."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("one_step.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def _gradients(out, launcher, micro_batch, accumulation):
    subprocess.run([*launcher, str(SCRIPT), str(out), str(micro_batch), str(accumulation)], check=True, timeout=300)
    return load_file(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _gradients(tmp_path_factory.mktemp("whole") / "g.safetensors", [sys.executable], 8, 1)


@pytest.mark.parametrize(
    ("launcher", "micro_batch", "accumulation"),
    [
        pytest.param([sys.executable], 1, 8, id="accumulated 1x8"),
        pytest.param([*TORCHRUN, "--standalone", "--nproc_per_node", "2"], 4, 1, id="two processes 4x1"),
        pytest.param([*TORCHRUN, "--standalone", "--nproc_per_node", "2"], 2, 2, id="two processes 2x2"),
    ],
)
def test_same_gradients(whole, tmp_path, launcher, micro_batch, accumulation):
    divided = _gradients(tmp_path / "g.safetensors", launcher, micro_batch, accumulation)
    _assert_same(divided, whole)


def test_same_gradients_on_two_machines(whole, tmp_path):
    """Two torchrun agents, as on two machines, that meet on the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    out = tmp_path / "g.safetensors"
    agents = [
        subprocess.Popen([*TORCHRUN, *meeting, "--node_rank", str(rank), str(SCRIPT), str(out), "2", "2"])
        for rank in (0, 1)
    ]
    assert [agent.wait(timeout=300) for agent in agents] == [0, 0]
    _assert_same(load_file(out), whole)


def _assert_same(divided, whole):
    for name, gradient in whole.items():
        # Relative to the largest entry of each tensor; 1e-6 is a few float32 roundings of a sum in another order.
        assert (divided[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name
