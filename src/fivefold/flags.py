"""Flags and recipes to settings: a verb's `run` names its settings dataclasses, their fields are its flags.

Rules (README, "Flags and recipes"): snake_case, hyphens accepted; `--flag`, `--flag true|false`, `--no_flag`; lists as
`--data a b c`; no abbreviations; an explicit flag wins over the recipe wherever it stands; nothing is ignored silently.
"""

import dataclasses
import difflib
import inspect
import itertools
import json
import logging
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from fivefold.choices import counts
from fivefold.errors import ConfigError
from fivefold.spellings import ALIASES, REFUSED_VALUES, THEIRS, meaning_of

log = logging.getLogger("fivefold")

_OWN_FLAGS = ("recipe", "dry_run", "print_config", "help")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclasses.dataclass
class Invocation:
    """A parsed command line: the settings for `run`, in its order, and what to do with them."""

    settings: dict[str, Any]
    dry_run: bool
    print_config: bool
    help_text: str | None


def parse(verb: str, run: Callable[..., None], argv: list[str], positional: str | None = None) -> Invocation:
    """Read a verb's command line.

    Args:
        verb: its name, for messages.
        run: its function; every parameter but `dry_run` is annotated with a settings dataclass.
        argv: the words after the verb.
        positional: the list field that words before the first flag go to.

    Raises:
        ConfigError: unknown, doubled, missing or ill-typed flags and recipe keys, each with what to do.
    """
    groups = _groups(run)
    # A switch that is unset by default is written like any other switch.
    hints = {field.name: hint for group in groups.values() for field, hint in _fields(group)}
    types = {name: bool if hint == bool | None else hint for name, hint in hints.items()}
    parser = _build_parser(verb, run, groups)
    own, given = _read_words(argv, types, positional)
    if "help" in own:
        return Invocation({}, False, False, parser.format_help())
    unused: dict[str, list[str]] = {}
    if "recipe" in own:
        recipe = _read_recipe(own["recipe"], types)
        unused = _unused(recipe, given, groups.values())
        dropped = set(itertools.chain(*unused.values()))
        given = {name: value for name, value in recipe.items() if name not in dropped} | given
    try:
        flat = parser.parse_args([f"--{name}={value}" for name, value in given.items()]).as_dict()
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), types, given)) from None
    for choice, names in unused.items():
        log.info("--%s %s leaves out what --recipe says of %s.", choice, given[choice], ", ".join(names))
    settings = {
        parameter: group(**{field.name: flat[field.name] for field, _ in _fields(group)})
        for parameter, group in groups.items()
    }
    return Invocation(settings, own.get("dry_run") == "true", own.get("print_config") == "true", None)


def as_recipe(settings: Iterable[Any]) -> dict[str, Any]:
    """Settings dataclasses as one flat mapping that `--recipe` reads back."""
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()}


def changed_settings(settings: Iterable[Any]) -> dict[str, Any]:
    """Those of a flat mapping that are not as their dataclass has them where nobody says anything."""
    changed = {}
    for group in settings:
        for field in dataclasses.fields(group):
            if (value := getattr(group, field.name)) != _default(field):
                changed[field.name] = value
    return changed


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _groups(run: Callable[..., None]) -> dict[str, type]:
    hints = typing.get_type_hints(run)
    return {name: hints[name] for name in inspect.signature(run).parameters if name != "dry_run"}


def _fields(group: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(group)
    return [(field, hints[field.name]) for field in dataclasses.fields(group)]


def _build_parser(verb: str, run: Callable[..., None], groups: Mapping[str, type]) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"fivefold {verb}",
        description=(inspect.getmodule(run).__doc__ or "").strip(),  # type: ignore[union-attr]
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="YAML or JSON file of flags; explicit flags win over it.")
    parser.add_argument("--dry_run", action="store_true", help="Resolve and check everything, do nothing.")
    parser.add_argument("--print_config", action="store_true", help="Print a recipe that reproduces this command.")
    for group in groups.values():
        parser.add_class_arguments(group, None)
    names = {action.dest for action in parser._actions}
    for action in parser._actions:
        if aliases := [f"--{alias}" for alias, name in ALIASES.items() if name == action.dest and alias not in names]:
            action.help = f"{action.help} Also written {', '.join(aliases)}."
    return parser


@dataclasses.dataclass
class _Given:
    """What was said, each setting once, as the string that the parser reads."""

    types: Mapping[str, Any]
    recipe: str | None = None
    """The file that says it, if it is not the command line."""
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    implied: dict[str, str] = dataclasses.field(default_factory=dict)
    """What these bring along where nobody says anything else."""
    spelling: dict[str, str] = dataclasses.field(default_factory=dict)
    """How each setting was written."""

    @property
    def all(self) -> dict[str, str]:
        """What was said, and what that brings along."""
        return self.implied | self.values

    def put(self, name: str, text: str, written: str) -> None:
        """Note a setting; ConfigError if it has another value already."""
        if (before := self.values.get(name, text)) != text:
            earlier = self.spelling[name]
            what = f"--{written} was" if earlier == written else f"--{earlier} and --{written} mean the same and were"
            if self.recipe is not None:
                raise ConfigError(f"--recipe {self.recipe!r} gives {name!r} twice, as {before!r} and {text!r}.")
            raise ConfigError(f"{what} given as {before!r} and {text!r}; give one of them.")
        self.values[name], self.spelling[name] = text, written

    def put_theirs(self, name: str, value: str, written: str) -> None:
        """Note what a flag of another project asks for; ConfigError if that is not here."""
        meaning = meaning_of(name, value)
        if not {*meaning.settings, *meaning.implied} <= set(self.types):
            raise ConfigError(f"--{written} has no use here; leave it out.")
        if meaning.note:
            where = f"{written} in --recipe" if self.recipe is not None else f"--{written}"
            log.info("%s changes nothing: %s.", where, meaning.note)
        for setting, text in meaning.settings.items():
            self.put(setting, text, written)
        self.implied |= meaning.implied


def _read_words(
    argv: list[str], types: Mapping[str, Any], positional: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Split the command line into our own flags and the verb's, each as one string that the parser reads."""
    own, given = _Given(types), _Given(types)
    index = 0
    if argv and not argv[0].startswith("-") and (positional or argv[0].endswith((".json", ".yaml"))):
        argv = [f"--{positional or 'recipe'}", *argv]
    while index < len(argv):
        word = argv[index]
        index += 1
        if word in ("-h", "--help"):
            own.values["help"] = "true"
            continue
        if not word.startswith("--"):
            raise ConfigError(f"Got {word!r} where a flag was expected; flags start with --, see --help.")
        written, has_value, value = word[2:].partition("=")
        name, negated = _canonical(written, types)
        values = [value] if has_value else []
        while not has_value and index < len(argv) and not argv[index].startswith("--"):
            values.append(argv[index])
            index += 1
        if name not in types and name not in _OWN_FLAGS:
            given.put_theirs(name, " ".join(values) or "true", written)
            continue
        text = _flag_value(written, name, negated, values, bool if name in _OWN_FLAGS[1:] else types.get(name, str))
        (own if name in _OWN_FLAGS else given).put(name, text, written)
    return own.values, given.all


def _canonical(written: str, types: Mapping[str, Any]) -> tuple[str, bool]:
    """The field that a written flag or recipe key means, and whether a leading `no_` negates it."""
    name = written.replace("-", "_")
    for candidate, negated in ((name, False), (name.removeprefix("no_"), True)):
        if negated and not (name.startswith("no_") and types.get(candidate) is bool):
            continue
        if candidate in types or candidate in _OWN_FLAGS:
            return candidate, negated
        if ALIASES.get(candidate) in types:
            return ALIASES[candidate], negated
    if name in THEIRS:
        return name, False
    known = [*types, *_OWN_FLAGS, *(alias for alias, target in ALIASES.items() if target in types)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean --{nearest[0]}?" if nearest else "see --help for those there are."
    raise ConfigError(f"There is no flag --{name}; {hint}")


def _flag_value(written: str, name: str, negated: bool, values: list[str], hint: Any) -> str:
    if hint is bool:
        if len(values) > 1 or (values and values[0].lower() not in _TRUE + _FALSE):
            raise ConfigError(f"--{written} got {' '.join(values)!r}; it takes true or false, or nothing for true.")
        is_true = not values or values[0].lower() in _TRUE
        return "true" if is_true != negated else "false"
    if not values:
        raise ConfigError(f"--{written} got no value; it takes {_type_name(hint)}.")
    if typing.get_origin(hint) is list:
        if len(values) == 1 and values[0].startswith("["):
            return values[0]
        return json.dumps(values, ensure_ascii=False)
    if len(values) > 1:
        raise ConfigError(f"--{written} got {len(values)} values ({' '.join(values)}); it takes one. Quote spaces.")
    return _choice(values[0], hint)


def _choice(value: str, hint: Any) -> str:
    """A value as the choices of a setting spell it; a bare `no` in YAML is false."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    value = value.lower() if value.lower() in choices else value
    return "no" if value == "false" and "no" in choices else value


def _read_recipe(file: str, types: Mapping[str, Any]) -> dict[str, str]:
    """A recipe's values as the strings that the flags would have been given."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--recipe {file!r}: there is no such file.")
    try:
        content = _RecipeLoader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--recipe {file!r} is not valid YAML or JSON: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--recipe {file!r} holds a {type(content).__name__}; expected flag names and their values.")
    recipe = _Given(types, file)
    for key, item in content.items():
        name, negated = _canonical(str(key), types)
        if negated or name in _OWN_FLAGS:
            raise ConfigError(f"--recipe {file!r} holds {key!r}, which only works as a flag.")
        if name not in types:
            recipe.put_theirs(name, _as_text(item), str(key))
            continue
        is_list = typing.get_origin(types[name]) is list and isinstance(item, str) and not item.startswith("[")
        recipe.put(name, _choice(_as_text([item] if is_list else item), types[name]), str(key))
    return recipe.all


def _unused(recipe: Mapping[str, str], given: Mapping[str, str], groups: Iterable[type]) -> dict[str, list[str]]:
    """What a recipe says that has no use under a typed choice, such as LORO's settings under another optimizer.

    What is typed itself is not among it: that stays, and is refused where it has no use.

    Returns:
        By choice, the names of the recipe's settings.
    """
    unused: dict[str, list[str]] = {}
    for field in itertools.chain(*map(dataclasses.fields, groups)):
        name = field.name
        choices = [choice for choice, chosen in given.items() if not counts(field, choice, chosen)]
        if choices and name in recipe and name not in given and recipe[name] != _as_text(_default(field)):
            for choice in choices:
                unused.setdefault(choice, []).append(name)
    return unused


def _as_text(item: Any) -> str:
    """A value as the word that the flag would have been given."""
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which 5e-4 is a number, as it is in JSON and in Python."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _explain(message: str, types: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if match := re.search(r'Parser key "(\w+)"', message):
        name = match[1]
        if reason := REFUSED_VALUES.get((name, str(given.get(name)))):
            return f"--{name} {given[name]} is refused: {reason}."
        return f"--{name} got {given.get(name)!r}; it takes {_type_name(types[name])}."
    if match := re.search(r"required: (.+)", message):
        names = ", ".join(f"--{name.strip()}" for name in match[1].split(","))
        return f"Missing {names}; see --help."
    return " ".join(message.split())


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"one or more of: {_type_name(arguments[0])}"
    if arguments:
        return " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))
