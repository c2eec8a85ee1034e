"""However a global batch of 8 is divided, gradients and logged numbers are those of one batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert (divided[name] - gradient).abs().max() <= 1e-6 * max(scale, torch.tensor(1.0)), name
