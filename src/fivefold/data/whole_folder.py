"""Write a folder that appears complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fivefold.errors import DataError, is_full_disk


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something is already.

    Raises:
        DataError: it is a file, or a folder that is not empty and may not be replaced.
    """
    if folder.is_dir():
        if any(folder.iterdir()) and not overwrite:
            raise DataError(f"{folder} is not empty; give another --output_dir, or --overwrite to replace it.")
    elif folder.exists():
        raise DataError(f"{folder} is a file; give the name of a folder.")


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a hidden sibling to write into, and rename it when the block ends well; else nothing is left of it.

    Args:
        folder: where the result shall be; its parents are made.
        overwrite: replace a folder that is not empty.

    Raises:
        DataError: `folder` is taken, or the disk is full.
    """
    check_replaceable(folder, overwrite)
    unfinished = folder.parent / f".{folder.name}.unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process that had the same number
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        put_in_place(unfinished, folder)
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DataError(
            f"The disk of {folder} is full and nothing was written; free some space or give another --output_dir."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a folder that is whole by now, in place of what may be there."""
    replaced = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    try:
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
