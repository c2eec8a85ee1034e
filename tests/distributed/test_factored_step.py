"""Steps of pairs that two processes divide among themselves are those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factored_steps import OPTIMIZERS, PAIRS, train
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("factored_steps.py")
by_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factored")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(SCRIPT), str(folder), *OPTIMIZERS], check=True, timeout=300)
    return folder


@by_optimizer
def test_two_processes_end_with_the_same_bits(folder, name):
    first, second = (load_file(folder / f"{name}_{rank}.safetensors") for rank in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@by_optimizer
def test_two_processes_do_what_one_does(folder, name):
    alone, together = train(name), load_file(folder / f"{name}_0.safetensors")
    # Stacks of another height may be multiplied in another order: roundings of 1e-7 in 7 updates, in which Adam's
    # directions are divided by singular values of down to .1. Signs of singular vectors are free, so left right counts.
    for index in range(len(PAIRS)):
        names = f"{2 * index:02}", f"{2 * index + 1:02}"
        for left, right in (names, (f"{names[0]}.average", names[1]), (names[0], f"{names[1]}.average")):
            got, expected = (each[left] @ each[right] for each in (together, alone))
            assert (got - expected).norm() <= 1e-5 * expected.norm(), (left, right)
    # A column of zeros in one factor does not make Spectron's step smaller.
    assert together["num_recovered"] == alone["num_recovered"] == (name != "spectron")


@by_optimizer
def test_each_process_steps_half_of_the_pairs(folder, name):
    num_updates = 3 if name in ("factor", "tangent") else 7
    assert train(name)["num_stepped"] == num_updates * (3 + 1 + 2)
    for rank in (0, 1):
        num_stepped = load_file(folder / f"{name}_{rank}.safetensors")["num_stepped"]
        assert num_stepped == num_updates * (2 + 1 + 1)  # halves are rounded up
