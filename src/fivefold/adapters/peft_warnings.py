"""peft without the warnings by which it reports on transformers and on what it has decided itself."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Say nothing of what peft warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
