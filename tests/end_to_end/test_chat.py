"""`fivefold chat` by pipe and by terminal, and `fivefold rejected`, on every kind of model."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from chat_models import KINDS, small_tokenizer, write_model

from fivefold.cli import main
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.preferences import read_preferences


@pytest.fixture(scope="module")
def tokenizer_of():
    return small_tokenizer()


@pytest.fixture(scope="module")
def t5(tmp_path_factory, tokenizer_of):
    return str(write_model("t5", tmp_path_factory.mktemp("t5"), tokenizer_of))


@pytest.mark.parametrize("kind", KINDS)
def test_lines_from_a_pipe(kind, tmp_path, tokenizer_of, monkeypatch, capsys):
    import io

    model = str(write_model(kind, tmp_path, tokenizer_of))
    outputs = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("abc\n你好\n/reset\nabc\n/exit\nno\n"))
        assert main(["chat", "--model", model, "--seed", "5", "--max_new_tokens", "6"]) == 0
        captured = capsys.readouterr()
        assert "parameters" in captured.err
        outputs.append(captured.out)
    assert outputs[0] == outputs[1]
    answers = outputs[0].splitlines()
    assert answers[0] == answers[-1]  # the same question at the same place


class Terminal:
    """What somebody at a terminal sees and types."""

    def __init__(self, command):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Tests in the background of a shell ignore Ctrl-C, and hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        os.close(slave)
        self._seen = b""

    def wait_for(self, mark):
        """Read on until something has appeared."""
        end = time.monotonic() + 300
        while mark not in self._seen:
            assert time.monotonic() < end, self._seen
            if select.select([self.master], [], [], 1)[0]:
                self._seen += os.read(self.master, 4096)
        before, _, self._seen = self._seen.partition(mark)
        return before.decode(errors="replace")

    def wait_for_prompt(self):
        """And a second more: what comes while the prompt is being drawn is lost, in every program with readline."""
        self.wait_for(b"> ")
        time.sleep(1)

    def type(self, text):
        """Press keys."""
        os.write(self.master, text.encode())

    def interrupt(self):
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


def test_in_a_terminal_an_interrupt_stops_the_answer_and_not_the_program(t5):
    flags = ["--model", t5, "--max_new_tokens", "1000000", "--repetition_penalty", "1.5"]
    terminal = Terminal([sys.executable, "-m", "fivefold", "chat", *flags])
    try:
        terminal.wait_for_prompt()
        terminal.interrupt()  # at the prompt: nothing but a fresh line
        terminal.wait_for_prompt()
        terminal.type("你好\n")
        terminal.wait_for("你好".encode())  # the line itself
        terminal.wait_for(b" ")  # the answer has begun, and has no end
        terminal.interrupt()
        terminal.wait_for(b"(stopped)")
        terminal.wait_for_prompt()
        terminal.type("/params max_new_tokens=2\n")
        assert "max_new_tokens=2" in terminal.wait_for(b"seed=0")
        terminal.wait_for_prompt()
        terminal.type("\x04")  # Ctrl-D
        assert terminal.process.wait(300) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


ROWS = [
    {"instruction": "abc", "output": "something"},
    {"instruction": "de", "input": "fgh", "output": "else"},
    {"instruction": "你好", "output": "jihg", "history": [["a", "b"]]},
]


def test_rejected_answers_are_what_dpo_reads(t5, tmp_path, capsys):
    data, output = tmp_path / "data.jsonl", tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    command = ["rejected", "--model", t5, "--data", str(data), "--output_file", str(output), "--max_new_tokens", "5"]
    assert main([*command, "--dry_run"]) == 0
    assert "would write" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [data]
    assert main(command) == 0
    assert "3 prompts: 0 had a rejected answer, 3 got one" in capsys.readouterr().out
    pairs = list(read_preferences(CorpusSettings(data=[str(output)])))
    assert [pair.chosen for pair in pairs] == ["something", "else", "jihg"]
    assert [message["content"] for message in pairs[2].prompt] == ["a", "b", "你好"]
    assert set(tmp_path.iterdir()) == {data, output}
    written = output.read_bytes()
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    # All rejected answers are there now: nothing to do for a second pass over them.
    again = ["rejected", "--model", t5, "--data", str(output), "--output_file", str(tmp_path / "again.jsonl")]
    assert main(again) == 2
    assert "have a rejected answer" in capsys.readouterr().err
    output.unlink()
    assert main([*command, "--batch_size", "1"]) == 0
    assert output.read_bytes() == written


def test_an_interrupted_run_goes_on(t5, tmp_path, monkeypatch, capsys):
    from fivefold.models.answers import Answerer

    data, output = tmp_path / "data.jsonl", tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    command = ["rejected", "--model", t5, "--data", str(data), "--output_file", str(output), "--batch_size", "1"]
    command += ["--max_new_tokens", "5"]
    assert main([*command, "--resume"]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(command) == 0
    expected = output.read_bytes()
    output.unlink()
    write = Answerer.write

    def interrupted(self, prompts, decoding, numbers, draw):
        if numbers == [0]:
            raise KeyboardInterrupt
        return write(self, prompts, decoding, numbers, draw)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "write", interrupted)
        capsys.readouterr()
        assert main(command) == 130
        assert "--resume goes on" in capsys.readouterr().err
    assert main(command) == 2
    assert "interrupted run" in capsys.readouterr().err
    assert main([*command, "--resume", "--top_p", "0.5"]) == 2
    assert "was begun with top_p 0.95, which is 0.5 now" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert output.read_bytes() == expected
    assert set(tmp_path.iterdir()) == {data, output}


REJECTED = ["rejected", "--model", "T5", "--data", "x.jsonl", "--output_file"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--model", "T5", "--num_beams", "3"], "--num_beams must be 1 here"),
        (["chat", "--model", "T5", "--system", " "], "--system is blank"),
        (["chat", "--model", "T5", "--input_length", "0"], "must be at least 1"),
        (["chat", "--model", "ADAPTER"], "names no base model"),
        (["chat", "--model", "LOST"], "names its own folder"),
        ([*REJECTED, "no/where.jsonl"], "does not exist"),
        ([*REJECTED, "y", "--max_similarity", "2"], "from 0 to 1"),
        ([*REJECTED, "y", "--no_do_sample", "--num_candidates", "2"], "--num_candidates changes nothing"),
        ([*REJECTED, "y", "--num_beams", "2"], "add --no_do_sample"),
        ([*REJECTED, "y", "--text_field", "question"], "--text_field would change nothing with conversations"),
        ([*REJECTED, "y", "--max_new_tokens", "7"], "No pair is left"),  # see below
    ],
)
def test_what_cannot_be_is_one_sentence(words, message, t5, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"instruction": "abc", "output": "d"}\n')
    for name, content in (("adapter", {"base_model_name_or_path": ""}), ("lost", {"base_model_name_or_path": "lost"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(content))
    if "7" in words:
        monkeypatch.setattr("fivefold.models.answers.Answerer.write", lambda self, prompts, *_: ["d"] * len(prompts))
    names = {"T5": t5, "ADAPTER": "adapter", "LOST": "lost"}
    before = set(tmp_path.iterdir())
    assert main([names.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert set(tmp_path.iterdir()) == before
