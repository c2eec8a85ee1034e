import json
import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fivefold.errors import CheckpointError, ConfigError, DataError
from fivefold.training import telemetry as telemetry_module
from fivefold.training.settings import LoopSettings
from fivefold.training.telemetry import TIMING_KEYS, Telemetry, check_wandb, format_duration, read_log_lines

SETTINGS = LoopSettings(output_dir="run", num_training_steps=10)
REST = {"eval_tokens": 70, "eval_perplexity": 4.953, "eval_galore_perplexity": 4.75}


def run_steps(run_dir, first: int, last: int, *, start_step: int = 0, settings=SETTINGS) -> None:
    """Log steps first..last as a loop would, with an evaluation after every fifth."""
    with Telemetry(run_dir, 10, settings, start_step=start_step, tokens_seen=100 * start_step) as telemetry:
        for step in range(first, last + 1):
            telemetry.advance(step)
            telemetry.log_step(step, loss=9.0 / step, learning_rate=1e-3, grad_norm=0.5, tokens_seen=100 * step)
            if step % 5 == 0:
                telemetry.log_evaluation(step, eval_loss=8.0 / step, **REST)


def without_timings(run_dir) -> list[dict]:
    lines = read_log_lines(run_dir / "log.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in lines]


def scalars(run_dir, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(telemetry_module.time, "perf_counter", lambda: now.seconds)
    return now


def test_every_logged_step_is_one_line_of_json(tmp_path):
    run_steps(tmp_path, 1, 5)
    train, evaluation = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[-2:])
    expected = "step loss learning_rate grad_norm tokens_seen tokens_per_second seconds memory_bytes"
    assert list(train) == expected.split()
    assert train["loss"] == 9.0 / 5
    assert train["tokens_seen"] == 500
    assert train["memory_bytes"] > 2**20
    assert list(evaluation) == ["step", "eval_loss", *REST, "seconds"]
    assert {key: value for key, value in evaluation.items() if key != "seconds"} == {
        "step": 5,
        "eval_loss": 1.6,
        **REST,
    }


def test_shares_without_padding_are_logged_where_there_are_any(tmp_path):
    measured = {"loss": 1.0, "learning_rate": 1.0, "grad_norm": 1.0, "tokens_seen": 5}
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        telemetry.log_step(1, **measured, input_nonpadding_frac=0.5, target_nonpadding_frac=0.75)
        telemetry.log_step(2, **measured, input_nonpadding_frac=0.25)
    pair, decoder = read_log_lines(tmp_path / "log.jsonl")
    assert (pair["input_nonpadding_frac"], pair["target_nonpadding_frac"]) == (0.5, 0.75)
    assert decoder["input_nonpadding_frac"] == 0.25
    assert "target_nonpadding_frac" not in decoder


def test_tensorboard_holds_the_same_curves(tmp_path):
    run_steps(tmp_path, 1, 5)
    assert scalars(tmp_path, "train/loss") == [(step, pytest.approx(9.0 / step)) for step in range(1, 6)]
    assert scalars(tmp_path, "eval/loss") == [(5, pytest.approx(1.6))]
    assert scalars(tmp_path, "eval/perplexity") == [(5, pytest.approx(4.953))]
    assert scalars(tmp_path, "eval/galore_perplexity") == [(5, pytest.approx(4.75))]


def test_resumed_log_is_the_uninterrupted_one_but_for_timings(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_steps(whole, 1, 10)
    run_steps(killed, 1, 7)  # the checkpoint of step 5 is the last one
    with (killed / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "los')
    run_steps(killed, 6, 10, start_step=5)
    assert without_timings(killed) == without_timings(whole)
    assert scalars(killed, "train/loss") == scalars(whole, "train/loss")
    seconds = [line["seconds"] for line in read_log_lines(killed / "log.jsonl")]
    assert seconds == sorted(seconds)


def test_a_run_that_starts_anew_forgets_the_old_log(tmp_path):
    run_steps(tmp_path, 1, 7)
    run_steps(tmp_path, 1, 3)
    assert [line["step"] for line in read_log_lines(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3]


def test_speed_leaves_out_pauses_and_seconds_do_not(tmp_path, clock):
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        clock.seconds += 4
        with telemetry.paused("evaluating"):
            clock.seconds += 100
        clock.seconds += 1
        telemetry.log_step(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=500)
        clock.seconds += 2
        telemetry.log_step(2, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=700)
    first, second = read_log_lines(tmp_path / "log.jsonl")
    assert (first["tokens_per_second"], first["seconds"]) == (100.0, 105.0)
    assert (second["tokens_per_second"], second["seconds"]) == (100.0, 107.0)


def test_speed_and_seconds_go_on_after_a_resume(tmp_path, clock):
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        clock.seconds += 50
        telemetry.log_step(2, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=200)
    with Telemetry(tmp_path, 10, SETTINGS, start_step=3, tokens_seen=300) as telemetry:
        clock.seconds += 1
        telemetry.log_step(4, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=400)
    last = read_log_lines(tmp_path / "log.jsonl")[-1]
    assert (last["tokens_per_second"], last["seconds"]) == (100.0, 51.0)


def test_what_is_not_finite_is_null_so_that_the_log_stays_json(tmp_path):
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        telemetry.log_step(1, loss=2.0, learning_rate=1e-3, grad_norm=float("inf"), tokens_seen=1)
    assert read_log_lines(tmp_path / "log.jsonl")[0]["grad_norm"] is None


def test_all_processes_but_the_first_write_nothing(tmp_path):
    with Telemetry(tmp_path / "run", 10, SETTINGS, enabled=False) as telemetry:
        telemetry.advance(1)
        telemetry.log_step(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=1)
        telemetry.log_evaluation(1, eval_loss=1.0, **REST)
        with telemetry.paused("saving"):
            telemetry.say("nothing")
    assert not (tmp_path / "run").exists()


def test_no_terminal_gets_a_plain_line_a_logged_step(tmp_path, capsys, clock):
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        clock.seconds += 2
        telemetry.log_step(4, loss=2.5, learning_rate=1e-3, grad_norm=1.0, tokens_seen=4000)
    captured = capsys.readouterr()
    assert captured.err == "step 4/10  loss 2.5000  lr 1.00e-03  2,000 tokens/s  3 s left\n"
    assert captured.out == ""


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run_steps(tmp_path, 1, 5)
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "tokens/s" in shown
    assert "held-out loss 1.6000, perplexity 4.953 (4.75 as GaLore counts), 70 tokens" in shown


@pytest.mark.parametrize("content", ['{"step": 1}\nhello\n{"step": 2}\n', '[1]\n{"step": 2}\n', '{}\n{"step": 2}\n'])
def test_a_damaged_line_is_named(tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"log.jsonl, line \d is not a line of a training log"):
        read_log_lines(path)


def test_a_missing_log_and_a_last_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        read_log_lines(path)
    path.write_bytes('{"step": 1}\n{"step": 2, "name": "文'.encode()[:-1])
    assert read_log_lines(path) == [{"step": 1}]


def test_a_run_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Telemetry(tmp_path / "file" / "run", 10, SETTINGS)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    with Telemetry(tmp_path, 10, SETTINGS) as telemetry:
        telemetry._log.close()
        telemetry._log = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
        with pytest.raises(CheckpointError, match="No space left on device"):
            telemetry.log_step(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_seen=1)


class FakeWandb(types.ModuleType):
    """Records what would go over the network."""

    class Error(Exception):
        pass

    def __init__(self, refuses: bool = False) -> None:
        super().__init__("wandb")
        self.refuses, self.starts, self.logged = refuses, [], []

    def init(self, **arguments):
        if self.refuses:
            raise self.Error("no API key\nconfigured")
        self.starts.append(arguments)
        return types.SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


WITH_WANDB = LoopSettings(output_dir="run", num_training_steps=10, use_wandb=True)


def test_wandb_gets_the_same_numbers_and_a_resumed_run_the_same_id(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_steps(tmp_path, 1, 5, settings=WITH_WANDB)
    run_steps(tmp_path, 6, 10, start_step=5, settings=WITH_WANDB)
    run_steps(tmp_path, 1, 1, settings=WITH_WANDB)
    assert [step for step, values in fake.logged if "train/loss" in values] == [*range(1, 11), 1]
    first, resumed, anew = (start["id"] for start in fake.starts)
    assert first == resumed != anew


def test_wandb_that_is_missing_or_refuses_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(telemetry_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install fivefold\[wandb\]"):
        check_wandb(WITH_WANDB)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuses=True))
    with pytest.raises(ConfigError, match="wandb does not start: no API key configured"):
        Telemetry(tmp_path, 10, WITH_WANDB)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (97200, "1 d 03 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text
