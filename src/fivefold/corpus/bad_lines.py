"""Broken lines: reported one by one, skipped up to a limit, then an error."""

import logging

from fivefold.errors import DataError

logger = logging.getLogger("fivefold")


class BadRecord(ValueError):
    """A record that cannot be used; the message says why, as half a sentence."""


class BadLines:
    """The count of broken lines in one pass over a corpus.

    Args:
        allowed: how many to skip before stopping.
        count: how many were skipped before, in a pass that is resumed.
    """

    def __init__(self, allowed: int, count: int = 0) -> None:
        self.allowed = allowed
        self.count = count

    def report(self, where: str, reason: str) -> None:
        """Count one broken line and warn of it.

        Args:
            where: the file and the line in it.
            reason: what is wrong, as half a sentence.

        Raises:
            DataError: it is one more than allowed.
        """
        self.count += 1
        if self.count > self.allowed:
            raise DataError(
                f"{where}: {reason}; that is broken line number {self.count}, --max_bad_lines allows {self.allowed}: "
                "mend the data, or raise --max_bad_lines to skip such lines."
            )
        logger.warning("%s: %s; line skipped (%d of at most %d)", where, reason, self.count, self.allowed)
