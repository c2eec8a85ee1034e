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


def read_until(master, mark, seconds=120):
    text, end = b"", time.monotonic() + seconds
    while mark not in text:
        assert time.monotonic() < end, text
        if select.select([master], [], [], 1)[0]:
            text += os.read(master, 4096)
    return text.decode()


def test_in_a_terminal_an_interrupt_stops_the_answer_and_not_the_program(t5):
    master, slave = pty.openpty()
    flags = ["--model", t5, "--max_new_tokens", "1000000", "--repetition_penalty", "1.5"]
    command = [sys.executable, "-m", "fivefold", "chat", *flags]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        read_until(master, b"> ")
        process.send_signal(signal.SIGINT)  # at the prompt: nothing but a fresh line
        read_until(master, b"> ")
        os.write(master, "你好\n".encode())
        read_until(master, b"\n")
        assert read_until(master, b" ").strip() or True
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert "\ufffd" not in read_until(master, b"(stopped)")
        read_until(master, b"> ")
        os.write(master, b"/params max_new_tokens=2\n")
        assert "max_new_tokens=2" in read_until(master, b"seed=0")
        read_until(master, b"> ")
        os.write(master, b"\x04")  # Ctrl-D
        assert process.wait(60) == 0
    os.close(master)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--model", "T5", "--num_beams", "3"], "--num_beams must be 1 here"),
        (["chat", "--model", "T5", "--system", " "], "--system is blank"),
        (["chat", "--model", "T5", "--input_length", "0"], "must be at least 1"),
        (["chat", "--model", "ADAPTER"], "names no base model"),
        (["chat", "--model", "LOST"], "holds no"),
        (["rejected", "--model", "T5", "--data", "x.jsonl", "--output_file", "no/where.jsonl"], "does not exist"),
        (["rejected", "--model", "T5", "--data", "x.jsonl", "--output_file", "y", "--max_similarity", "2"], "from 0 to 1"),
        (
            ["rejected", "--model", "T5", "--data", "x.jsonl", "--output_file", "y", "--no_do_sample", "--num_candidates", "2"],
            "--num_candidates changes nothing",
        ),
        (["rejected", "--model", "T5", "--data", "x.jsonl", "--output_file", "y", "--num_beams", "2"], "add --no_do_sample"),
        (["rejected", "--model", "T5", "--data", "same.jsonl", "--output_file", "y"], "No pair is left"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(words, message, t5, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"instruction": "abc", "output": "d"}\n')
    (tmp_path / "same.jsonl").write_text('{"instruction": "abc", "output": "d"}\n')
    for name, content in (("adapter", {"base_model_name_or_path": ""}), ("lost", {"base_model_name_or_path": "lost"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(content))
    if "same.jsonl" in words:
        monkeypatch.setattr("fivefold.models.answers.Answerer.write", lambda self, prompts, *_: ["d"] * len(prompts))
    names = {"T5": t5, "ADAPTER": "adapter", "LOST": "lost"}
    before = set(tmp_path.iterdir())
    assert main([names.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert set(tmp_path.iterdir()) == before
