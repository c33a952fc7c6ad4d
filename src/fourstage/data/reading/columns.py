"""Rows of parquet and Arrow files, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fourstage.data.reading.faults import Damaged, Unreadable
from fourstage.data.reading.jsontext import Broken
from fourstage.data.reading.unpacking import Source, seekable
from fourstage.extras import require

_MOST_ROWS = 10_000
_PIECE = 1 << 20
# The last eight bytes of a stream that was closed.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def pyarrow(name: str, part: str = "") -> Any:
    return require(f"pyarrow{part}", "data", f"to read {name}")


def batches(source: Source, kind: str, name: str, block_bytes: int) -> Iterator[Any]:
    """Record batches of about `block_bytes`, in order.

    Args:
        kind: "parquet", "arrow" or "arrow-stream".

    Raises:
        Damaged: it is cut or broken.
        Unreadable: it holds a type or a compression that is not known.
    """
    arrow = pyarrow(name)
    read = {"parquet": _parquet, "arrow": _arrow_file, "arrow-stream": _arrow_stream}[kind]
    try:
        for batch in read(source, name, block_bytes):
            # Broken offsets or text would be met by another process, or end it.
            batch.validate(full=True)
            rows = max(1, min(_MOST_ROWS, block_bytes * batch.num_rows // max(1, batch.nbytes)))
            for at in range(0, batch.num_rows, rows):
                yield batch.slice(at, rows)
    except arrow.ArrowNotImplementedError as error:
        raise Unreadable(name, f"holds what cannot be read ({_first(error)})") from error
    except (arrow.ArrowException, UnicodeError, OSError, EOFError) as error:
        raise Damaged(name, f"is a cut or broken {kind} file ({_first(error)})") from error


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _parquet(source: Source, name: str, block_bytes: int) -> Iterator[Any]:
    parquet = pyarrow(name, ".parquet")
    with seekable(source) as file:
        table = parquet.ParquetFile(file, page_checksum_verification=True)
        size = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
        rows = block_bytes * table.metadata.num_rows // max(1, size)
        count = 0
        for batch in table.iter_batches(max(1, min(_MOST_ROWS, rows)), use_threads=False):
            count += batch.num_rows
            yield batch
    if count != table.metadata.num_rows:
        raise Damaged(name, f"holds {count} rows where it says {table.metadata.num_rows}")


def _arrow_file(source: Source, name: str, block_bytes: int) -> Iterator[Any]:
    ipc = pyarrow(name, ".ipc")
    with seekable(source) as file, ipc.open_file(file) as table:
        for number in range(table.num_record_batches):
            yield table.get_batch(number)


def _arrow_stream(source: Source, name: str, block_bytes: int) -> Iterator[Any]:
    ipc = pyarrow(name, ".ipc")
    tail = _Tail(source)
    with ipc.open_stream(pyarrow(name).PythonFile(tail, mode="r")) as stream:
        yield from stream
    if tail.last != _END_OF_STREAM or source.peek(1):
        raise Damaged(name, "is a cut Arrow stream, or has bytes after its end; get it again")


class _Tail:
    """A stream that keeps the last eight bytes read from it."""

    closed = False

    def __init__(self, source: Source):
        self._source, self.last = source, b""

    def read(self, count: int = -1) -> bytes:
        piece = self._source.read(count)
        self.last = (self.last + piece[-8:])[-8:]
        return piece

    def close(self) -> None:
        self.closed = True


def pack(batch: Any) -> bytes:
    """A batch as bytes that `unpack_rows` reads in another process."""
    arrow = pyarrow("tables")
    sink = arrow.BufferOutputStream()
    with pyarrow("tables", ".ipc").new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpack_rows(packed: bytes) -> Iterator[dict[str, Any] | Broken]:
    """The rows of a packed batch; a fault where a value is beyond what Python can hold."""
    with pyarrow("tables", ".ipc").open_stream(packed) as stream:
        batch = stream.read_next_batch()
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        yield from (_row(batch, at) for at in range(batch.num_rows))


def _row(batch: Any, at: int) -> dict[str, Any] | Broken:
    try:
        return batch.slice(at, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Broken(f"a value that cannot be read: {_first(error)}")
