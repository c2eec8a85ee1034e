"""What happens to documents before they are tokens on disk: held out or not, shuffled, written whole or not at all."""

import errno
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from fivefold.data.document_shuffle import DocumentShuffle
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.whole_folder import whole_folder
from fivefold.errors import DataError


def test_the_held_out_share_is_the_asked_one() -> None:
    texts = [f"document {number}" for number in range(20_000)]
    for frac in (0.0, 0.01, 0.5):
        held = sum(is_held_out(text, frac) for text in texts)
        # Binomial: five standard deviations.
        assert abs(held - 20_000 * frac) <= 5 * np.sqrt(20_000 * frac * (1 - frac))


def test_a_larger_share_holds_out_the_same_documents_and_more() -> None:
    texts = [f"document {number}" for number in range(2000)]
    small, large = ({text for text in texts if is_held_out(text, frac)} for frac in (0.01, 0.05))
    assert small < large


def test_any_text_has_a_digest() -> None:
    assert len({text_digest(text) for text in ("", "a", "b", "\U0001f600", "\ud83d", "\u4f60\u597d")}) == 6


def shuffled(documents: Iterable[np.ndarray], buffer_tokens: int, seed: int) -> list[int]:
    written: list[int] = []
    shuffle = DocumentShuffle(lambda document: written.append(int(document[0])), buffer_tokens, seed)
    for document in documents:
        shuffle.add(document)
    shuffle.finish()
    return written


@pytest.mark.parametrize("buffer_tokens", [1, 50, 10_000])
def test_shuffling_loses_nothing_and_follows_the_seed(buffer_tokens: int) -> None:
    documents = [np.full(1 + number % 7, number) for number in range(300)]
    order = shuffled(documents, buffer_tokens, 0)
    assert sorted(order) == list(range(300))
    assert shuffled(documents, buffer_tokens, 0) == order
    if buffer_tokens > 7:
        assert shuffled(documents, buffer_tokens, 1) != order != list(range(300))


def test_no_buffer_keeps_the_order() -> None:
    assert shuffled((np.array([number]) for number in range(20)), 0, 0) == list(range(20))


def test_the_buffer_bounds_what_is_held() -> None:
    written: list[np.ndarray] = []
    shuffle = DocumentShuffle(written.append, 200, 0)
    for number in range(1, 1000):
        shuffle.add(np.zeros(10, np.int64))
        assert number - len(written) <= 20


def test_a_whole_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    with whole_folder(target) as folder:
        (folder / "file").write_text("1")
        assert not target.exists()
    assert (target / "file").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["result"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_a_failed_folder_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "result") as folder:
            (folder / "file").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")],
    ids=["Python", "Rust"],
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(DataError, match="is full"), whole_folder(tmp_path / "result"):
        raise error
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.mkdir()
    with whole_folder(target):
        pass  # an empty folder is no loss
    (target / "old").write_text("0")
    with pytest.raises(DataError, match="not empty"), whole_folder(target):
        pass
    with pytest.raises(ValueError, match="bug"), whole_folder(target, overwrite=True):
        raise ValueError("bug")
    assert (target / "old").exists()
    with whole_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("1")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    with pytest.raises(DataError, match="is a file"), whole_folder(target / "new"):
        pass
