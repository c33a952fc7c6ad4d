"""A pile of files becomes one corpus: every document accounted for, however it was made."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourstage.data.corpus import Corpus, build_corpus, shared_with_text
from fourstage.errors import InputError
from fourstage.recipe import recipe_from

WORDS = (
    "river stone market winter lantern bread sailor garden bridge letter candle forest harbour "
    "teacher violin copper meadow thunder basket window mirror orchard pepper saddle kettle"
).split()


def page(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(7, 14))) for _ in range(sentences)]
    return " ".join(line.capitalize() + "." for line in lines)


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def corpus_of(folder: Path, out: Path, **data) -> tuple[Corpus, dict]:
    recipe = recipe_from({"data": {"pretrain": str(folder), "validation": 0.1, **data}})
    return build_corpus(recipe.data, out)


def texts(corpus: Corpus) -> dict[str, list[str]]:
    return {split: list(corpus.texts(split)) for split in ("train", "validation")}


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """Rows, plain text, an exact copy, a near copy, a broken line, a foreign row, a binary file."""
    folder = tmp_path / "pile"
    folder.mkdir()
    pages = [page(seed) for seed in range(60)]
    near = pages[5].replace("garden", "cellar", 1).replace("bridge", "tunnel", 1)
    assert near != pages[5]
    write_rows(folder / "a.jsonl", [*pages[:30], pages[3], near])
    with open(folder / "a.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "cut off\n{"prompt": "Say hello."}\n')
    (folder / "b.txt").write_text("\n\n".join(pages[30:]), encoding="utf-8")
    (folder / "c.bin").write_bytes(bytes(range(256)) * 40)
    return folder


def test_every_document_is_kept_once_or_accounted_for(pile, tmp_path) -> None:
    corpus, report = corpus_of(pile, tmp_path / "out")
    kept = sum(map(len, texts(corpus).values()))
    assert kept == report["train"] + report["validation"]
    lost = report["duplicate"] + report["near_duplicate"] + report["empty"]
    assert report["read"] == kept + lost + sum(report["dropped"].values())
    assert report["duplicate"] == 1 and report["near_duplicate"] == 1
    assert list(report["refused_files"]) == ["c.bin"]


def test_bad_rows_are_named_with_file_line_and_reason(pile, tmp_path) -> None:
    _, report = corpus_of(pile, tmp_path / "out")
    bad = (tmp_path / "out" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {json.loads(line)["line"]: json.loads(line) for line in bad}
    assert report["bad_rows"] == 2 and set(rows) == {33, 34}
    assert all(row["file"] == "a.jsonl" and row["why"] for row in rows.values())


def test_bad_rows_can_be_refused(pile, tmp_path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:33"):
        corpus_of(pile, tmp_path / "out", bad_rows="refuse")


def test_a_key_that_no_row_has_is_refused(pile, tmp_path) -> None:
    with pytest.raises(InputError, match=r"data\.map\.text=body: no row of pile has this key"):
        corpus_of(pile, tmp_path / "out", key="body")


def test_the_first_of_equal_documents_stays(pile, tmp_path) -> None:
    corpus, _ = corpus_of(pile, tmp_path / "out")
    kept = [text for split in texts(corpus).values() for text in split]
    assert kept.count(page(3)) == 1 and page(5) in kept
    listed = (tmp_path / "out" / "duplicates.jsonl").read_text(encoding="utf-8").splitlines()
    found = {json.loads(line)["document"]: json.loads(line)["same_as"] for line in listed}
    assert found == {"a.jsonl:31": "a.jsonl:4", "a.jsonl:32": "a.jsonl:6"}


def test_near_duplicates_that_stay_lie_on_one_side_of_the_split(tmp_path) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    pages = [page(seed) for seed in range(40)]
    twins = [text.replace("river", "canal", 1) for text in pages]
    write_rows(folder / "a.jsonl", [*pages, *twins])
    corpus, report = corpus_of(folder, tmp_path / "out", deduplicate={"near": 0}, validation=0.3)
    found = texts(corpus)
    assert report["near_duplicate"] == 0 and found["validation"]
    for text, twin in zip(pages, twins, strict=True):
        sides = [name for name, rows in found.items() if text in rows or twin in rows]
        assert len(sides) == 1


def test_passages_of_an_earlier_document_are_cut_out(tmp_path) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    first, second = page(1, 24), page(2, 24)
    copied = ". ".join(first.split(". ")[:14]) + ". " + second
    write_rows(folder / "a.jsonl", [first, copied, *(page(seed) for seed in range(10, 30))])
    corpus, report = corpus_of(folder, tmp_path / "out", deduplicate={"passages": 40})
    kept = [text for split in texts(corpus).values() for text in split]
    assert first in kept and report["passages_cut"] > 0
    left = next(text for text in kept if second[:60] in text)
    assert len(left) < len(second) + 200 and first[:60] not in left


def test_characters_of_the_sources_are_those_that_were_kept(tmp_path) -> None:
    shared = page(100, 20)
    rows = [f"{page(seed)} {shared}" for seed in range(20)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    corpus, report = corpus_of(path, tmp_path / "out", deduplicate={"passages": 50, "near": 0})
    kept = texts(corpus)
    assert report["passages_cut"]
    assert report["characters"] == report["sources"]["a"]["characters"]
    assert report["characters"] >= sum(len(t) for side in kept.values() for t in side)


def test_a_repeated_line_is_told_from_the_first_by_its_number(tmp_path) -> None:
    path = tmp_path / "a.txt"
    lines = [page(seed) for seed in range(6)]
    path.write_text("\n".join([*lines, lines[2], lines[2]]), encoding="utf-8")
    corpus_of(path, tmp_path / "out", document="line")
    listed = (tmp_path / "out" / "duplicates.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(row["document"], row["same_as"]) for row in map(json.loads, listed)]
    assert found == [("a.txt:7", "a.txt:3"), ("a.txt:8", "a.txt:3")]


def test_each_prompt_is_listed_with_the_words_that_it_shares(tmp_path) -> None:
    first, second = (" ".join(WORDS[at : at + 13]) for at in (0, 12))
    rows = [f"{second}. {first}.", *(page(seed) for seed in range(30))]
    corpus, _ = corpus_of(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert rows[0] in texts(corpus)["train"]
    assert shared_with_text([first, second], corpus, 13) == [
        {"prompt": first, "words": first},
        {"prompt": second, "words": second},
    ]


def test_a_document_that_holds_a_measured_text_is_dropped(tmp_path) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    asked = "Which of the two lanterns did the old sailor carry over the frozen northern bridge?"
    rows = [page(seed) for seed in range(30)]
    rows[7] += " " + asked.upper().replace(" ", "  ")
    write_rows(folder / "a.jsonl", rows)
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"question": asked, "answer": "the copper one"}) + "\n")
    corpus, report = corpus_of(folder, tmp_path / "out", decontaminate={"against": str(tests)})
    kept = [text for split in texts(corpus).values() for text in split]
    assert report["dropped"] == {"contaminated": 1} and len(kept) == 29
    hit = json.loads((tmp_path / "out" / "contamination.jsonl").read_text())
    assert (hit["line"], hit["reference"]) == (8, "tests.jsonl:1")


def test_sources_are_counted_apart(tmp_path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [page(seed) for seed in range(20)])
    two = write_rows(tmp_path / "two.jsonl", [page(seed) for seed in range(15, 50)])
    recipe = recipe_from({"data": {"pretrain": [str(one), str(two)], "validation": 0.1}})
    _, report = build_corpus(recipe.data, tmp_path / "out")
    kept = {name: row["train"] + row["validation"] for name, row in report["sources"].items()}
    assert kept == {"one": 20, "two": 30} and report["duplicate"] == 5


def test_a_document_stays_on_its_side_when_others_join(tmp_path) -> None:
    pages = [page(seed) for seed in range(120)]
    found = []
    for count in (50, 120):
        path = write_rows(tmp_path / f"{count}.jsonl", pages[:count])
        found.append(texts(corpus_of(path, tmp_path / f"out{count}", validation=0.2)[0]))
    for split in ("train", "validation"):
        assert set(found[0][split]) <= set(found[1][split])


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_something_is_always_held_out_and_something_left(tmp_path, share) -> None:
    path = write_rows(tmp_path / "a.jsonl", [page(seed) for seed in range(6)])
    try:
        corpus, _ = corpus_of(path, tmp_path / "out", validation=share)
    except InputError as error:
        assert share == 0.99 and "nothing to train on" in str(error)
    else:
        assert all(texts(corpus).values())


@pytest.mark.parametrize(
    ("documents", "fault"),
    [
        ([""], "is empty"),
        (["", "  "], "is empty"),
        (["tiny"], "too little"),
        ([page(1, 200)], r"data\.document=paragraph"),
    ],
)
def test_too_little_text_is_refused(tmp_path, documents, fault) -> None:
    path = write_rows(tmp_path / "a.jsonl", documents)
    with pytest.raises(InputError, match=fault):
        corpus_of(path, tmp_path / "out")


def test_why_there_is_no_text_is_said(tmp_path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(InputError, match=r"a\.jsonl\.gz"):
        corpus_of(tmp_path / "a.jsonl.gz", tmp_path / "out")


def test_a_classifier_learns_what_is_good(tmp_path) -> None:
    good = write_rows(tmp_path / "good.jsonl", [page(seed) for seed in range(200, 260)])
    sold = "buy now cheap casino pills".split()
    junk = [" ".join(random.Random(n).choices(sold, k=120)) for n in range(300)]
    pile = write_rows(tmp_path / "pile.jsonl", [page(seed) for seed in range(300, 360)] + junk)
    told = {"clean": ["light", "quality"], "quality": {"good": str(good), "threshold": 0.5}}
    corpus, report = corpus_of(pile, tmp_path / "out", deduplicate={"near": 0}, **told)
    kept = [text for split in texts(corpus).values() for text in split]
    assert not any("casino" in text for text in kept) and len(kept) >= 50
    assert sum(report["dropped"].values()) == 360 - len(kept)


def big_pile(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    seed = 0
    for name in ("a", "b"):
        rows, size = [], 0
        while size < megabytes * 500_000:
            rows.append(page(seed % 3000, 40))
            size, seed = size + len(rows[-1]), seed + 1
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def test_two_workers_or_one_write_the_same_bytes(tmp_path) -> None:
    pile = big_pile(tmp_path / "pile", 6)
    for workers in (1, 2):
        corpus_of(pile, tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


_PREPARE = """
import sys
from fourstage.cli.app import main
sys.argv = ["fourstage", "prepare", "own-text", "--only", "pretrain", *sys.argv[1:]]
main()
"""


def prepare(pile: Path, out: Path, *more: str) -> subprocess.Popen:
    told = [f"data.pretrain={pile}", "tokenizer.vocab_size=400", "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, *told],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def shards(out: Path) -> dict[str, bytes]:
    found = contents(out / "data") | {
        f"tokenizer/{k}": v for k, v in contents(out / "tokenizer").items()
    }
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_begun_again_the_bytes_are_the_same(tmp_path, kills) -> None:
    pile = big_pile(tmp_path / "pile", 20)
    start = time.monotonic()
    finish(prepare(pile, tmp_path / "whole"))
    took = time.monotonic() - start
    whole, rng = shards(tmp_path / "whole"), random.Random(kills)
    killed, runs = 0, 0
    # What a kill leaves is gone on from; a finished run is compared, and the next begun.
    while killed < kills:
        out = tmp_path / f"killed{runs}"
        process = prepare(pile, out, "data.workers=2")
        try:
            process.wait(rng.uniform(0.1, 0.9) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if process.returncode == 0 or killed == kills:
            finish(prepare(pile, out, "data.workers=2"))
            assert shards(out) == whole
            runs += 1
