"""Finding files, and a tree of everything that can be wrong: read rightly or refused by name."""

from __future__ import annotations

import gzip
import os
import random
import socket
from pathlib import Path

import pytest

from fourstage.data.reading import (
    BadRow,
    Limits,
    RawFile,
    find_files,
    inspect_file,
    raw_hashes,
    read_blocks,
    read_text,
)
from fourstage.data.reading.finding import shown
from fourstage.errors import InputError
from test_data_reading_packed import WHOLE, tarred, zipped

LIMITS = Limits(ratio=100, unpacked=1 << 22)


def _names(found: list[RawFile]) -> list[str]:
    return [file.name for file in found]


def test_files_are_found_in_the_order_of_their_names(tmp_path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", "B.txt", ".hidden/x.txt", "a/.x", "x.lock", "a/q~"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found, passed = find_files(tmp_path, "data.pretrain")
    assert _names(found) == ["B.txt", "a.txt", "a/z.txt", "b.txt"]
    assert passed == [".hidden", "a/.x", "a/q~", "x.lock"]
    assert set(raw_hashes(found)) == set(_names(found))


def test_links_pipes_and_sockets_are_passed_over(tmp_path, monkeypatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "out.txt").write_text("outside")
    monkeypatch.chdir(tmp_path / "tree")
    Path("a.txt").write_text("inside")
    for name, target in [("loop", "."), ("out", "../out.txt"), ("gone", "x"), ("again", "a.txt")]:
        os.symlink(target, name)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found, passed = find_files(tmp_path / "tree", "data.pretrain")
    assert _names(found) == ["a.txt"]
    assert passed == ["again", "gone", "loop", "out", "pipe", "socket"]
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_files(tmp_path / "tree" / "pipe", "data.pretrain")


def test_each_file_is_read_once_however_many_paths_lead_to_it(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    found, passed = find_files([tmp_path, tmp_path / "a", tmp_path / "a/x.txt"], "data.pretrain")
    assert _names(found) == ["0/a/x.txt"] and passed == ["1/x.txt", "2/x.txt"]


def test_odd_names_stay_on_one_line(tmp_path) -> None:
    (tmp_path / "two\nlines.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("y")
    found, _ = find_files(tmp_path, "data.pretrain")
    assert sorted(_names(found)) == ["\\xff.txt", "two\\nlines.txt"]
    assert sorted(map(read_text, found)) == ["x", "y"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_passed_over(tmp_path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "closed").mkdir()
    (tmp_path / "b.txt").chmod(0)
    (tmp_path / "closed").chmod(0)
    found, passed = find_files(tmp_path, "data.pretrain")
    (tmp_path / "closed").chmod(0o700)
    assert _names(found) == ["a.txt"] and passed == ["b.txt", "closed/"]


def test_a_path_that_is_not_there_is_refused_with_the_nearest(tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError, match=r"no such file or folder; did you mean '.*texts'"):
        find_files(tmp_path / "text", "data.pretrain")
    with pytest.raises(InputError, match="nothing to read in this folder"):
        find_files(tmp_path / "texts", "data.pretrain")


def test_a_link_that_leads_nowhere_is_refused_as_one(tmp_path) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("gone", "loop"):
        with pytest.raises(InputError, match=f"{name}: a link to what does not exist"):
            find_files(tmp_path / name, "data.pretrain")


@pytest.mark.parametrize("name", ["hf:", "hf:just-a-name", "hf:a/b/c", "hf:a b/c"])
def test_a_wrong_hub_id_is_refused_with_its_form(name: str) -> None:
    with pytest.raises(InputError, match="hf:OWNER/NAME"):
        find_files(name, "data.pretrain")


def test_a_hub_data_set_is_the_files_of_its_cache(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    rows.save_to_disk(tmp_path / "cache")
    kept = datasets.load_from_disk(tmp_path / "cache")
    asked = []

    def load(*args: object, **options: object) -> object:
        asked.append((args, options))
        return {"train": kept, "test": kept}

    monkeypatch.setattr(datasets, "load_dataset", load)
    found, _ = find_files("hf:someone/data:part", "data.pretrain")
    assert asked == [(("someone/data", "part"), {"split": None})]
    assert [row.value for b in read_blocks(found[0]) for row in b.rows()] == list(rows)
    assert found[0].name.startswith("someone/data/part/data-0")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load(*args: object, **options: object) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match="cannot get it from the hub: no route"):
        find_files("hf:someone/data", "data.pretrain")


def _tree(root: Path) -> None:
    """Everything that people's folders hold, and worse."""
    draw = random.Random(11)
    whole = {kind: make() for kind, make in WHOLE.items()}
    suffixes = ["txt", "jsonl", "json", "csv", "gz", "zip", "tar", "parquet", "arrow", "html", ""]
    for kind, content in whole.items():
        for number, part in enumerate((0.01, 0.3, 0.7, 0.99)):
            cut = content[: int(part * len(content))]
            (root / f"cut-{kind}-{number}.{draw.choice(suffixes)}").write_bytes(cut)
        for number in range(6):
            changed = bytearray(content)
            for _ in range(3):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            (root / f"changed-{kind}-{number}.{draw.choice(suffixes)}").write_bytes(changed)
        (root / f"wrong-{kind}.txt").write_bytes(content)
    for suffix in suffixes:
        (root / f"random.{suffix}").write_bytes(draw.randbytes(3000))
        (root / f"short.{suffix}").write_bytes(draw.randbytes(9))
        (root / f"deep.{suffix}").write_text('[{"a":' * 50_000)
        (root / f"flat.{suffix}").write_text("[" * 100_000 + "]" * 100_000)
        (root / f"huge.{suffix}").write_text('{"n": %s}\n' % ("9" * 50_000) * 2)
        (root / f"quotes.{suffix}").write_text('a,b\n"' + "x,y\n" * 9000)
        (root / f"tags.{suffix}").write_text("<html><body>" + "<a '" * 20_000)
        (root / f"half.{suffix}").write_bytes("{'a': \"ü".encode("utf-16")[:-1])
    (root / "bomb.gz").write_bytes(gzip.compress(b"\0" * (64 << 20)))
    (root / "bomb.zip").write_bytes(zipped({f"{n}.txt": b"a" * (8 << 20) for n in range(8)}))
    (root / "out.zip").write_bytes(zipped({"../../evil.txt": b"x", "/tmp/evil.txt": b"x"}))
    (root / "out.tar").write_bytes(tarred({"../../evil.txt": b"x", "good.txt": b"fine"}))
    (root / "new\nline.txt").write_text("fine")
    os.symlink(".", root / "loop")


def test_every_file_of_a_broken_tree_ends_in_a_reading_or_a_named_refusal(tmp_path) -> None:
    root = tmp_path / "a" / "tree"
    root.mkdir(parents=True)
    _tree(root)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    found, passed = find_files(root, "data.pretrain")
    assert passed == ["loop"] and len(found) > 200
    ends = {"read": 0, "faults": 0, "refused": 0}
    for file in found:
        try:
            inspect_file(file, LIMITS)
            faults = 0
            for block in read_blocks(file, limits=LIMITS):
                faults += sum(isinstance(row, BadRow) for row in block.rows())
                assert "\ufffd" not in (block.text or "")
            ends["faults" if faults else "read"] += 1
        except InputError as error:
            assert shown(str(file.path)) in str(error) and len(str(error)) < 2000
            ends["refused"] += 1
    assert all(count > 10 for count in ends.values())
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
