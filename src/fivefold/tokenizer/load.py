"""Tokenizers from disk or the Hub, and whether they fit."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")


def load_tokenizer(name_or_path: str | Path, *, is_offline: bool = False) -> "PreTrainedTokenizerBase":
    """Open a tokenizer.

    Args:
        name_or_path: a local folder, else a Hub id.
        is_offline: of the Hub's, only what is on this machine already.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(name_or_path).expanduser()
    is_local = folder.is_dir()
    if is_local and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(f"{folder} holds no tokenizer: expected {' or '.join(TOKENIZER_FILES)} in it.")
    offline = {"local_files_only": True} if is_offline else {}
    # It reads the config.json beside the tokenizer too, and wonders at the type of a low-rank model.
    library = logging.getLogger("transformers.configuration_utils")
    before, library.disabled = library.disabled, True
    try:
        return AutoTokenizer.from_pretrained(str(folder if is_local else name_or_path), **offline)
    except Exception as error:  # the library raises whatever a broken file or a missing network leads to
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        if not is_local:
            raise DataError(
                f"{str(name_or_path)!r} is no local folder, and as a Hub tokenizer it cannot be opened ({reason}): "
                "check the spelling and the network."
            ) from error
        if not (folder / "tokenizer.json").is_file():
            reason += "; such a folder needs the extra fivefold[sentencepiece]"
        raise DataError(f"the tokenizer in {folder} cannot be opened ({reason}): make or fetch it again.") from error
    finally:
        library.disabled = before


def check_fits(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    """Refuse a tokenizer with ids that a model has no embedding for.

    Args:
        tokenizer: whose text the model is given.
        vocab_size: rows of the model's embedding, which may be more than the tokenizer needs.

    Raises:
        DataError: an id reaches beyond the vocabulary.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise DataError(
            f"the tokenizer has ids up to {highest}, but the model's vocabulary has {vocab_size} entries: use the "
            f"tokenizer that the model was made with, or a model with vocab_size {highest + 1} or more."
        )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of everything that decides which ids a text gets: two tokenizers with the same one are interchangeable.

    Returns:
        32 hexadecimal digits, the same after saving and loading.
    """
    described: dict[str, object] = {"vocab": tokenizer.get_vocab()}
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        whole = json.loads(backend.to_str())
        described |= {part: whole[part] for part in ("normalizer", "pre_tokenizer")}
        described["merges"] = whole["model"].get("merges")
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
