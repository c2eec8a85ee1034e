"""Exact steps that two processes divide among themselves are those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factored_steps import PAIRS, train
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("factored_steps.py")
MOMENTA = ("factor", "tangent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factored")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(SCRIPT), str(folder), *MOMENTA], check=True, timeout=300)
    return folder


@pytest.mark.parametrize("momentum", MOMENTA)
def test_two_processes_end_with_the_same_bits(folder, momentum):
    first, second = (load_file(folder / f"{momentum}_{rank}.safetensors") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("momentum", MOMENTA)
def test_two_processes_do_what_one_does(folder, momentum):
    alone, together = train(momentum), load_file(folder / f"{momentum}_0.safetensors")
    # Stacks of another height may be multiplied in another order: roundings of 1e-7 in 7 updates, in which Adam's
    # directions are divided by singular values of down to .1. Signs of singular vectors are free, so left right counts.
    for index in range(len(PAIRS)):
        names = f"{2 * index:02}", f"{2 * index + 1:02}"
        for left, right in (names, (f"{names[0]}.exp_avg", names[1]), (names[0], f"{names[1]}.exp_avg")):
            got, expected = (each[left] @ each[right] for each in (together, alone))
            assert (got - expected).norm() <= 1e-5 * expected.norm(), (left, right)
    assert together["num_recovered"] == alone["num_recovered"] == 1
