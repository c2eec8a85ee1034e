"""The rules of the house that a machine can check."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from fivefold.cli import VERBS, main, module_of, split_verb
from fivefold.flags import parse
from fivefold.spellings import ALIASES, THEIRS
from fivefold.training.step_cost import StepCost

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fivefold"
SOURCES = sorted(PACKAGE.rglob("*.py"))
READMES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
COMING_FROM = sorted((ROOT / "docs" / "coming_from").glob("*.md"))


def _verb(name):
    return importlib.import_module(module_of(name))


def _groups(verb):
    return [hint for hint in typing.get_type_hints(_verb(verb).run).values() if dataclasses.is_dataclass(hint)]


def test_the_program_names_every_verb_and_no_other():
    commands = PACKAGE / "commands"
    files = {path.stem for path in commands.glob("*.py")} | {f"eval {path.stem}" for path in commands.glob("eval/*.py")}
    assert set(VERBS) == files - {"__init__", "eval __init__"}
    for name, summary in VERBS.items():
        assert summary
        assert (_verb(name).__doc__ or "").splitlines()[0].endswith("."), f"{name} has no first line for its --help"


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_documented_and_belongs_to_one_group(verb):
    names = [field.name for group in _groups(verb) for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    help_text = parse(verb, _verb(verb).run, ["--help"]).help_text
    for group in _groups(verb):
        source = Path(importlib.import_module(group.__module__).__file__)
        tree = ast.parse(source.read_text(encoding="utf-8"))
        bodies = {node.name: node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for field in dataclasses.fields(group):
            # A group may change defaults of another one in the same file, and says then what it has of its own.
            home = next(kind for kind in group.__mro__ if field.name in inspect.get_annotations(kind))
            body = bodies[home.__name__]
            (place,) = [
                i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign) and node.target.id == field.name
            ]
            documentation = body[place + 1]
            assert isinstance(documentation, ast.Expr), f"{group.__name__}.{field.name} has no documentation"
            assert f"--{field.name}" in help_text


def test_aliases_lead_to_flags():
    names = {field.name for verb in VERBS for group in _groups(verb) for field in dataclasses.fields(group)}
    assert {target for target in ALIASES.values() if target != "epochs"} <= names


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_the_names_that_other_projects_use(verb):
    names = {field.name for group in _groups(verb) for field in dataclasses.fields(group)}
    help_text = parse(verb, _verb(verb).run, ["--help"]).help_text
    expected = {alias for alias, name in ALIASES.items() if name in names and alias not in names}
    assert {alias for alias in expected if not re.search(rf"--{alias}\b", help_text)} == set()


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_can_be_read(recipe):
    verb = recipe.parent.name
    invocation = parse(verb, _verb(verb).run, ["--recipe", str(recipe)])
    given = {name: value for group in invocation.settings.values() for name, value in dataclasses.asdict(group).items()}
    for name, value in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        assert str(given[name]) == str(value) or float(given[name]) == float(value)


# Those of dpo need a trained model: tests/end_to_end/test_dpo.py gives them one.
@pytest.mark.parametrize(
    "recipe",
    sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "dpo"),
    ids=lambda path: path.stem,
)
def test_recipes_resolve_without_a_network(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([recipe.parent.name, "--recipe", str(recipe), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "kept for the backward pass" in printed
    assert "unchecked " in printed  # data from the Hub, or of an earlier step of the demo
    assert list(tmp_path.iterdir()) == []


def test_the_tree_in_the_readmes_is_the_tree():
    for readme in READMES:
        (tree,) = re.findall(r"```\n(src/fivefold/\n.*?)```", readme, flags=re.DOTALL)
        inside = re.findall(r"^  (\S+)", tree, flags=re.MULTILINE)
        assert all((PACKAGE / name).exists() for name in inside)
        folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert folders == {name for name in inside if name.endswith("/")}
        assert all((ROOT / name).exists() for name in re.findall(r"^(\S+/)", tree, flags=re.MULTILINE))


@pytest.mark.parametrize("page", COMING_FROM, ids=lambda path: path.stem)
def test_what_newcomers_are_told_to_type_is_understood(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    # Which takes seconds a line, and is looked at elsewhere.
    monkeypatch.setattr("fivefold.commands.stages.stage.step_cost", lambda *_, **__: StepCost(0, 0, 0, 0))
    text = page.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    assert lines
    made: list[str] = []
    for line in lines:
        words = shlex.split(line.partition("fivefold ")[2])
        if any(word == path or word.startswith(f"{path}/") for word in words for path in made):
            module = _verb(words[0])  # goes on with what a line before made, and nothing is there
            parse(words[0], module.run, words[1:], getattr(module, "POSITIONAL", None))
        else:
            assert main([*words, "--dry_run"]) == 0, line
        made += [after for word, after in itertools.pairwise(words) if word in ("--output_dir", "--output_file")]
    capsys.readouterr()
    known = {field.name for verb in VERBS for group in _groups(verb) for field in dataclasses.fields(group)}
    known |= {*ALIASES, *THEIRS, "dry_run", "recipe", "nproc_per_node"}
    (absent,) = re.findall(r"^Not here: .*?^$", text, flags=re.DOTALL | re.MULTILINE)
    assert set(_flags(text.replace(absent, ""))) <= known
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "methods").glob("*.md")), ids=lambda path: path.stem)
def test_commands_of_the_pages_on_methods_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where their recipes are
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if words := shlex.split(line.partition("fivefold ")[2]):
            verb, rest = split_verb(words)
            parse(verb, _verb(verb).run, rest, getattr(_verb(verb), "POSITIONAL", None))


def _flags(text):
    return re.findall(r"--([a-z]\w+)", text)


def test_both_readmes_show_the_same_code():
    english, chinese = (re.findall(r"```.*?```", readme, flags=re.DOTALL) for readme in READMES)
    assert english == chinese


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source_files_are_short_and_ascii(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(text.splitlines()) <= 450


def test_commands_do_not_import_what_takes_long():
    heavy = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "matplotlib"}
    program = (
        "import importlib, sys\nfrom fivefold.cli import VERBS, module_of\n"
        "for verb in VERBS: importlib.import_module(module_of(verb))\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_names_a_machine_or_a_registry():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = re.compile(
        r"/(work|farm|root|home/\w+|tmp/\w+)/|(py[p]i|npm[j]s|python[h]osted|[d]ebian)\.(org|com|net)"
    )
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if path.suffix in (".png",) or not path.is_file():
            continue
        assert not forbidden.search(path.read_text(encoding="utf-8")), name


SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_scripts_import_is_there(script):
    """Many of them are run by hand, long after a name has moved."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fivefold"):
            exec(compile(ast.Module([node], []), script.name, "exec"), {})
