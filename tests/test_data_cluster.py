"""A cluster prepares what one machine would: the same bytes, however many tasks share the work."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.cluster import Job, Resources, launch, stages
from fourstage.data.cluster.resources import options_of, usual_tasks
from fourstage.data.corpus import parts
from fourstage.data.corpus.parts import Place, RawCorpus, RawSource, borders
from fourstage.data.reading import Block, RawFile
from fourstage.errors import InputError
from fourstage.pipeline import prepare
from fourstage.recipe import Recipe, load
from test_data_corpus import big_pile, contents, page, write_rows


@pytest.fixture(scope="module")
def pile(tmp_path_factory) -> Path:
    """Two sources of rows with copies across them, a broken row, a cut archive, a binary file."""
    folder = tmp_path_factory.mktemp("cluster")
    pile = big_pile(folder / "pile", 24)
    near = page(5, 40).replace("garden", "cellar", 1).replace("bridge", "tunnel", 1)
    write_rows(pile / "c.jsonl", [near, page(7, 40), page(9001, 20)])
    with open(pile / "c.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "cut off\n{"prompt": "Say hello."}\n')
    (pile / "d.bin").write_bytes(bytes(range(256)) * 40)
    rows = "".join(f'{{"text": "{page(seed)}"}}\n' for seed in range(7000, 9000))
    (pile / "e.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-1000])
    (folder / "other.txt").write_text("\n\n".join(page(seed) for seed in range(5000, 5200)))
    return folder


def recipe_of(pile: Path, *more: str) -> Recipe:
    pretrain = f"data.pretrain={pile / 'pile'},{pile / 'other.txt'}"
    return load("own-text", [pretrain, "tokenizer.vocab_size=400", "data.workers=1", *more])


def job_of(pile: Path, out: Path, *more: str) -> Job:
    return Job.of(recipe_of(pile, *more), out, prepare, "pretrain", False)


def work(job: Job, tasks: int, names: tuple[str, ...] = ()) -> None:
    """Does the stages (all, or those named) as so many tasks would."""
    for stage in stages.STAGES:
        if not names or stage.name in names:
            count = tasks if stage.is_shared else 1
            for rank in reversed(range(count)):
                stage.work(job, rank, count)


def prepared(run: Path) -> dict[str, bytes]:
    """What preparation left in a run."""
    return contents(run / "data") | {f"t/{k}": v for k, v in contents(run / "tokenizer").items()}


@pytest.fixture(scope="module")
def on_one_machine(pile, tmp_path_factory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("one") / "run"
    prepare(recipe_of(pile), run, only="pretrain")
    return prepared(run)


@pytest.mark.parametrize("tasks", [1, 3, 40])
def test_any_number_of_tasks_prepares_the_bytes_of_one_machine(
    pile, tmp_path, on_one_machine, tasks
) -> None:
    work(job_of(pile, tmp_path / "run"), tasks)
    assert prepared(tmp_path / "run") == on_one_machine
    assert len([name for name in on_one_machine if name.startswith("corpus/parts/0")]) >= 3


def test_a_run_goes_on_from_what_tasks_of_another_number_left(
    pile, tmp_path, on_one_machine
) -> None:
    job = job_of(pile, tmp_path / "run")
    work(job, 2, ("list", "parts"))
    for lost in (job.work / "corpus/parts/000001.safetensors", job.work / "files/000000.json"):
        lost.unlink()
    work(job, 5)
    assert prepared(tmp_path / "run") == on_one_machine
    work(job, 3)
    assert prepared(tmp_path / "run") == on_one_machine


def test_a_task_reads_no_file_before_or_behind_its_parts(pile, tmp_path, monkeypatch) -> None:
    job = job_of(pile, tmp_path / "run")
    work(job, 1, ("list",))
    read: list[str] = []

    def noted(file: RawFile):
        read.append(file.name)
        return real(file)

    real = parts.read_blocks
    monkeypatch.setattr(parts, "read_blocks", noted)
    for rank in range(3):
        stages.write_parts(job, rank, 3)
    first = next(i for i in range(1, len(read)) if read[i] == "pile/b.jsonl")
    assert read[:first].count("pile/a.jsonl") >= 1 and read[-1] == "other/other.txt"
    assert read.count("pile/a.jsonl") <= 2 and read.count("other/other.txt") == 1


def test_judging_reads_no_raw_file_again(pile, tmp_path, monkeypatch) -> None:
    job = job_of(pile, tmp_path / "run")
    work(job, 2, ("list", "parts"))

    def refuse(file: RawFile):
        raise AssertionError(f"{file.name} is read again")

    monkeypatch.setattr(parts, "read_blocks", refuse)
    work(job, 2, ("judge", "encode", "assemble"))
    assert (tmp_path / "run/data/.pretrain.json").exists()


def test_assembling_encodes_nothing_again(pile, tmp_path, monkeypatch, on_one_machine) -> None:
    job = job_of(pile, tmp_path / "run")
    work(job, 2, ("list", "parts", "judge", "encode"))

    def refuse(*_):
        raise AssertionError("a part is encoded again")

    monkeypatch.setattr("fourstage.data.shards.Encoder.__call__", refuse)
    work(job, 2, ("assemble",))
    assert prepared(tmp_path / "run") == on_one_machine


def test_stages_after_pretraining_are_prepared_too(pile, tmp_path) -> None:
    more = ("data.demonstrations=40", "data.comparisons=20", "data.rl_prompts=20")
    job = Job.of(recipe_of(pile, *more), tmp_path / "run", prepare, None, False)
    work(job, 2)
    prepare(recipe_of(pile, *more), tmp_path / "one")
    assert prepared(tmp_path / "run") == prepared(tmp_path / "one")


def test_files_that_came_meanwhile_are_named(pile, tmp_path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    write_rows(folder / "b.jsonl", [page(seed) for seed in range(20)])
    recipe = load("own-text", [f"data.pretrain={folder}"])
    job = Job.of(recipe, tmp_path / "run", prepare, "pretrain", False)
    work(job, 1, ("list",))
    write_rows(folder / "a.jsonl", [page(30)])
    with pytest.raises(InputError, match=r"a\.jsonl: files came or went.*run the same command"):
        work(job, 1, ("parts",))


class Sized(RawCorpus):
    """Raw files of which only the sizes of their blocks are known."""

    def __init__(self, sizes: list[list[int]]):
        files = [RawFile(Path(str(number)), str(number)) for number in range(len(sizes))]
        super().__init__([RawSource("all", files, False)])
        self.sizes = sizes

    def blocks(self, file: RawFile, whole: bool):
        for number, size in enumerate(self.sizes[int(file.name)]):
            yield Block(file.name, file.name, "text", number, text="x" * size)


def blocks_of(tasks) -> list[tuple[int, int]]:
    return [(int(block.name), block.first) for task in tasks for block in task.blocks]


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=8), st.integers(1, 60))
def test_borders_from_sizes_are_where_the_parts_begin(sizes, task_bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_TASK_BYTES", task_bytes)
        raw = Sized(sizes)
        tasks = list(raw.tasks())
        whole = [tasks[at : at + 8] for at in range(0, len(tasks), 8)]
        begins = borders(sizes)
        assert begins == [Place(*blocks_of(part)[0]) for part in whole]
        for number, begin in enumerate(begins):
            rest = [task for part in whole[number:] for task in part]
            assert blocks_of(raw.tasks(begin)) == blocks_of(rest)


@given(st.integers(0, 500), st.integers(1, 60))
def test_shares_are_even_and_take_each_thing_once_in_order(count, tasks) -> None:
    shares = [stages.share_of(count, rank, tasks) for rank in range(tasks)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_work_of_other_files_is_another_work(pile, tmp_path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [page(seed) for seed in range(20)])
    recipe = load("own-text", [f"data.pretrain={path}"])

    def work_of(given: Recipe) -> Path:
        return Job.of(given, tmp_path / "run", prepare, None, False).work

    before = work_of(recipe)
    assert work_of(load("own-text", [f"data.pretrain={path}", "sft.epochs=5"])) == before
    assert work_of(load("own-text", [f"data.pretrain={path}", "data.document=line"])) != before
    write_rows(path, [page(seed) for seed in range(21)])
    assert work_of(recipe) != before


@pytest.mark.parametrize(
    ("overrides", "only", "fault"),
    [
        (["data.pretrain=world"], None, r"data\.pretrain=FOLDER"),
        (["data.pretrain=nowhere"], None, "no such file or folder"),
        ([f"data.pretrain={__file__}"], "sft", "--only pretrain"),
    ],
)
def test_what_an_executor_cannot_prepare_is_refused(tmp_path, overrides, only, fault) -> None:
    with pytest.raises(InputError, match=fault):
        Job.of(load("own-text", overrides), tmp_path, prepare, only, False)


def test_time_and_options_are_checked_before_anything_is_launched() -> None:
    assert Resources(1, time="1-02:30:05").seconds == 95_405
    with pytest.raises(InputError, match="--time tomorrow: write HOURS:MM:SS"):
        Resources(1, time="tomorrow")
    assert options_of(["--account=lab", "qos=long"]) == {"account": "lab", "qos": "long"}
    with pytest.raises(InputError, match="--sbatch account: write NAME=VALUE"):
        options_of(["account"])


def test_there_is_a_task_a_gigabyte_within_what_a_scheduler_takes() -> None:
    assert [usual_tasks("slurm", size) for size in (1000, 8 * 10**9, 10**14)] == [1, 8, 1000]


def test_without_datatrove_the_extra_is_named(pile, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(InputError, match=r"datatrove is needed.*fourstage\[cluster-data\]"):
        launch("local-datatrove", job_of(pile, tmp_path / "run"), Resources(2))
