"""The errors a user can cause: one sentence each, saying what was got, what was expected and what to do.

The command line prints the sentence and exits with code 2; library users catch `FivefoldError` or one of its kinds.
"""

import errno


class FivefoldError(Exception):
    """Anything wrong with what fivefold was given, as against a bug in fivefold itself."""


class ConfigError(FivefoldError):
    """A flag, a recipe or a combination of settings that cannot work."""


class DataError(FivefoldError):
    """Text, tokens or a tokenizer that are missing, broken or do not fit."""


class CheckpointError(FivefoldError):
    """A checkpoint that is missing, incomplete, damaged or of another run."""


class ModelError(FivefoldError):
    """A model that cannot be built, loaded or trained as asked."""


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that there is no room: the disk, the user's share of it, or what one file may take."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    # Libraries written in Rust, such as tokenizers, raise plain exceptions that say it in words only.
    return any(f"(os error {number})" in str(error) for number in numbers)
