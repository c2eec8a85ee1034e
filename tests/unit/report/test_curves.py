import struct

import pytest

from fivefold.errors import DataError
from fivefold.report import curves
from fivefold.report.curves import draw_curves, smooth
from fivefold.report.run_log import read_log


def png_size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def test_read_log_splits_training_from_evaluation(tmp_path, write_run):
    run = read_log(write_run(tmp_path / "tiny"))
    assert run.name == "tiny"
    assert len(run.train) == 50
    assert [line["eval_loss"] for line in run.evaluations] == [9.0, 2.5]
    assert run.settings == {"lr": 1e-3}
    assert run.hardware == {}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("log.jsonl", None, "does not exist"),
        ("log.jsonl", "", "is empty: the run was stopped"),
        ("log.jsonl", '{"step": 1, "lo', "is empty: the run was stopped"),
        ("run.yaml", "a: [1", "run.yaml cannot be read"),
        ("run.yaml", "- 1", "no table of settings, but list"),
    ],
)
def test_a_run_without_a_usable_log_is_one_sentence(tmp_path, write_run, file, content, message):
    folder = write_run(tmp_path / "run")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_log(folder)


def test_every_curve_becomes_a_picture(tmp_path, write_run):
    names = ["plain", "_hidden $ name", "中文"]
    runs = [read_log(write_run(tmp_path / name)) for name in names]
    pictures = draw_curves(runs, tmp_path / "report")
    assert [picture.path.name for picture in pictures] == [
        "loss.png", "learning_rate.png", "grad_norm.png", "tokens_per_second.png",
    ]  # fmt: skip
    assert all(min(png_size(picture.path)) > 300 for picture in pictures)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {picture.path.name for picture in pictures}


@pytest.mark.parametrize("run", [{"steps": 0}, {"steps": 1, "evaluations": False}, {"steps": 1}])
def test_the_shortest_runs_can_be_drawn(tmp_path, write_run, run):
    pictures = draw_curves([read_log(write_run(tmp_path / "run", **run))], tmp_path)
    assert pictures[0].path.name == "loss.png"
    assert len(pictures) == (1 if run["steps"] == 0 else 4)


def test_numbers_that_nobody_foresaw_are_drawn_too(tmp_path, write_run):
    run = read_log(write_run(tmp_path / "run"))
    for line in run.train:
        line |= {"rewards_chosen": 0.1, "rewards_rejected": -0.1, "novel": 3, "note": "text", "flag": True}
    run.evaluations[0]["eval_other"] = 1.0
    names = [picture.path.name for picture in draw_curves([run], tmp_path)]
    assert names == ["loss.png", "rewards.png", "learning_rate.png", "grad_norm.png", "tokens_per_second.png", "novel.png", "other.png"]  # fmt: skip  # noqa: E501


def test_side_by_side_only_stages_with_numbers_have_a_frame(tmp_path, write_run):
    runs = [read_log(write_run(tmp_path / name)) for name in ("first", "second", "third")]
    for line in runs[2].train:
        line["reward_margin"] = 0.5
    together = {p.path.name: (png_size(p.path), p.is_wide) for p in draw_curves(runs, tmp_path / "a")}
    apart = {p.path.name: (png_size(p.path), p.is_wide) for p in draw_curves(runs, tmp_path / "b", side_by_side=True)}
    assert together.keys() == apart.keys()
    assert apart["loss.png"][0][0] > together["loss.png"][0][0]
    assert apart["learning_rate.png"] == ((3 * together["learning_rate.png"][0][0], 405), True)
    assert apart["reward_margin.png"] == together["reward_margin.png"]  # one frame


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (0.01, "log")])
def test_losses_far_apart_go_on_a_logarithmic_axis(tmp_path, write_run, monkeypatch, factor, scale):
    figures = []
    monkeypatch.setattr(curves, "_save", lambda figure, path: figures.append(figure) or path)
    run = read_log(write_run(tmp_path / "run", steps=3))
    for line in run.train + run.evaluations[1:]:
        line["loss" if "loss" in line else "eval_loss"] *= factor
    draw_curves([run], tmp_path)
    (axes,) = figures[0].axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(2.5 * factor, run.train[-1]["loss"])
    assert high > 9.0
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_smoothing_keeps_straight_lines_and_averages_noise():
    line = [100.0 - index for index in range(200)]
    assert smooth(line)[:190] == pytest.approx(line[:190])
    zigzag = smooth([index % 2 for index in range(401)])
    assert all(abs(value - 0.5) < 0.05 for value in zigzag[10:])
    assert smooth([3.0]) == [3.0]
    assert smooth([]) == []
