"""Reading: any file becomes text, or rows with the line each stands on, or is refused by name."""

from fourstage.data.reading.blocks import BadRow, Block, RawRow, read_blocks
from fourstage.data.reading.faults import Damaged, Unreadable, raise_faults
from fourstage.data.reading.finding import RawFile, as_paths, find_files, raw_hashes
from fourstage.data.reading.unpacking import Limits
from fourstage.data.reading.whole import (
    FileKind,
    inspect_file,
    read_rows,
    read_rows_and_faults,
    read_text,
)

__all__ = [
    "BadRow",
    "Block",
    "Damaged",
    "FileKind",
    "Limits",
    "RawFile",
    "RawRow",
    "Unreadable",
    "as_paths",
    "find_files",
    "inspect_file",
    "raise_faults",
    "raw_hashes",
    "read_blocks",
    "read_rows",
    "read_rows_and_faults",
    "read_text",
]
