"""The rules of flags and recipes, each as a user would meet it."""

import json
import logging
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from fivefold.errors import ConfigError
from fivefold.flags import as_recipe, parse


@dataclass
class Reading:
    """What to read."""

    data: list[str]
    """Files."""
    fields: list[str] = field(default_factory=list)
    """Names."""


@dataclass
class Learning:
    """How to learn."""

    lr: float = 1e-3
    """Rate."""
    num_training_steps: int = 10
    """Steps."""
    shape: Literal["round", "flat"] = "round"
    """Shape."""
    resume: bool = False
    """Go on."""
    note: str | None = None
    """Text."""


@dataclass
class Turning:
    """What is for round shapes only."""

    radius: float = field(default=1.0, metadata={"shape": ("round",)})
    """Size."""
    is_open: bool = field(default=False, metadata={"shape": ("round",)})
    """Whether a piece is missing."""


def run(reading: Reading, learning: Learning, *, dry_run: bool) -> None:
    """Do nothing."""


def run_turning(learning: Learning, turning: Turning, *, dry_run: bool) -> None:
    """Do nothing."""


def read(*words):
    invocation = parse("verb", run, list(words))
    return invocation.settings["reading"], invocation.settings["learning"]


def test_values_reach_their_dataclass():
    reading, learning = read("--data", "a.txt", "b c.txt", "--lr", "5e-4", "--shape=flat", "--note", "12")
    assert reading == Reading(["a.txt", "b c.txt"])
    assert learning == Learning(lr=5e-4, shape="flat", note="12")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume"], True),
        (["--resume", "true"], True),
        (["--resume", "false"], False),
        (["--no_resume"], False),
        (["--no-resume"], False),
        (["--resume=False"], False),
        ([], False),
    ],
)
def test_booleans(words, expected):
    assert read("--data", "a", *words)[1].resume is expected


def test_hyphens_and_the_names_of_other_projects():
    _, learning = read("--data", "a", "--learning-rate", "0.5", "--max_steps", "3")
    assert (learning.lr, learning.num_training_steps) == (0.5, 3)


def test_negative_numbers_and_equals_signs_are_values():
    reading, learning = read("--data=a=b", "--num_training_steps", "-3", "--note", "x=y")
    assert (reading.data, learning.num_training_steps, learning.note) == (["a=b"], -3, "x=y")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("flag_first", [True, False])
def test_an_explicit_flag_wins_over_the_recipe_wherever_it_stands(tmp_path, suffix, flag_first):
    recipe = tmp_path / f"run.{suffix}"
    values = {"data": ["x"], "learning_rate": 5e-4, "num-training-steps": 7, "resume": True}
    recipe.write_text(json.dumps(values) if suffix == "json" else yaml.safe_dump(values))
    flag, file = ["--lr", "0.25"], ["--recipe", str(recipe)]
    reading, learning = read(*(flag + file if flag_first else file + flag))
    assert reading.data == ["x"]
    assert learning == Learning(lr=0.25, num_training_steps=7, resume=True)


@pytest.mark.parametrize(
    ("words", "radius", "said"),
    [
        ("", 2.5, ""),
        ("--shape round", 2.5, ""),
        ("--shape flat", 1.0, "--shape flat leaves out what --recipe says of radius."),
        ("--shape flat --radius 3", 3.0, ""),  # as typed; whether it has a use is for others to say
        ("--shape flat --note x", 1.0, "--shape flat leaves out what --recipe says of radius."),
    ],
)
def test_a_typed_choice_leaves_out_what_the_recipe_says_for_its_own(words, radius, said, tmp_path, caplog):
    # is_open is as it would be without the recipe, so nothing is lost with it.
    (tmp_path / "r.yaml").write_text("shape: round\nradius: 2.5\nis_open: false\nlr: 2\n")
    with caplog.at_level(logging.INFO, "fivefold"):
        invocation = parse("verb", run_turning, ["--recipe", str(tmp_path / "r.yaml"), *words.split()])
    assert invocation.settings["turning"] == Turning(radius)
    assert invocation.settings["learning"].lr == 2
    assert caplog.messages == ([said] if said else [])


def test_a_typed_choice_that_is_refused_says_nothing_else(tmp_path, caplog):
    (tmp_path / "r.yaml").write_text("radius: 2.5")
    with caplog.at_level(logging.INFO, "fivefold"), pytest.raises(ConfigError, match="it takes one of round, flat"):
        parse("verb", run_turning, ["--recipe", str(tmp_path / "r.yaml"), "--shape", "square"])
    assert not caplog.messages


def test_numbers_like_5e_4_in_a_yaml_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("data: [x]\nlr: 5e-4\n")
    assert read("--recipe", str(tmp_path / "r.yaml"))[1].lr == 5e-4


def test_print_config_gives_a_recipe_that_reproduces_the_run(tmp_path):
    words = ["--data", "第一", "b", "--lr", "1e-5", "--resume", "--shape", "flat"]
    invocation = parse("verb", run, [*words, "--print_config"])
    assert invocation.print_config
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(as_recipe(invocation.settings.values())))
    assert parse("verb", run, ["--recipe", str(tmp_path / "r.yaml")]).settings == invocation.settings


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num_trainin_steps", "3"], "did you mean --num_training_steps?"),
        (["--dat", "x"], "did you mean --data?"),  # an abbreviation is not accepted, only named
        (["--zzzz"], "see --help"),
        (["--lr", "fast"], "--lr got 'fast'; it takes a number."),
        (["--num_training_steps", "1.5"], "--num_training_steps got '1.5'; it takes a whole number."),
        (["--shape", "square"], "--shape got 'square'; it takes one of round, flat."),
        (["--resume", "maybe"], "it takes true or false"),
        (["--lr"], "--lr got no value"),
        (["--lr", "1", "2"], "it takes one"),
        (["--lr", "1", "--learning_rate", "2"], "--lr and --learning_rate mean the same"),
        (["word"], "Got 'word' where a flag was expected"),
        (["--attn_2by4"], "--attn_2by4 is refused: 2:4 sparsity"),
        (["--recipe", "missing.yaml"], "there is no such file"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence):
    with pytest.raises(ConfigError) as caught:
        parse("verb", run, [*words, "--data", "x"] if words[0] != "--dat" else words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_value_under_two_names_is_no_mistake():
    assert read("--data", "a", "--lr", "0.5", "--learning_rate", "0.5")[1].lr == 0.5


def test_a_required_flag_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="Missing --data"):
        read("--lr", "1")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("lrr: 1", "did you mean --lr?"),
        ("lr: 1\nlearning_rate: 2", "gives 'lr' twice"),
        ("- 1", "holds a list"),
        ("a: [", "not valid YAML"),
        ("lr: fast", "--lr got 'fast'"),
        ("dry_run: true", "only works as a flag"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path, content, sentence):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read("--data", "x", "--recipe", str(tmp_path / "r.yaml"))
    assert sentence in str(caught.value)


def test_words_before_the_first_flag_go_to_the_positional_field():
    invocation = parse("verb", run, ["a", "b", "--lr", "2"], positional="data")
    assert invocation.settings["reading"].data == ["a", "b"]


def test_a_json_file_alone_is_a_recipe(tmp_path):
    (tmp_path / "r.json").write_text('{"data": "x.json", "note": "n"}')  # one name is a list of one
    reading, learning = read(str(tmp_path / "r.json"), "--lr", "2")
    assert (reading.data, learning.note, learning.lr) == (["x.json"], "n", 2)


def test_help_shows_every_flag_with_its_documentation():
    text = parse("verb", run, ["--help"]).help_text
    assert all(word in text for word in ("--data", "--num_training_steps", "Rate.", "--recipe", "--dry_run"))
    assert "Rate. Also written --learning_rate." in text
