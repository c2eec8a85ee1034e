import base64
import re
from html.parser import HTMLParser

import pytest

from fivefold.commands.report import ReportSettings, run
from fivefold.errors import ConfigError, DataError
from fivefold.report.page import summarise, write_report
from fivefold.report.run_log import read_log


class Page(HTMLParser):
    """Reads a page's tags, links and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], "", []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_itself(tmp_path, write_run):
    folder = write_run(tmp_path / "run", settings={"lr": 0.5, "nested": {"data": ["a", "文"]}, "resume": False})
    path = write_report([folder], folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    pictures = [base64.b64decode(link.partition(",")[2]) for link in page.links]
    assert pictures[0] == (folder / "loss.png").read_bytes()
    assert len(pictures) == 4
    for text in ("9.0000", "2.5000", "5,000", "nested.data", "a, 文", "false"):
        assert text in page.text


def test_names_and_settings_cannot_become_markup(tmp_path, write_run):
    folder = write_run(tmp_path / "<script>x", settings={"<b>": '"><script>alert(1)</script>'})
    page = Page(write_report([folder], folder).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.tags.count("b") == len(summarise(read_log(folder)))  # the cards' own
    assert "<script>alert(1)</script>" in page.text


def test_several_runs_stand_side_by_side_with_differences_marked(tmp_path, write_run):
    runs = [write_run(tmp_path / f"run{lr}", settings={"lr": lr, "seed": 0}) for lr in (1, 2)]
    content = write_report(runs, tmp_path / "both").read_text(encoding="utf-8")
    rows = re.findall(r'<tr( class="differs")?><th>(\w+)</th>', content)
    assert (' class="differs"', "lr") in rows
    assert ("", "seed") in rows
    assert "<th>run1</th><th>run2</th>" in content


def test_the_main_numbers(tmp_path, write_run):
    summary = summarise(read_log(write_run(tmp_path / "run")))
    assert summary == {
        "held-out loss, first": "9.0000",
        "held-out loss, last": "2.5000",
        "held-out loss, best": "2.5000",
        "held-out perplexity, best": "12.182",  # e^2.5
        "held-out perplexity as GaLore counts, best": "9.4877",  # e^2.25
        "steps": "50",
        "tokens seen": "5,000",
        "tokens/s, median": "1,026",
        "peak memory": "3 MiB",
        "time": "6 s",
    }


def test_perplexities_that_a_log_lacks_are_left_out(tmp_path, write_run):
    """Logs of version 0.1.0, and losses whose exponential is no number."""
    run = read_log(write_run(tmp_path / "run"))
    for line in run.evaluations:
        line["eval_perplexity"] = None
        del line["eval_galore_perplexity"]
    summary = summarise(run)
    assert summary["held-out loss, best"] == "2.5000"
    assert not any("perplexity" in label for label in summary)


def test_the_verb_writes_into_the_run_and_prints_its_numbers(tmp_path, write_run, capsys):
    folder = write_run(tmp_path / "run")
    run(ReportSettings(runs=[str(folder)]), dry_run=True)
    assert not (folder / "report.html").exists()
    assert "would write" in capsys.readouterr().out
    run(ReportSettings(runs=[str(folder)]), dry_run=False)
    printed = capsys.readouterr().out
    assert f"wrote {folder / 'report.html'}" in printed
    assert "held-out loss, best 2.5000" in printed


def test_what_cannot_be_reported_is_one_sentence(tmp_path, write_run):
    with pytest.raises(ConfigError, match="needs at least one"):
        ReportSettings(runs=[])
    with pytest.raises(ConfigError, match="--output_dir FOLDER"):
        ReportSettings(runs=["a", "b"])
    with pytest.raises(DataError, match="nowhere does not exist"):
        run(ReportSettings(runs=[str(tmp_path / "nowhere")]), dry_run=False)
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        run(ReportSettings(runs=[str(folder)], output_dir=str(tmp_path / "file")), dry_run=False)
