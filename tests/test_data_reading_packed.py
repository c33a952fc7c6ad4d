"""Packed files: read to their end, or called damaged; archives cannot reach out or blow up."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.reading import (
    Damaged,
    Limits,
    RawFile,
    Unreadable,
    inspect_file,
    read_blocks,
    read_rows,
    read_text,
)

ROWS = [{"text": f"row {n}", "n": n} for n in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
HALF = LINES.index(b"\n", len(LINES) // 2) + 1


def zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def parquet(rows: list) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), out, row_group_size=1000, write_page_checksum=True
    )
    return out.getvalue()


def arrow(rows: list, is_stream: bool) -> bytes:
    import pyarrow
    import pyarrow.ipc

    table, out = pyarrow.Table.from_pylist(rows), io.BytesIO()
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    return out.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    **{kind: lambda pack=pack: pack(LINES) for kind, pack in PACKERS.items()},
    "zip": lambda: zipped({"a.jsonl": LINES}),
    "stored": lambda: zipped({"a.jsonl": LINES}, zipfile.ZIP_STORED),
    "tar": lambda: tarred({"a.jsonl": LINES}),
    "tar.gz": lambda: gzip.compress(tarred({"a.jsonl": LINES})),
    "parquet": lambda: parquet(ROWS),
    "arrow": lambda: arrow(ROWS, is_stream=False),
    "stream": lambda: arrow(ROWS, is_stream=True),
}


def _file(folder: Path, content: bytes, name: str = "data") -> RawFile:
    path = folder / name
    path.write_bytes(content)
    return RawFile(path, name)


def _values(file: RawFile) -> list:
    return [row.value for row in read_rows(file)]


@pytest.mark.parametrize("kind", WHOLE)
def test_packed_rows_are_read_whatever_the_name(tmp_path, kind: str) -> None:
    for name in ("data", "data.txt", f"data.{kind}"):
        file = _file(tmp_path, WHOLE[kind](), name)
        assert _values(file) == ROWS
        assert inspect_file(file).holds_rows


@pytest.mark.parametrize("kind", PACKERS)
def test_all_members_of_a_packed_file_are_read(tmp_path, kind: str) -> None:
    pack = PACKERS[kind]
    file = _file(tmp_path, pack(LINES[:HALF]) + pack(b"") + pack(LINES[HALF:]))
    assert _values(file) == ROWS
    assert inspect_file(file).compression == kind
    with pytest.raises(Damaged):
        _values(_file(tmp_path, pack(LINES[:HALF]) + pack(LINES[HALF:])[:-20]))
    with pytest.raises(Damaged, match="bytes after its end"):
        _values(_file(tmp_path, pack(LINES) + b"foreign"))


def test_skippable_frames_and_padding_are_passed_over(tmp_path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (300).to_bytes(4, "little") + bytes(300)
    assert _values(_file(tmp_path, skipped + zst(LINES) + skipped)) == ROWS
    assert _values(_file(tmp_path, gzip.compress(LINES) + bytes(512))) == ROWS


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_file_is_damaged_and_never_a_shorter_one(tmp_path, kind: str) -> None:
    content = WHOLE[kind]()
    cuts = [len(content) * part // 24 for part in range(2, 24)] + [len(content) - 1]
    for cut in cuts:
        # The end of a tar file is padded; a zero block of it is enough.
        if kind == "tar" and not content[cut - 512 :].strip(b"\0"):
            continue
        with pytest.raises((Damaged, Unreadable)):
            _values(_file(tmp_path, content[:cut]))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in WHOLE if kind not in ("tar", "stream", "arrow")]),
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_a_changed_byte_is_found_or_changes_nothing(tmp_path_factory, kind, place, flip) -> None:
    content = bytearray(WHOLE[kind]())
    content[int(place * len(content))] ^= flip
    file = _file(tmp_path_factory.mktemp("flip"), bytes(content))
    try:
        values = _values(file)
    except ValueError:  # every refusal is an InputError
        return
    # Names and times in headers are not checked by anything.
    assert values == ROWS or kind == "parquet"


def test_members_follow_each_other_and_are_named(tmp_path) -> None:
    inner = zipped({"deep/c.txt": b"inner text", "d.csv": b"a,b\n1,2\n"})
    members = {
        "b.jsonl.gz": gzip.compress(LINES),
        "sub/é\n.txt": "schön".encode(),
        "inner.zip": inner,
        "__MACOSX/b.jsonl": b"junk",
        "sub/.DS_Store": b"junk",
        "picture.png": b"\x89PNG" + bytes(50),
    }
    for pack in (zipped, tarred):
        file = _file(tmp_path, pack(members), "all.x")
        passed: list[str] = []
        names = list(dict.fromkeys(block.name for block in read_blocks(file, passed=passed)))
        assert names == [
            "all.x/b.jsonl.gz",
            "all.x/sub/é\\n.txt",
            "all.x/inner.zip/deep/c.txt",
            "all.x/inner.zip/d.csv",
        ]
        kind = inspect_file(file)
        assert kind.format == "archive" and kind.holds_rows and kind.members == tuple(names)
        assert [line.split(" (")[0] for line in passed] == [
            "all.x/__MACOSX/b.jsonl",
            "all.x/sub/.DS_Store",
            "all.x/picture.png",
        ]


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:\\out.txt", "..\\out.txt"]
)
def test_names_that_lead_out_are_refused_and_nothing_is_written(tmp_path, name: str) -> None:
    (tmp_path / "in").mkdir()
    for pack in (zipped, tarred):
        file = _file(tmp_path / "in", pack({name: b"evil", "good.txt": b"good"}))
        passed: list[str] = []
        assert [block.text for block in read_blocks(file, passed=passed)] == ["good"]
        assert len(passed) == 1
        with pytest.raises(Unreadable, match="nothing to read"):
            read_text(_file(tmp_path / "in", pack({name: b"evil"})))
    assert os.listdir(tmp_path) == ["in"] and os.listdir(tmp_path / "in") == ["data"]


def test_links_in_archives_are_refused(tmp_path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with pytest.raises(Unreadable, match="a link"):
        read_text(_file(tmp_path, out.getvalue()))


def test_an_encrypted_member_is_named(tmp_path) -> None:
    content = bytearray(zipped({"secret.txt": b"words"}))
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    with pytest.raises(Unreadable, match=r"secret\.txt: is encrypted"):
        read_text(_file(tmp_path, bytes(content)))


@pytest.mark.parametrize("kind", [*PACKERS, "zip"])
def test_a_bomb_is_refused_by_name(tmp_path, kind: str) -> None:
    limits = Limits(ratio=100, unpacked=1 << 20)
    zeros = b"a" * (32 << 20)
    content = zipped({"a.txt": zeros}) if kind == "zip" else PACKERS[kind](zeros)
    with pytest.raises(Unreadable, match="more than 100 times its size"):
        for _ in read_blocks(_file(tmp_path, content), limits=limits):
            pass


@pytest.mark.parametrize("pack", [gzip.compress, lambda inner: zipped({"a": inner})])
def test_what_is_packed_too_often_is_refused(tmp_path, pack) -> None:
    content = b"text"
    for _ in range(3):
        content = pack(content)
    assert read_text(_file(tmp_path, content)) == "text"
    with pytest.raises(Unreadable, match="packed more than 3 times"):
        read_text(_file(tmp_path, pack(content)))


def test_a_tar_file_without_its_end_or_with_another_behind_it_is_damaged(tmp_path) -> None:
    content = tarred({"a.txt": b"x" * 512, "b.txt": b"y" * 512})
    for cut in (1024, 1536, 2048):
        with pytest.raises(Damaged, match=r"is (a )?cut"):
            read_text(_file(tmp_path, content[:cut]))
    with pytest.raises(Damaged, match="after its end mark"):
        read_text(_file(tmp_path, content + content))
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = "n" * 90 + "/" + "m" * 90 + ".txt"
        assert read_text(_file(tmp_path, tarred({name: b"long"}, format))) == "long"


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_tables_are_read_inside_archives_in_blocks(tmp_path, kind: str) -> None:
    file = _file(tmp_path, zipped({"a/b.bin": WHOLE[kind]()}))
    blocks = list(read_blocks(file, 4096))
    rows = [row for block in blocks for row in block.rows()]
    assert len(blocks) > 5 and [row.line for row in rows] == list(range(1, len(ROWS) + 1))
    assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]


def test_a_folder_saved_by_datasets_is_read(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    from fourstage.data.reading import find_files

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    found, passed = find_files(tmp_path / "saved", "data.pretrain")
    assert passed == ["dataset_info.json", "state.json"]
    assert [value for file in found for value in _values(file)] == ROWS
