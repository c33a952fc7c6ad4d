"""What a file is, told by its content; its name only breaks ties."""

from __future__ import annotations

import csv
import io
import json
import re

from fourstage.data.reading.jsontext import BLANK, Broken, parse_value

# Characters looked at.
SNIFFED = 1 << 16
_LINES, _LIST = (".jsonl", ".ndjson", ".jsonlines"), (".json", ".geojson")
_PAGES, _NOTES = (".html", ".htm", ".xhtml"), (".md", ".markdown", ".mdx")
_TABLES = (".csv", ".tsv", ".tab")
_BINARY = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF: extract its text first (pdftotext)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document: save it as text or CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x04\x22\x4d\x18", "packed with LZ4: unpack it first"),
    (b"\xff\x06\x00\x00sNaPpY", "packed with Snappy: unpack it first"),
    (b"SQLite format 3", "an SQLite database: export its tables as CSV"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file: export it as parquet"),
    (b"PARE", "an encrypted parquet file"),
    (b"FEA1", "an old Feather file: write it again as parquet"),
    (b"GGUF", "the weights of a model"),
    (b"Obj\x01", "an Avro file: export it as parquet"),
    (b"ORC", "an ORC file: export it as parquet"),
)
_PAGE = re.compile(r"(\s|<\?xml[^>]*>|<!--.{0,4096}?-->)*<(!doctype\s+html|html|head|body)\b", re.I)
_TAG = re.compile(r"</?[a-z][a-z0-9]*[\s>/]", re.I)
_ROWS_BEGIN = re.compile(r'\[\s*\{\s*"|\{\s*"')
_FIELD = re.compile(r"[^\W\d][\w.-]{0,40}")
# Names of columns that are not met at the top of prose.
_COLUMNS = {
    *("text", "content", "prompt", "completion", "response", "instruction", "input", "output"),
    *("question", "answer", "label", "chosen", "rejected", "messages", "id", "title", "score"),
}


def binary_kind(head: bytes) -> str | None:
    """What a file of no text or rows is, in words; None where its first bytes do not tell."""
    return next((kind for magic, kind in _BINARY if head.startswith(magic)), None)


def table_kind(head: bytes) -> str | None:
    """ "parquet", "arrow" (a file) or "arrow-stream", by the first bytes."""
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1":
        return "arrow"
    # A message of an Arrow stream: a mark, the length of its description, a flatbuffer's offset.
    length, offset = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8))
    is_stream = (
        head[:4] == b"\xff\xff\xff\xff" and length % 8 == 0 and 0 < offset < length < 1 << 26
    )
    return "arrow-stream" if is_stream and len(head) >= 12 else None


def suffix_of(name: str) -> str:
    """The lower-case ending of a name, without that of its compression."""
    stem = re.sub(r"\.(gz|bz2|xz|zst|zstd)$", "", name.lower())
    return re.search(r"(\.[^./]*)?$", stem)[0]  # ty: ignore


def may_be_json(head: bytes, suffix: str) -> bool:
    """Whether bytes are likely those of JSON, which is UTF-8 whatever else they look like."""
    start = head.lstrip(b" \t\r\n")[:256]
    return suffix in _LINES + _LIST or bool(re.match(rb'[\[{]\s*["{\[\]}]', start))


def text_kind(head: str, suffix: str, is_whole: bool) -> str:
    """ "text", "markdown", "html", "jsonl", "json", "csv", "tsv" or "empty".

    Args:
        head: the text's first characters.
        suffix: of the file's name.
        is_whole: whether `head` is all of the text.
    """
    if not head.strip(BLANK) and is_whole:
        return "empty"
    if _PAGE.match(head) or (suffix in _PAGES and _TAG.search(head)):
        return "html"
    found = _json_kind(head, suffix, is_whole)
    if found:
        return found
    mark = delimiter(head, is_whole)
    if suffix in _TABLES or (mark and _is_header(head, mark)):
        return "tsv" if (mark or ("," if suffix == ".csv" else "\t")) == "\t" else "csv"
    return "markdown" if suffix in _NOTES else "text"


def _json_kind(head: str, suffix: str, is_whole: bool) -> str | None:
    text = head.lstrip(BLANK)
    lines = [line for line in text.split("\n") if line.strip(BLANK)]
    complete = lines if is_whole else lines[:-1]
    objects = sum(_is_container(line) for line in complete)
    if objects >= 2 and 2 * objects >= len(complete):
        return "jsonl"
    is_named = suffix in _LINES + _LIST
    if text[:1] not in ("{", "["):
        if suffix in _LINES or (suffix in _LIST and objects):
            return "jsonl"
        return "json" if suffix in _LIST else None
    if not is_named and not _ROWS_BEGIN.match(text):
        return None
    try:
        value, end = parse_value(text, 0)
    except Broken as fault:
        goes_on = "\n" in text[: fault.at].rstrip(BLANK) or (fault.is_cut and len(lines) == 1)
        if not goes_on:
            return ("jsonl" if suffix in _LINES else "json") if is_named or not complete else None
        return "jsonl" if suffix in _LINES and (objects or len(lines) == 1) else "json"
    is_line = "\n" not in text[:end]
    if is_line and suffix in _LINES and (isinstance(value, dict) or len(lines) > 1):
        return "jsonl"
    return "json" if not is_line or len(lines) == 1 or suffix in _LIST else None


def _is_container(line: str) -> bool:
    """Whether a line is a JSON object or list."""
    line = line.strip(BLANK)
    if line[:1] + line[-1:] not in ("{}", "[]"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def delimiter(head: str, is_whole: bool) -> str | None:
    """What separates the columns of a table, so that most rows have as many as the first has."""
    best: tuple[float, int, str] | None = None
    for mark in ",\t;|":
        counts = [len(row) for row in _table(head, mark, is_whole) if row]
        if not counts or counts[0] < 2:
            continue
        alike = sum(count == counts[0] for count in counts) / len(counts)
        if best is None or (alike, counts[0]) > best[:2]:
            best = (alike, counts[0], mark)
    return best[2] if best and best[0] >= 0.5 else None


def _table(head: str, mark: str, is_whole: bool) -> list[list[str]]:
    rows = []
    try:
        for row in csv.reader(io.StringIO(head, newline=""), delimiter=mark):
            rows.append(row)
    except csv.Error:
        pass
    return rows if is_whole else rows[:-1]


def _is_header(head: str, mark: str) -> bool:
    """Whether a text that is not called a table begins as one, with names of columns."""
    rows = [row for row in _table(head, mark, is_whole=False) if row]
    names = [name.strip() for name in (rows[0] if rows else [])]
    alike = sum(len(row) == len(names) for row in rows)
    return (
        len(rows) > 1
        and alike >= 0.9 * len(rows)
        and len(set(names)) == len(names)
        and all(_FIELD.fullmatch(name) for name in names)
        and any(name.lower() in _COLUMNS for name in names)
    )
