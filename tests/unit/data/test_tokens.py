"""Token shards: what is written is read, from anywhere; what is damaged is refused."""

from pathlib import Path

import numpy as np
import pytest

from fivefold.data.token_writer import TokenWriter
from fivefold.data.tokens import INDEX_NAME, Shard, TokenIndex, TokenShards
from fivefold.errors import DataError


def some_documents(vocab_size: int = 1000) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(2, vocab_size, length) for length in [3, 1, 40, 7, 7, 120, 2, 33]]


def write(folder: Path, documents: list[np.ndarray], vocab_size: int = 1000, tokens_per_shard: int = 50) -> TokenIndex:
    folder.mkdir()
    writer = TokenWriter(folder, vocab_size, tokens_per_shard)
    for document in documents:
        writer.add(document)
    return writer.finish(num_characters=5, tokenizer_fingerprint="abc", sources=["here"])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4")])
def test_everything_written_is_read(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    documents = [*some_documents(), np.array([vocab_size - 1])]
    index = write(tmp_path / "tokens", documents, vocab_size)
    assert TokenIndex.load(tmp_path / "tokens") == index
    assert (index.dtype, index.num_documents, len(index.shards)) == (dtype, 9, 3)
    tokens = TokenShards.open(tmp_path / "tokens")
    everything = np.concatenate(documents)
    assert (tokens.num_tokens, tokens.num_documents) == (len(everything), 9) == (index.num_tokens, 9)
    rows = tokens.windows(np.array([0]), np.array([len(everything)]))
    np.testing.assert_array_equal(rows.ids[0], everything)


@pytest.mark.parametrize("eos_id", [None, 1])
def test_windows_cross_shards_and_the_end(tmp_path: Path, eos_id: int | None) -> None:
    documents = some_documents()
    write(tmp_path / "tokens", documents)
    tokens = TokenShards.open(tmp_path / "tokens", eos_id)
    marked = documents if eos_id is None else [np.append(document, eos_id) for document in documents]
    circle = np.tile(np.concatenate(marked), 2)
    assert tokens.num_tokens == len(circle) // 2
    starts = np.arange(tokens.num_tokens)
    rows = tokens.windows(starts, np.full(len(starts), 90))
    for start in starts:
        np.testing.assert_array_equal(rows.ids[start], circle[start : start + 90])


@pytest.mark.parametrize("eos_id", [None, 1])
def test_memory_equals_disk(tmp_path: Path, eos_id: int | None) -> None:
    documents = [*some_documents(), np.zeros(0, np.int64), np.array([4])]
    write(tmp_path / "tokens", documents)
    on_disk, in_memory = TokenShards.open(tmp_path / "tokens", eos_id), TokenShards.of_documents(documents, eos_id)
    assert on_disk.num_tokens == in_memory.num_tokens
    starts, lengths = np.array([0, 100, 210]), np.array([50, 20, 3])
    np.testing.assert_array_equal(on_disk.windows(starts, lengths).ids, in_memory.windows(starts, lengths).ids)


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    from hashlib import sha256

    index = write(tmp_path / "tokens", some_documents())
    for shard in index.shards:
        assert sha256((tmp_path / "tokens" / shard.tokens_file).read_bytes()).hexdigest() == shard.sha256


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with pytest.raises(DataError, match="fivefold prepare"):
        TokenShards.open(folder)
    write(folder, some_documents())

    tokens_path = folder / "tokens_00001.bin"
    whole = tokens_path.read_bytes()
    tokens_path.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"tokens_00001\.bin has .* bytes where the index says"):
        TokenShards.open(folder)
    tokens_path.unlink()
    with pytest.raises(DataError, match=r"tokens_00001\.bin is missing"):
        TokenShards.open(folder)
    tokens_path.write_bytes(whole)

    documents_path = folder / "documents_00000.npy"
    whole = documents_path.read_bytes()
    documents_path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="damaged"):
        TokenShards.open(folder)
    np.save(documents_path, np.arange(3))
    with pytest.raises(DataError, match="does not fit the index"):
        TokenShards.open(folder)
    documents_path.write_bytes(whole)
    TokenShards.open(folder)

    index_path = folder / INDEX_NAME
    good_index = index_path.read_text()
    for broken in ("{", "[]", "{}", good_index.replace('"dtype"', '"type"')):
        index_path.write_text(broken)
        with pytest.raises(DataError, match="not an index"):
            TokenShards.open(folder)
    index_path.write_text(good_index.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="format 2"):
        TokenShards.open(folder)


def test_a_folder_without_tokens_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tokens", [])
    with pytest.raises(DataError, match="no tokens"):
        TokenShards.open(tmp_path / "tokens")


def test_marks_stand_behind_empty_documents_too() -> None:
    tokens = TokenShards([Shard(np.array([5, 6]), np.array([0, 0, 2, 2]))], eos_id=1)
    assert tokens.windows(np.array([0]), np.array([5])).ids.tolist() == [[1, 5, 6, 1, 1]]
