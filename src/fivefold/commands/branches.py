"""Continue one main text in several branches at once: main is read once, each step writes a token of every branch."""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fivefold.choices import refuse_changed
from fivefold.errors import ConfigError, DataError
from fivefold.models.decoding import DecodingSettings

log = logging.getLogger("fivefold")


@dataclass
class BranchWritingSettings:
    """What to continue, in how many branches, and with which model."""

    model: str
    """Folder or Hub id of a decoder with its tokenizer, such as RUN/final of `fivefold parallel`; what that run said of
    branches is kept beside it. Any other decoder reads its branches as texts of their own."""
    main: str = ""
    """The main text."""
    main_file: str | None = None
    """Text file that holds it."""
    branches: list[str] = field(default_factory=list)
    """How each branch begins."""
    num_branches: int | None = None
    """Number of branches that all begin alike: with the one opening in --branches, or with none."""
    cache: Literal["auto", "shared", "flat", "expanded"] = "auto"
    """How keys and values are kept: main once beside each branch (shared), all in one sequence (flat), or main
    again for each branch (expanded); auto is shared where the model allows that, else flat."""
    output_file: str | None = None
    """Write JSON lines of branch, opening and output here, too."""

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.main and self.main_file:
            raise ConfigError("The main text was given by --main and by --main_file; give one of them.")
        if self.num_branches is not None and self.num_branches < 0:
            raise ConfigError(f"num_branches is {self.num_branches}; give at least 0.")
        if self.num_branches is not None and len(self.branches) > 1:
            raise ConfigError(
                f"--num_branches {self.num_branches} is for branches that begin alike, but --branches has "
                f"{len(self.branches)} openings; leave it out."
            )

    @property
    def openings(self) -> list[str]:
        """Of each branch."""
        return self.branches if self.num_branches is None else (self.branches or [""]) * self.num_branches


def run(settings: BranchWritingSettings, decoding: DecodingSettings, *, dry_run: bool) -> None:
    """Write the branches, on a terminal as they come."""
    unused = ("num_beams", "repetition_penalty", "no_repeat_ngram_size")
    refuse_changed(decoding, unused, "with branches, whose tokens are taken one by one")
    openings = settings.openings
    if len(openings) > len(set(openings)) and not decoding.do_sample:
        raise ConfigError("Branches that begin alike would all say the same; add --do_sample, or give other openings.")
    if settings.num_branches is None and not openings:
        raise ConfigError("There is no branch; give openings with --branches, or --num_branches.")
    main = settings.main if settings.main_file is None else _read(Path(settings.main_file))
    target = None if settings.output_file is None else Path(settings.output_file)
    if target is not None and not target.parent.is_dir():
        raise ConfigError(f"--output_file {target} lies in a folder that does not exist; make it first.")

    from fivefold.branches.folder import most_branches, stored_scheme
    from fivefold.branches.model import prepare_for_branches
    from fivefold.branches.settings import BranchScheme
    from fivefold.serving.branches import write_branches
    from fivefold.serving.columns import Columns
    from fivefold.serving.open_model import open_model
    from fivefold.t5.model import T5Model

    model, tokenizer = open_model(settings.model)
    if isinstance(model, T5Model):
        raise ConfigError(f"Branches are for decoders, and {settings.model} is a T5; name another with --model.")
    scheme = stored_scheme(settings.model) or BranchScheme(rope_2d_ratio=0.0)
    trained = most_branches(settings.model)
    if trained is not None and len(openings) > trained:
        log.warning("%d branches, but %s was trained with %d at most.", len(openings), settings.model, trained)
    prepare_for_branches(model, scheme)
    if dry_run:
        print(f"{len(openings)} branches for {settings.model}, {model.num_parameters():,} parameters")
        return
    texts = [""] * len(openings)
    with Columns(openings, is_live=sys.stdout.isatty()) as columns:
        for branch, piece in write_branches(model, tokenizer, main, openings, scheme, decoding, settings.cache):
            texts[branch - 1] += piece
            columns.show([opening + text for opening, text in zip(openings, texts, strict=True)])
    if target is not None:
        lines = [
            json.dumps({"branch": number, "opening": opening, "output": text}, ensure_ascii=False)
            for number, (opening, text) in enumerate(zip(openings, texts, strict=True), 1)
        ]
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"--main_file {file}: there is no such file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}); convert it first.") from None
