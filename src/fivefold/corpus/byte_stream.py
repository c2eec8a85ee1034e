"""A file as a stream of plain bytes, whether it is compressed or not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from fivefold.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
SKIP_BYTES = 1 << 20


@contextmanager
def open_bytes(
    path: Path, offset: int = 0, *, watch: Callable[[Callable[[], int]], None] | None = None
) -> Iterator[BufferedReader]:
    """Open a file at a place in its decompressed bytes.

    Args:
        path: a plain, `.gz`, `.zst` or `.bz2` file; compressed files may consist of several members or frames.
        offset: bytes to leave out, counted after decompression.
        watch: given a function that tells how many bytes of the file itself have been read.

    Raises:
        DataError: here, or while the stream is read: the file cannot be read, or is damaged or cut off.

    Cost: a plain file is entered at `offset` at once; a compressed one is decompressed up to it.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            with path.open("rb") as stream:
                stream.seek(offset)
                if watch is not None:
                    watch(stream.tell)
                yield stream
            return
        # pyarrow's streams tell a cut-off file from a complete one; zstandard's own reader ends quietly at the cut.
        import pyarrow

        with (
            pyarrow.OSFile(str(path)) as file,
            pyarrow.CompressedInputStream(file, compression) as source,
            BufferedReader(source) as stream,
        ):
            if watch is not None:
                watch(file.tell)
            while offset > 0:
                offset -= len(stream.read(min(offset, SKIP_BYTES))) or offset
            yield stream
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}): check the file, or fetch it again if it is incomplete."
        ) from error
