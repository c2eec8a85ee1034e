import re
from importlib import metadata

import pytest
import torch

from fivefold.commands import doctor
from fivefold.commands.doctor import CHECKS, Finding, run
from fivefold.errors import ConfigError


@pytest.fixture
def given_checks(monkeypatch):
    """Replaces the real checks."""

    def replace(**checks):
        monkeypatch.setattr(doctor, "CHECKS", checks)

    return replace


@pytest.fixture
def requires(monkeypatch):
    """Replaces what the installed metadata ask for."""

    def replace(*requirements):
        monkeypatch.setattr(metadata, "requires", lambda name: list(requirements))

    return replace


def explode() -> Finding:
    """A check that a broken installation breaks."""
    raise ImportError("libcuda.so.1: cannot open\n  shared object file")


def test_this_installation_works(capsys):
    run(dry_run=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == list(CHECKS)
    assert all(re.match(r"(ok|warn) +\w+ +\S", line) for line in lines)


def test_a_dry_run_lists_the_checks_and_makes_none(given_checks, capsys):
    given_checks(one=explode)
    run(dry_run=True)
    assert capsys.readouterr().out == "one           A check that a broken installation breaks.\n"


def test_what_fails_or_breaks_is_a_line_and_the_others_are_still_made(given_checks, capsys):
    given_checks(
        good=lambda: Finding("ok", "fine"),
        slow=lambda: Finding("warn", "slow", "buy another"),
        broken=explode,
        wrong=lambda: Finding("FAIL", "1 is 2", "count again"),
    )
    with pytest.raises(ConfigError, match=r"does not work: broken \(ImportError: libcuda.* file\) and 1 more; see"):
        run(dry_run=False)
    assert capsys.readouterr().out.splitlines() == [
        "ok    good          fine",
        "warn  slow          slow  (buy another)",
        "FAIL  broken        ImportError: libcuda.so.1: cannot open shared object file  "
        "(reinstall fivefold in a fresh environment; if it stays, report it as a bug)",
        "FAIL  wrong         1 is 2  (count again)",
    ]


def test_warnings_alone_are_no_failure(given_checks):
    given_checks(slow=lambda: Finding("warn", "slow"))
    run(dry_run=False)


def test_versions_are_held_against_the_metadata(requires):
    ours = metadata.version("torch")
    requires("torch>=2", "numpy>=1", 'colorama>=99; sys_platform == "no such system"', 'wandb>=99; extra == "wandb"')
    assert doctor.check_packages() == Finding("ok", f"torch {ours}, numpy {metadata.version('numpy')}")
    requires("torch<2,>=1", "no-such-package>=1", "numpy>=1")
    state, found, remedy = doctor.check_packages()
    assert state == "FAIL"
    assert found == f"no no-such-package, torch {ours}, but <2,>=1 is needed"
    assert remedy


def test_extras_may_be_missing_but_not_too_old(requires):
    requires("torch>=99", 'no-such-package>=1; extra == "wandb"', 'numpy>=1; extra == "sentencepiece"')
    state, found, remedy = doctor.check_extras()
    assert (state, found) == ("ok", f"numpy {metadata.version('numpy')}, no no-such-package")
    assert "pip install" in remedy
    requires('numpy>=99; extra == "wandb"')
    assert doctor.check_extras().state == "warn"


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    assert doctor.check_python() == Finding("FAIL", "3.9.1", "fivefold needs >=3.11")


def test_a_driver_without_a_gpu_in_torch_is_pointed_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    state, found, remedy = doctor.check_device()
    assert state == "warn"
    assert "sees no GPU" in found
    assert "CUDA" in remedy


@pytest.mark.parametrize(("bfloat16_seconds", "state"), [(0.5, "ok"), (2.0, "warn")])
def test_bfloat16_that_is_slower_is_pointed_out(monkeypatch, bfloat16_seconds, state):
    seconds = {torch.float32: 1.0, torch.bfloat16: bfloat16_seconds}
    monkeypatch.setattr(doctor, "_matmul_seconds", seconds.__getitem__)
    finding = doctor.check_dtypes()
    assert finding.state == state
    assert ("--dtype float32" in finding.remedy) == (state == "warn")


def test_attention_that_is_wrong_fails(monkeypatch):
    from fivefold.nn import attention as module

    right = module.attention
    monkeypatch.setattr(module, "attention", lambda q, k, v, bias: right(q, k, v, bias=1.01 * bias))
    assert doctor.check_attention().state == "FAIL"


def test_processes_that_cannot_meet_are_a_warning(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("unable to resolve host\nat line 3")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    state, found, _ = doctor.check_processes()
    assert state == "warn"
    assert found.endswith("does not start: unable to resolve host")


def test_little_memory_or_room_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_free_memory_bytes", lambda: 2**30)
    assert doctor.check_memory().state == "warn"
    monkeypatch.setattr(doctor, "_free_memory_bytes", lambda: None)
    assert doctor.check_memory().state == "ok"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_ROOM_ON_DISK", 2**60)
    assert doctor.check_disk().state == "warn"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_disk().found == f"{tmp_path} cannot be written to"


def test_a_loss_that_does_not_fall_fails(monkeypatch):
    from fivefold.training import optimizers

    monkeypatch.setattr(optimizers, "build_optimizer", lambda model, _: torch.optim.SGD(model.parameters(), lr=0.0))
    assert doctor.check_training().state == "FAIL"


def test_a_checkpoint_that_loads_as_another_model_fails(monkeypatch):
    from fivefold.models import load

    right = load.load_model

    def load_damaged(folder):
        model = right(folder)
        model.get_parameter("encoder.final_layer_norm.weight").data *= 1.01
        return model

    monkeypatch.setattr(load, "load_model", load_damaged)
    assert doctor.check_checkpoint().state == "FAIL"
