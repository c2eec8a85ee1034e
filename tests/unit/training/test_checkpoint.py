import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fivefold.errors import CheckpointError
from fivefold.training.checkpoint import (
    clean_leftovers,
    find_last_checkpoint,
    load_training_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
    save_final,
    update_pointers,
    verify_checkpoint,
)

KILL_WRITER = Path(__file__).with_name("kill_writer.py")


class TinyModel(nn.Linear):
    """Writes itself as transformers' models do."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def save_pretrained(self, folder: str) -> None:
        save_file(self.state_dict(), Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text("{}")


class TinyTokenizer:
    def save_pretrained(self, folder: str) -> None:
        # Some tokenizers write folders of their own.
        (Path(folder) / "tokenizer").mkdir()
        (Path(folder) / "tokenizer" / "tokenizer.json").write_text('{"文": 1}', encoding="utf-8")


class BrokenModel(TinyModel):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def save_pretrained(self, folder: str) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half of")
        raise self.error


def trained(model: nn.Module, kind=torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def save(run_dir: Path, step: int, model=None, **more) -> Path:
    model = model or TinyModel()
    optimizer = more.pop("optimizer", None) or trained(model)
    loop_state = {"tokens_seen": 10 * step, "source_state": {"shard": 3}}
    return save_checkpoint(
        run_dir, step, model=model, tokenizer=TinyTokenizer(), optimizer=optimizer, loop_state=loop_state,
        run_settings={"lr": 0.1, "data": ["文.txt"]}, **more,
    )  # fmt: skip


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_stands_alone_and_is_what_its_manifest_says(tmp_path):
    folder = save(tmp_path / "run", 500, eval_loss=2.5)
    assert folder.name == "step_000500"
    assert listing(tmp_path / "run") == ["best", "last", "step_000500"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == files - {"manifest.json"}
    assert files >= {"model.safetensors", "config.json", "tokenizer/tokenizer.json", "run.yaml", "optimizer.pt"}
    assert "文.txt" in (folder / "run.yaml").read_text(encoding="utf-8")
    verify_checkpoint(folder)


def test_weights_optimizer_and_loop_come_back(tmp_path):
    model = TinyModel()
    optimizer = trained(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    folder = save(tmp_path, 7, model, optimizer=optimizer, grad_scaler=scaler, eval_loss=1.25)

    other = TinyModel()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.3)
    other_scaler = torch.amp.GradScaler("cpu")
    load_weights(folder, other)
    loop = load_training_state(folder, other_optimizer, other_scaler)
    assert loop == {"step": 7, "eval_loss": 1.25, "tokens_seen": 70, "source_state": {"shard": 3}}
    assert torch.equal(other.weight, model.weight)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in optimizer.state[mine].items():
            assert torch.equal(value, other_optimizer.state[theirs][name])
    assert other_scaler.get_scale() == 8.0
    # The state comes from the checkpoint, the settings from this run.
    assert other_optimizer.param_groups[0]["lr"] == 0.3


def test_state_of_another_run_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="holds the state of AdamW, but this run uses SGD"):
        load_training_state(folder, torch.optim.SGD(TinyModel().parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match=r"groups hold \[2\] tensors, this run's \[4\]"):
        load_training_state(folder, torch.optim.AdamW([*TinyModel().parameters(), *TinyModel().parameters()]))
    with pytest.raises(CheckpointError, match="no loss scaler"):
        load_training_state(folder, torch.optim.AdamW(TinyModel().parameters()), torch.amp.GradScaler("cpu"))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_weights(folder, nn.Linear(5, 5))


def test_optimizer_file_cannot_run_code(tmp_path):
    folder = save(tmp_path, 1)
    torch.save({"kind": "AdamW", "optimizer": print}, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_training_state(folder, torch.optim.AdamW(TinyModel().parameters()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 9, "files": {}}'), "has format 9"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: os.truncate(folder / "model.safetensors", 20), "model.safetensors has 20 bytes"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json was changed or damaged"),
    ],
)
def test_damage_is_named_with_its_file(tmp_path, damage, message):
    folder = save(tmp_path, 1)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(folder)


def test_a_missing_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        verify_checkpoint(tmp_path / "step_000001")
    assert find_last_checkpoint(tmp_path / "nothing") is None
    clean_leftovers(tmp_path / "nothing")


def test_pointers_name_the_newest_and_the_best(tmp_path):
    for step, loss in ((1, 3.0), (2, 2.0), (3, None), (4, 2.0), (5, float("nan"))):
        save(tmp_path, step, eval_loss=loss)
    assert (tmp_path / "last").readlink() == Path("step_000005")
    assert (tmp_path / "best").readlink() == Path("step_000002")
    verify_checkpoint(tmp_path / "best")


def test_pruning_keeps_the_last_k_and_the_best(tmp_path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)):
        save(tmp_path, step, eval_loss=loss)
    prune_checkpoints(tmp_path, keep_last=0)
    assert len(listing(tmp_path)) == 7
    prune_checkpoints(tmp_path, keep_last=2)
    assert listing(tmp_path) == ["best", "last", "step_000002", "step_000004", "step_000005"]


def test_the_newest_complete_checkpoint_is_found_though_the_pointer_dangles(tmp_path):
    save(tmp_path, 9)
    newest = save(tmp_path, 1_000_000)
    assert find_last_checkpoint(tmp_path) == newest
    (newest / "manifest.json").unlink()
    (tmp_path / "last").unlink()
    (tmp_path / "last").symlink_to("step_000777")
    assert find_last_checkpoint(tmp_path) == tmp_path / "step_000009"
    update_pointers(tmp_path)
    assert (tmp_path / "last").readlink() == Path("step_000009")


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3, eval_loss=2.0)
    model = TinyModel()
    folder = save(tmp_path, 3, model, eval_loss=1.0)
    verify_checkpoint(folder)
    loaded = TinyModel()
    load_weights(folder, loaded)
    assert torch.equal(loaded.weight, model.weight)
    assert listing(tmp_path) == ["best", "last", "step_000003"]


def test_the_final_model_has_a_manifest_and_no_optimizer(tmp_path):
    for _ in range(2):
        folder = save_final(
            tmp_path, model=TinyModel(), tokenizer=TinyTokenizer(), loop_state={"step": 9}, run_settings={"lr": 0.1}
        )
    verify_checkpoint(folder)
    assert listing(tmp_path) == ["final"]
    assert "optimizer.pt" not in listing(folder)
    assert find_last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failed_write_leaves_the_earlier_checkpoints_and_nothing_else(tmp_path, error):
    save(tmp_path, 1)
    before = listing(tmp_path)
    for step in (1, 2):  # in place of an earlier one, and beside it
        with pytest.raises(CheckpointError, match=r"could not be written \(.*(No space|failed).*MiB free"):
            save(tmp_path, step, BrokenModel(error), optimizer=trained(TinyModel()))
        assert listing(tmp_path) == before
        verify_checkpoint(tmp_path / "last")


def test_an_interrupt_while_writing_stays_an_interrupt_and_leaves_nothing(tmp_path):
    save(tmp_path, 1)
    before = listing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, BrokenModel(KeyboardInterrupt()), optimizer=trained(TinyModel()))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("limit_bytes", [100, 20_000])
def test_a_full_disk_is_one_sentence(tmp_path, limit_bytes):
    """The operating system refuses files beyond a size: safetensors' writer meets it first, then torch's."""
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from test_checkpoint import TinyModel, save
from fivefold.errors import CheckpointError
model = TinyModel()
model.weight = torch.nn.Parameter(torch.zeros(2, 100))  # about 1 kB of weights
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(9000))])  # and 72 kB of state
optimizer.param_groups[0]["params"][0].grad = torch.ones(9000)
optimizer.step()
run_dir = Path({str(tmp_path)!r})
save(run_dir, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
try:
    save(run_dir, 2, model, optimizer=optimizer)
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step_000002 could not be written" in done.stdout
    assert listing(tmp_path) == ["last", "step_000001"]
    verify_checkpoint(tmp_path / "step_000001")


def test_a_run_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "run", 1)


def test_killed_at_any_moment_of_writing_the_folder_stays_resumable(tmp_path):
    """`kill -9` before 200 seeded lines of saving, replacing and pruning (kill_writer.py tries all)."""
    command = [sys.executable, str(KILL_WRITER), str(tmp_path), "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["kills"] >= 190
    assert report["kills_with_a_half_written_folder"] > 50
