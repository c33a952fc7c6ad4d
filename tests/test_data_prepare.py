"""Preparation: every part from the world, from files or from the text; repeated at no cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_texts import chinese, english
from fourstage import tasks
from fourstage.data import fromtext, fromworld, prepare
from fourstage.data.prepared import PreparedData
from fourstage.errors import InputError
from fourstage.recipe import Recipe, recipe_from


def _recipe(**data) -> Recipe:
    return recipe_from(
        {
            "data": {"demonstrations": 60, "comparisons": 40, "rl_prompts": 40, **data},
            "world": {"documents": 300, "validation_documents": 50},
            "tokenizer": {"vocab_size": 400},
            "model": {"context": 192},
            "rl": {"max_new_tokens": 48},
            "evaluation": {"instructions": 20, "pairs": 20, "prompts": 20},
        }
    )


def _world() -> Recipe:
    return _recipe(pretrain="world")


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(english(300))
    (folder / "b.txt").write_text(english(100, seed=1))
    return folder


def _quiet(line: str) -> None:
    pass


def _answers(prompts: list[str]) -> list[str]:
    return [f"{prompt[:20]}..." for prompt in prompts]


def _files(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_the_world_gives_every_stage_its_data(tmp_path) -> None:
    data = prepare.prepare(_world(), tmp_path, _quiet)
    assert len(data.store("pretrain", "train")) == 300
    assert set(data.documents()[0]) == {"text", "kind", "bits", "determined"}
    assert len(data.store("sft", "train")) == 60
    assert len(data.store("reward", "train")) == 80
    assert len(data.tasks("rl", "train")) == 40
    assert len(data.tasks("rl", "validation")) == 20
    for pair in data.pairs():
        assert tasks.gold(tasks.Task.from_json(pair["task"]), pair["chosen"]) == pair["gold_chosen"]
    assert 0 <= data.report["pretrain"]["validation_seen_in_training"] <= 0.2
    assert data.tokenizer().vocab_size <= 400


def test_no_held_out_prompt_of_the_world_occurs_in_training(tmp_path) -> None:
    data = prepare.prepare(_world(), tmp_path, _quiet)
    trained = {task.prompt for task, _ in data.demonstrations()}
    trained |= {task.prompt for task in data.tasks("rl", "train")}
    measured = [t.prompt for s in ("sft", "rl") for t in data.tasks(s, "validation")]
    assert not trained & set(measured)


def test_the_share_of_held_out_documents_seen_in_training_is_exact(tmp_path) -> None:
    seen = fromworld.Seen(["a", "b", "b"], [{"text": t} for t in ("a", "a", "b", "c")])
    assert list(seen) == ["a", "b", "b"] and seen.share() == 0.75


def test_preparing_is_a_function_of_the_recipe_and_is_not_repeated(tmp_path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    for run in (first, second):
        prepare.prepare(_world(), run, _quiet)
    assert _files(first) == _files(second)
    times = {p: p.stat().st_mtime_ns for p in first.rglob("*.bin")}
    lines: list[str] = []
    prepare.prepare(_world(), first, lines.append)
    assert lines == []
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*.bin")} == times


def test_a_moved_run_is_still_prepared_and_names_no_place(tmp_path, text) -> None:
    recipe = _recipe(pretrain=str(text))
    prepare.prepare(recipe, tmp_path / "run", _quiet)
    (tmp_path / "run").rename(tmp_path / "moved")
    lines: list[str] = []
    prepare.prepare(recipe, tmp_path / "moved", lines.append)
    assert lines == []
    for name, content in _files(tmp_path / "moved").items():
        assert str(tmp_path).encode() not in content, name


def test_a_step_cut_off_half_way_is_done_again(tmp_path, monkeypatch) -> None:
    whole = prepare.prepare(_world(), tmp_path / "whole", _quiet)
    write = prepare.write_lines

    def killed(path, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_lines", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(_world(), tmp_path / "cut", _quiet)
    monkeypatch.setattr(prepare, "write_lines", write)
    prepare.prepare(_world(), tmp_path / "cut", _quiet)
    assert _files(tmp_path / "cut") == _files(whole.run)


def test_a_text_given_up_half_way_is_not_taken_for_the_one_before(tmp_path, text) -> None:
    before = prepare.Preparation(_recipe(pretrain=str(text)), tmp_path / "run", _quiet)
    kept = before.corpus().documents
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "whole"}\n{"text": "cut')
    other = _recipe(pretrain=str(broken), bad_rows="refuse")
    with pytest.raises(InputError, match="broken JSON"):
        prepare.Preparation(other, tmp_path / "run", _quiet).corpus()
    assert before.corpus().documents == kept


def test_keys_mapped_otherwise_prepare_the_rows_again(tmp_path, own) -> None:
    rows = [{"q": f"What is {n}?", "a": f"The number {n}.", "b": "None."} for n in range(20)]
    own["sft"] = _write_rows(tmp_path / "mapped.jsonl", rows)
    answers = []
    for key in ("a", "b"):
        recipe = _recipe(**own, map={"prompt": "q", "response": key})
        data = prepare.prepare_sft(recipe, tmp_path / "run", _quiet)
        answers.append(data.demonstrations()[0][1])
    assert answers[0].startswith("The number") and answers[1] == "None."


def test_changed_amounts_prepare_that_stage_again_and_no_other(tmp_path) -> None:
    before = prepare.prepare(_world(), tmp_path, _quiet).manifest["stores"]
    lines: list[str] = []
    after = prepare.prepare(_recipe(pretrain="world", demonstrations=50), tmp_path, lines.append)
    changed = {name for name, hash in after.manifest["stores"].items() if before[name] != hash}
    assert changed <= {"sft/train", "sft/validation"} and len(lines) == 1


@pytest.mark.parametrize("written", [english, chinese])
def test_own_text_gives_every_stage_its_data(tmp_path, written) -> None:
    (tmp_path / "own.txt").write_text(written(400), encoding="utf-8")
    recipe = _recipe(pretrain=str(tmp_path / "own.txt"), validation=0.2, document="paragraph")
    data = prepare.prepare(recipe, tmp_path / "run", _quiet)
    assert not (data.folder / "reward").exists()
    data = prepare.prepare_reward(recipe, tmp_path / "run", _quiet, sample=_answers)
    assert all(data.was_made(stage) for stage in ("sft", "reward", "rl"))
    assert not data.was_made("pretrain")
    tokenizer, held_out = data.tokenizer(), [row["text"] for row in data.documents()]
    for task in data.tasks("rl", "validation"):
        facts = task.facts
        assert any(facts.get("given", "")[:10].split("_")[0] in text for text in held_out)
        assert len(tokenizer.chat_prompt(task.prompt)) + 48 <= 192
    for pair in data.pairs():
        assert pair["gold_chosen"] == 1.0 > pair["gold_rejected"]
    assert data.store("sft", "train").lengths.max() <= 193
    assert not list(data.folder.glob(".samples*"))


def test_sampling_goes_on_from_the_samples_that_were_saved(tmp_path, text, monkeypatch) -> None:
    monkeypatch.setattr(fromtext, "_SAMPLED", 8)
    recipe = _recipe(pretrain=str(text), document="paragraph")
    calls = []

    def tires(prompts: list[str]) -> list[str]:
        if len(calls) == 3:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(prompts)
        return _answers(prompts)

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_reward(recipe, tmp_path / "run", _quiet, sample=tires)
    prepare.prepare_reward(recipe, tmp_path / "run", _quiet, sample=tires)
    asked = [prompt for prompts in calls if prompts for prompt in prompts]
    assert len(set(map(tuple, filter(None, calls)))) == len(calls) - 1
    assert len(asked) >= 40
    prepare.prepare_reward(recipe, tmp_path / "other", _quiet, sample=_answers)
    same = ("data/reward/train/tokens.bin", "data/reward/validation.jsonl")
    for name in same:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_made_comparisons_need_somebody_to_sample(tmp_path, text) -> None:
    with pytest.raises(InputError, match="run the sft stage first"):
        prepare.prepare_reward(_recipe(pretrain=str(text)), tmp_path / "run", _quiet)


def _write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def own(tmp_path, text) -> dict[str, str]:
    asked = [f"Who mended number {n}?" for n in range(60)]
    sft = [{"instruction": q, "input": "", "output": f"Ada {n}."} for n, q in enumerate(asked)]
    pairs = [
        {"prompt": q, "chosen": f"Ada {n}.", "rejected": "No.", "margin": n}
        for n, q in enumerate(asked)
    ]
    return {
        "pretrain": str(text),
        "sft": _write_rows(tmp_path / "sft.jsonl", [*sft, sft[0]]),
        "preferences": _write_rows(tmp_path / "pairs.jsonl", pairs),
        "prompts": _write_rows(tmp_path / "prompts.jsonl", [{"prompt": q} for q in asked]),
    }


def test_own_rows_are_used_for_every_stage(tmp_path, own) -> None:
    data = prepare.prepare(_recipe(**own, validation=0.1), tmp_path / "run", _quiet)
    assert data.report["sft"]["duplicate"] == 1
    sft = data.store("sft", "train")
    assert len(sft) + len(data.store("sft", "validation")) == 60
    tokenizer, row = data.tokenizer(), sft[0]
    assert tokenizer.decode(row.tokens[row.loss_mask], False).endswith(".<|end|>")
    reward = data.store("reward", "train")
    assert reward.row(0).keys() == {"margin"} and reward.row(1) == {}
    assert all(row.tokens[-1] == tokenizer.reward for row in reward)
    assert "gold_chosen" not in data.pairs()[0]
    assert {task.kind for task in data.tasks("rl", "train")} == {"free"}
    assert set(data.manifest["raw"]) == {"pretrain", "sft", "preferences", "prompts"}
    assert set(data.manifest["raw"]["pretrain"]) == {"a.txt", "b.txt"}


def test_rows_added_later_leave_the_vocabulary_as_it_is(tmp_path, own) -> None:
    pretrain = {"pretrain": own["pretrain"]}
    before = prepare.prepare(_recipe(**pretrain), tmp_path / "run", _quiet).manifest
    after = prepare.prepare(_recipe(**own), tmp_path / "run", _quiet).manifest
    assert after["tokenizer"] == before["tokenizer"]
    assert after["stores"]["pretrain/train"] == before["stores"]["pretrain/train"]
    assert after["stores"]["sft/train"] != before["stores"]["sft/train"]


def test_answers_too_long_for_the_context_are_cut_and_counted(tmp_path, own) -> None:
    long = {"prompt": "Tell.", "completion": "Ada mended the lantern. " * 60}
    wide = {"prompt": "Ada mended the lantern. " * 60, "completion": "Yes."}
    own["sft"] = _write_rows(
        tmp_path / "long.jsonl",
        [long, wide] + [{"prompt": f"Number {n}?", "completion": "Yes."} for n in range(20)],
    )
    own["preferences"] = _write_rows(
        tmp_path / "long_pairs.jsonl",
        [
            {"prompt": f"Number {n}?", "chosen": "Ada. " * 90, "rejected": "Bela. " * n}
            for n in range(1, 40)
        ],
    )
    data = prepare.prepare(_recipe(**own, validation=0.2), tmp_path / "run", _quiet)
    assert data.report["sft"]["cut"] == 1 and data.report["sft"]["too_long"] == 1
    store, reward = data.store("reward", "train"), data.tokenizer().reward
    assert store.lengths.max() <= 192
    assert all(np.count_nonzero(row.tokens == reward) == 1 for row in store)


@pytest.mark.parametrize(
    ("part", "row", "fault"),
    [
        ("sft", {"text": "plain"}, r"bad\.jsonl:1: data\.sft needs messages.*is a text"),
        ("preferences", {"prompt": "x"}, r"bad\.jsonl:1: data\.preferences needs prompt \+"),
        ("sft", {"messages": []}, r"bad\.jsonl:1: 'messages' is empty"),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path, own, part, row, fault) -> None:
    own[part] = _write_rows(tmp_path / "bad.jsonl", [row])
    with pytest.raises(InputError, match=fault):
        prepare.prepare(_recipe(**own), tmp_path / "run", _quiet)


def test_plain_text_is_refused_for_rows_and_read_as_prompts(tmp_path, own, text) -> None:
    with pytest.raises(InputError, match="plain text; write JSON lines"):
        prepare.prepare(_recipe(**own | {"sft": str(text)}), tmp_path / "run", _quiet)
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(InputError, match="is empty; write JSON lines"):
        recipe = _recipe(**own | {"sft": str(tmp_path / "none.jsonl")})
        prepare.prepare(recipe, tmp_path / "run", _quiet)
    (tmp_path / "asks.txt").write_text("\n".join(f"Prompt {n}?" for n in range(30)))
    recipe = _recipe(**own | {"prompts": str(tmp_path / "asks.txt")}, validation=0.1)
    assert prepare.prepare(recipe, tmp_path / "run", _quiet).tasks("rl", "train")


def test_a_vocabulary_too_large_for_the_text_is_refused(tmp_path, text) -> None:
    recipe = recipe_from({"data": {"pretrain": str(text)}, "tokenizer": {"vocab_size": 50_000}})
    with pytest.raises(InputError, match="vocab_size=50000 is too large"):
        prepare.prepare(recipe, tmp_path / "run", _quiet)
    data = prepare.prepare_tokenizer(recipe, tmp_path / "run", _quiet, exact=False)
    assert data.tokenizer().vocab_size < 50_000


def test_an_own_tokenizer_is_adopted(tmp_path, text) -> None:
    first = prepare.prepare_tokenizer(_world(), tmp_path / "one", _quiet)
    values = _recipe(pretrain=str(text)).to_dict()
    values["tokenizer"] = {"path": str(tmp_path / "one" / "tokenizer")}
    lines: list[str] = []
    second = prepare.prepare_tokenizer(recipe_from(values), tmp_path / "two", lines.append)
    assert second.report["tokenizer"]["origin"] == "adopted"
    assert second.tokenizer().encode("Ada 12") == first.tokenizer().encode("Ada 12")
    values["tokenizer"] = {"path": str(tmp_path)}
    with pytest.raises(InputError, match=r"holds no tokenizer: write a folder"):
        prepare.prepare_tokenizer(recipe_from(values), tmp_path / "three", _quiet)


def test_rows_alone_suffice_where_a_model_from_elsewhere_is_started_from(tmp_path, own) -> None:
    prepare.prepare_tokenizer(_world(), tmp_path / "one", _quiet)
    del own["pretrain"]
    values = _recipe(**own).to_dict() | {"tokenizer": {}}
    with pytest.raises(InputError, match=r"data\.pretrain is missing"):
        prepare.prepare(recipe_from(values), tmp_path / "two", _quiet)
    values["sft"] = {"from": str(tmp_path / "one" / "tokenizer")}
    data = prepare.prepare(recipe_from(values), tmp_path / "two", _quiet)
    assert data.report["tokenizer"]["origin"] == "adopted"
    assert set(data.report) == {"tokenizer", "sft", "reward", "rl"}


def test_checkers_know_the_vocabulary_when_the_data_are_opened(tmp_path, text, monkeypatch) -> None:
    from fourstage.data import words

    recipe = _recipe(pretrain=str(text))
    prepare.prepare(recipe, tmp_path / "run", _quiet)
    monkeypatch.setattr(words, "_LOADED", {})
    task = PreparedData.open(tmp_path / "run").tasks("rl", "train")[0]
    assert 0 <= tasks.gold(task, "Ada mended the lantern near the station.") <= 1
