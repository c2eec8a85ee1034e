"""What a user can do wrong ends with one sentence, exit code 2, no traceback, and nothing half-written."""

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fivefold.cli import main
from fivefold.errors import CheckpointError
from fivefold.training.checkpoint import verify_checkpoint

# What commands say while all is well: a spinner's last picture, a logged step, a run that goes on - and transformers'
# bars, which the program turns off unless the library was there before, as it is among other tests.
PROGRESS = re.compile(
    r"\S (reading|learning pieces|[\d,]+ documents)|step [\d,]+[:/]|training on |going on from |resuming with "
    r"|attention with |(Loading|Writing) [a-z ]+:"
)

Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must fail as it should, and give its sentence."""

    def refuse(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        return the_sentence(capsys.readouterr().err, str(words[0]))

    return refuse


def the_sentence(stderr: str, verb: str) -> str:
    """The one line that is no progress."""
    (line,) = [line for line in stderr.splitlines() if line.strip() and not PROGRESS.match(line)]
    assert re.match(rf"fivefold( {verb})?: ", line), line
    assert line[-1] in ".?", line
    return line


def leftovers(folder: Path) -> list[Path]:
    """Whatever was being written: it has a hidden name until it is whole."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def copy(small_run, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(small_run.run, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrian"], "did you mean 'pretrain'?"),
        (["zzz"], "there is no verb 'zzz'"),
        (["pretrain", "--num_training_step", "3"], "did you mean --num_training_steps?"),
        (["pretrain", "--data"], "--data got no value"),
        (["tokenizer", "--output_dir", "out"], "--data is empty"),
        (["prepare", "--tokenizer", "x", "--output_dir", "out"], "--data is empty"),
        (["pretrain", "--data", "x", "--loro_scope", "attention"], "it takes one of all, attn, mlp"),
        (["pretrain", "--data", "x", "--optimizer", "adamax"], "it takes one of adam, "),
        (["pretrain", "--data", "x", "--lr", "1", "--lr", "2"], "--lr was given as '1' and '2'"),
        (["pretrain", "--data", "x", "--recipe", "nothing.yaml"], "there is no such file"),
        (["tokenizer", "--data", "nothing.txt", "--output_dir", "out"], "'nothing.txt' is no file"),
        (["tokenizer", "--data", "empty.txt", "--output_dir", "out"], "empty.txt is empty"),
        (["tokenizer", "--data", "blank.txt", "--output_dir", "out"], "is empty: expected at least one character"),
        (["tokenizer", "--data", "words.txt", "--vocab_size", "9", "--output_dir", "out"], "expected at least"),
        (["prepare", "--data", "nothing.txt", "--tokenizer", "x", "--output_dir", "out"], "'nothing.txt' is no file"),
        (["prepare", "--data", "words.txt", "--tokenizer", "nothing", "--output_dir", "out"], "is no local folder"),
        (["prepare", "--data", "words.txt", "--tokenizer", "folder", "--output_dir", "out"], "holds no tokenizer"),
        (["generate", "--model", "nothing", "--text", "a"], "No model at nothing"),
        (["generate", "--model", "folder", "--text", "a"], "folder holds no config.json"),
        (["report", "nothing"], "nothing does not exist"),
        (["report", "folder"], "log.jsonl does not exist"),
    ],
)
def test_commands_that_cannot_be(words, sentence, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, content in (("empty.txt", ""), ("blank.txt", "\n\n"), ("words.txt", "some words\n")):
        (tmp_path / name).write_text(content)
    assert sentence in refusal(*words)
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "nothing.txt"}, "'nothing.txt' is no file"),
        ({"data": "empty.txt"}, "empty.txt is empty"),
        ({"data": "folder"}, "holds no file that can be read"),
        ({"data": "blank.txt", "tokenizer": "TOKENIZER", "validation_frac": 0}, "held no text to train on"),
        ({"data": "words.txt"}, "'t5-base' is no local folder, and as a Hub tokenizer it cannot be opened"),
        ({"tokenizer": "broken"}, "cannot be opened (JSONDecodeError"),
        ({"tokenizer": "other"}, "was prepared with another tokenizer"),
        ({"validation_data": "nothing.txt"}, "'nothing.txt' is no file"),
        ({"vocab_size": 400}, "ids up to 499, but the model's vocabulary has 400 entries"),
        ({"model_config": "rows.json"}, "ids up to 499, but the model's vocabulary has 300 entries"),
        ({"model_config": "smal"}, "neither a file nor a preset; the presets are modern_base"),
        ({"model_config": "empty.txt"}, "is not valid JSON"),
        ({"model_config": "broken/tokenizer.json"}, "is not valid JSON"),
        ({"input_length": 0}, "input_length is 0"),
        ({"input_length": 2}, "need at least 3 tokens"),
        ({"target_length": 0}, "target_length is 0"),
        ({"target_length": 3}, "target_length 3 is too short"),
        ({"input_length": 4096}, "hides 227 spans and needs as many sentinels <extra_id_N>, but the tokenizer has 128"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "must be 0 or above and below 2^63"),
        ({"total_batch_size": 6}, "total_batch_size 6 does not divide into micro-batches of 4"),
        ({"total_batch_size": 8, "accumulation_steps": 3}, "total_batch_size is 8; leave one of them out"),
        ({"resume": True}, "there is no run in out"),
        ({"compile": True}, "--compile is for GPUs and torch sees none"),
        ({"output_dir": "empty.txt"}, "because empty.txt is a file"),
        ({"output_dir": "empty.txt/run"}, "because empty.txt is a file"),
        ({"model": "RUN", "vocab_size": 512}, "has its own shape, so --model_config cannot change it"),
        ({"model": "folder", "model_config": None}, "folder holds no config.json"),
        ({"model": "nothing", "model_config": None}, "No model at nothing"),
    ],
)
def test_pretraining_that_cannot_be(changes, sentence, refusal, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "broken", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "words.txt").write_text("some words\n" * 300)
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    changed = (small_run.tokenizer / "tokenizer.json").read_text().replace("[NLU]", "[ABC]")
    (tmp_path / "other" / "tokenizer.json").write_text(changed)
    (tmp_path / "rows.json").write_text(small_run.shape.read_text().replace("512", "300"))
    names = {"TOKENIZER": small_run.tokenizer, "RUN": small_run.run / "final"}
    changes = {name: names.get(value, value) for name, value in changes.items()}
    before = sorted(tmp_path.rglob("*"))
    assert sentence in refusal(*small_run.pretrain(**{"output_dir": "out"} | changes))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("is_dry", [True, None])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "TEXT", "tokenizer": "TOKENIZER"}, "text.txt is read as training goes; run `fivefold prepare`"),
        ({"objective": "prefix"}, "--objective prefix cuts texts at random"),
        ({"append_eos_to_documents": True}, "where every document has an end mark"),
        ({"model_type": "llama", "model_config": "mini"}, "--objective causal, whose rows are full"),
    ],
)
def test_packing_that_cannot_be(changes, sentence, is_dry, refusal, small_run, tmp_path):
    names = {"TEXT": small_run.text, "TOKENIZER": small_run.tokenizer}
    changes = {name: names.get(value, value) for name, value in changes.items()}
    words = small_run.pretrain(packing=True, output_dir=tmp_path / "out", dry_run=is_dry, **changes)
    assert sentence in refusal(*words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run_is_left_as_it_is(refusal, small_run, copy):
    before = fingerprint(copy)
    assert "give --resume to go on with it" in refusal(*small_run.pretrain(output_dir=copy))
    shutil.rmtree(copy / "step_000006")
    shutil.rmtree(copy / "step_000008")
    assert "holds a run already" in refusal(*small_run.pretrain(output_dir=copy))
    assert fingerprint(copy) == {path: bytes_ for path, bytes_ in before.items() if "step_" not in str(path)}


def fingerprint(folder: Path) -> dict[Path, bytes]:
    """Every file's content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cut(file: Path) -> None:
    """Lose the end."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path) -> None:
    """Turn one bit in the middle over, the size staying what it was."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "sentence"),
    [
        (cut, "model.safetensors", "manifest.json says"),
        (change, "model.safetensors", "was changed or damaged"),
        (Path.unlink, "model.safetensors", "is missing, though"),
        (cut, "tokenizer.json", "manifest.json says"),
        (change, "config.json", "was changed or damaged"),
        (cut, "manifest.json", "is damaged"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "generate", "pretrain --model"])
def test_a_damaged_checkpoint(command, damage, name, sentence, refusal, small_run, copy, tmp_path):
    folder = copy / ("step_000008" if command == "resume" else "final")
    damage(folder / name)
    before = fingerprint(copy)
    if command == "resume":
        words = small_run.pretrain(output_dir=copy, resume=True, num_training_steps=12)
    elif command == "generate":
        words = ["generate", "--model", str(folder), "--text", "abc", "--output_file", str(tmp_path / "out.jsonl")]
    else:
        words = small_run.pretrain(output_dir=tmp_path / "out", model=folder, model_config=None)
    assert sentence in refusal(*words)
    assert fingerprint(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(("damage", "sentence"), [(cut, "manifest.json says"), (Path.unlink, "is missing, though")])
def test_a_checkpoint_without_its_optimizer_is_not_resumed(damage, sentence, refusal, small_run, copy):
    damage(copy / "step_000008" / "optimizer.pt")
    assert sentence in refusal(*small_run.pretrain(output_dir=copy, resume=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_config": "other.json"}, "do not fit the model"),
        ({"optimizer": "adafactor"}, "holds the state of AdamW, but this run uses Adafactor"),
        ({"dtype": "float16"}, "holds no loss scaler"),
        ({"data": "TEXT", "tokenizer": "TOKENIZER"}, "was trained on prepared tokens or pairs"),
    ],
)
def test_the_checkpoint_of_another_run(changes, sentence, refusal, small_run, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text(small_run.shape.read_text().replace('"d_ff": 64', '"d_ff": 32'))
    names = {"TEXT": small_run.text, "TOKENIZER": small_run.tokenizer}
    changes = {name: names.get(value, value) for name, value in changes.items()}
    before = fingerprint(copy)
    words = small_run.pretrain(output_dir=copy, resume=True, num_training_steps=12, **changes)
    said = refusal(*words)
    assert sentence in said
    assert len(said) < 500  # not every tensor of the model
    assert fingerprint(copy) == before


def foreign(folder: Path) -> None:
    """As if another program had written the model: no manifest."""
    (folder / "manifest.json").unlink()


def reshaped(folder: Path, old: str, new: str) -> None:
    """Another shape in the configuration than in the weights."""
    config = (folder / "config.json").read_text()
    assert old in config
    (folder / "config.json").write_text(config.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "cannot be read as weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read as weights"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No weights in"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "No model at"),
        (lambda folder: reshaped(folder, '"model_type": "t5"', '"model_type": "bert"'), "model type 'bert'"),
        (lambda folder: reshaped(folder, '"num_layers": 2', '"num_layers": 3'), "is missing (7 more like it)"),
        (lambda folder: reshaped(folder, '"d_ff": 64', '"d_ff": 32'), "has the shape [64, 32], not [32, 32]"),
        (lambda folder: _fewer_rows(folder), "ids up to 499, but the model's vocabulary has 300 entries"),
    ],
)
def test_generating_with_a_folder_that_is_no_whole_model(damage, sentence, refusal, copy):
    foreign(copy / "final")
    damage(copy / "final")
    assert sentence in refusal("generate", "--model", copy / "final", "--text", "abc")


def _fewer_rows(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["shared.weight"] = weights["shared.weight"][:300].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    reshaped(folder, '"vocab_size": 512', '"vocab_size": 300')


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "standard input is not UTF-8 text"),
        (["--input_file", "nothing.txt"], "there is no such file"),
        (["--input_file", "blank.txt"], "There is no input text"),
        (["--input_file", "binary"], "binary is not UTF-8 text"),
        (["--text", "a", "--input_file", "binary"], "give one of them"),
        (["--text", "a", "--output_file", "nothing/out.jsonl"], "lies in a folder that does not exist"),
        (["--text", "a", "--output_file", "folder"], "is a folder"),
        (["--text", "a", "--repetition_penalty", "0"], "--repetition_penalty must be above 0"),
        (["--text", "a", "--temperature", "0.5"], "add --do_sample"),
        (["--text", "a", "--seed", "-1"], "--seed is -1"),
        (["--text", "___ " * 129], "has 129 blanks"),
    ],
)
def test_generating_from_what_is_no_input(words, sentence, refusal, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"\xff"), encoding="utf-8"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    before = sorted(tmp_path.rglob("*"))
    assert sentence in refusal("generate", "--model", small_run.run / "final", *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_tokens_that_were_cut_short(refusal, small_run, tmp_path):
    tokens = Path(shutil.copytree(small_run.tokens, tmp_path / "tokens"))
    cut(next((tokens / "train").glob("tokens_*.bin")))
    assert "bytes where the index says" in refusal(*small_run.pretrain(data=tokens, output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(refusal, small_run, tmp_path):
    out = tmp_path / "out"
    words = small_run.pretrain(output_dir=out, lr=1e30, warmup_steps=0, save_every=1, keep_last=0)
    sentence = refusal(*words)
    (bad_step,) = map(int, re.findall(r"The (?:loss|gradient norm) of step (\d+) is (?:nan|inf)", sentence))
    assert "the optimizer has not moved" in sentence
    steps = sorted(out.glob("step_*"))
    assert [folder.name for folder in steps] == [f"step_{step:06d}" for step in range(1, bad_step)]
    for folder in steps:
        verify_checkpoint(folder)
    assert not (out / "final").exists()
    assert not leftovers(out)
    before = {name: content for folder in steps for name, content in fingerprint(folder).items()}
    assert refusal(*words, "--resume") == sentence  # the same step of the resumed run, which changes no checkpoint
    assert {name: content for folder in steps for name, content in fingerprint(folder).items()} == before


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: for whoever writes it is as if the disk were full, and any user may set it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [500, 3_000, 30_000])
def test_no_room_for_a_tokenizer_or_tokens(size_bytes, refusal, small_run, tmp_path):
    for words in (
        ["tokenizer", "--data", small_run.text, "--vocab_size", "500"],
        ["prepare", "--data", small_run.text, "--tokenizer", small_run.tokenizer, "--validation_frac", "0.05"],
    ):
        with room_for(size_bytes):
            sentence = refusal(*words, "--output_dir", tmp_path / words[0])
        assert re.search("full|too large", sentence)
    assert not [path for path in tmp_path.rglob("*") if path.name != "tokenizer"]  # the folder itself may be there


@pytest.mark.parametrize("size_bytes", [500, 30_000, 300_000])
def test_no_room_for_a_run(size_bytes, refusal, small_run, tmp_path):
    out = tmp_path / "out"
    with room_for(size_bytes):
        assert re.search("full|too large|could not be written", refusal(*small_run.pretrain(output_dir=out)))
    assert not leftovers(out)
    assert not list(out.glob("step_*"))
    assert main(small_run.pretrain(output_dir=out)) == 0  # once there is room
    assert (out / "final" / "model.safetensors").read_bytes() == final_weights(small_run.run)


def final_weights(run: Path) -> bytes:
    """The bytes of a finished run's weights."""
    return (run / "final" / "model.safetensors").read_bytes()


def test_no_room_for_one_more_checkpoint(refusal, small_run, copy):
    before = fingerprint(copy / "step_000008")
    words = small_run.pretrain(output_dir=copy, resume=True, num_training_steps=12)
    with room_for(100_000):
        assert "step_000009 could not be written" in refusal(*words)
    assert not leftovers(copy)
    assert fingerprint(copy / "step_000008") == before
    verify_checkpoint(copy / "last")
    assert main(words) == 0  # once there is room
    verify_checkpoint(copy / "step_000012")


def test_no_room_for_outputs(refusal, small_run, tmp_path):
    words = ["generate", "--model", small_run.run / "final", "--text", "abc ___ def"]
    with room_for(20):
        assert "make room" in refusal(*words, "--output_file", tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size_bytes", [20, 20_000, 100_000])
def test_no_room_for_pictures(size_bytes, refusal, small_run, tmp_path):
    with room_for(size_bytes):
        assert "cannot be written" in refusal("report", small_run.run, "--output_dir", tmp_path)
    assert not leftovers(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "size_bytes", "sentence"),
    [
        ({"input_length": 0}, resource.RLIM_INFINITY, "input_length is 0"),
        ({}, 100_000, "step_000003 could not be written"),
    ],
)
def test_the_same_in_a_process_of_its_own(changes, size_bytes, sentence, small_run, tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    done = subprocess.run(
        [sys.executable, "-m", "fivefold", *small_run.pretrain(output_dir=tmp_path / "out", **changes)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard)),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert sentence in the_sentence(done.stderr, "pretrain")
    assert not leftovers(tmp_path)


def test_a_manifest_of_another_checkpoint(small_run, copy):
    """The folders' manifests are their own: even the next checkpoint's does not pass."""
    shutil.copy(copy / "step_000006" / "manifest.json", copy / "step_000008" / "manifest.json")
    with pytest.raises(CheckpointError, match="manifest"):
        verify_checkpoint(copy / "step_000008")
