"""A tokenizer to a folder that `AutoTokenizer` opens."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fivefold.errors import DataError, is_full_disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", output_dir: str | Path) -> None:
    """Write a tokenizer's files, each of them complete or not at all.

    Args:
        tokenizer: what to save.
        output_dir: folder, made if need be; other files in it stay.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".tokenizer-") as temporary:
            tokenizer.save_pretrained(temporary)
            # A name that every version of transformers knows for "what tokenizer.json says".
            config = Path(temporary) / "tokenizer_config.json"
            settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
            config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            # tokenizer.json, which makes the folder a tokenizer, comes last.
            for path in sorted(Path(temporary).iterdir(), key=lambda path: (path.name == "tokenizer.json", path.name)):
                path.replace(folder / path.name)
    except Exception as error:
        if not (isinstance(error, OSError) or is_full_disk(error)):
            raise
        raise DataError(
            f"the tokenizer cannot be written to {folder} ({error}): choose another folder or make room."
        ) from error
