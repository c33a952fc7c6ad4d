"""`inspect data`: the usable rows in numbers, and rows shown as training will read them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor_support import (
    DIALOGUE,
    STORY,
    called,
    findings,
    found,
    lines_file,
    printed,
    tokenizer,
    told,
)
from fourstage.data.decontamination import Contamination
from fourstage.reporting.doctor import Tools
from fourstage.reporting.doctor.measuring import Sample


def number(file):
    assert file.measured is not None
    return file.measured


def test_lengths_are_those_of_the_rows_that_training_reads(tmp_path, capsys):
    speaks = tokenizer()
    speaks.save(tmp_path / "tokenizer")
    path = lines_file(tmp_path / "rows.jsonl", DIALOGUE)
    size = len(speaks.chat_example(DIALOGUE["messages"]).tokens)
    arguments = (path, "--tokenizer", tmp_path / "tokenizer", "--context")
    (entry,) = told(capsys, *arguments, size - 1)
    assert entry["tokens"]["longest"] == entry["tokens"]["total"] == size
    assert entry["tokens"]["over_context"] == 0 and not entry["tokens"]["estimated"]
    (entry,) = told(capsys, *arguments, size - 2)
    assert entry["tokens"]["over_context"] == 1


def test_a_comparison_is_as_long_as_its_longer_side(tmp_path):
    speaks = tokenizer()
    asked = DIALOGUE["messages"][:1]
    row = {"prompt": asked, "chosen": STORY, "rejected": "No."}
    file = found(lines_file(tmp_path / "rows.jsonl", row), Tools(tokenizer=speaks))
    whole = [*asked, {"role": "assistant", "content": STORY}]
    size = len(speaks.reward_row(whole))
    assert number(file).tokens.tolist() == [size]
    for context, over in ((size, 0), (size - 1, 1)):
        tools = Tools(tokenizer=speaks, context=context)
        assert number(found(tmp_path / "rows.jsonl", tools)).over == over
    assert "⟦<|end|>⟧<|reward|>" in printed([file], Tools(tokenizer=speaks))


def test_without_a_tokenizer_the_estimate_says_that_it_is_one(tmp_path, capsys):
    path = lines_file(tmp_path / "rows.jsonl", {"text": STORY})
    (entry,) = told(capsys, path)
    assert entry["tokens"]["estimated"]
    assert entry["tokens"]["total"] == pytest.approx(len(STORY) / 4, abs=3)
    assert "--tokenizer DIR" in " ".join(printed(findings(path)).split())


def test_repeats_are_counted_within_a_file_and_across_files(tmp_path):
    near = STORY.replace("evening", "morning")
    lines_file(tmp_path / "a.jsonl", *({"text": text} for text in (STORY, STORY, near, "other")))
    lines_file(tmp_path / "b.jsonl", {"text": STORY}, {"text": "its own"})
    first, second = findings(tmp_path)
    assert (number(first).exact, number(first).near, number(first).elsewhere) == (1, 1, 0)
    assert (number(second).exact, number(second).near, number(second).elsewhere) == (0, 0, 1)


def test_rows_that_are_bad_are_not_counted_in_the_numbers(tmp_path):
    file = found(lines_file(tmp_path / "rows.jsonl", DIALOGUE, DIALOGUE, {"text": STORY}))
    assert len(number(file).tokens) == file.usable == 2


def test_languages_and_personal_data_are_counted(tmp_path):
    texts = [STORY, "灯塔看守人每天晚上走下楼梯，数着经过港口的船只。", f"{STORY} anna@example.org"]
    file = found(lines_file(tmp_path / "rows.jsonl", *({"text": text} for text in texts)))
    assert number(file).languages == {"en": 2, "zh": 1}
    assert number(file).pii.total() == 1


def test_a_row_that_holds_a_reference_is_told_with_both_places(tmp_path, capsys):
    path = lines_file(tmp_path / "rows.jsonl", {"text": "clean"}, {"text": f"See: {STORY.upper()}"})
    against = lines_file(tmp_path / "test.jsonl", {"prompt": "Name a river."}, {"prompt": STORY})
    (entry,) = told(capsys, path, "--against", against)
    assert entry["contamination"]["rows"] == 1
    (hit,) = entry["contamination"]["hits"]
    assert hit["line"] == 2 and hit["references"] == ["test.jsonl:2"]
    assert "test.jsonl:2" in called(capsys, path, "--against", against)[1]


@given(st.integers(0, 500), st.integers(1, 20))
def test_a_sample_is_spread_evenly_and_never_too_large(offered, most):
    sample = Sample(most)
    for value in range(offered):
        sample.offer(lambda value=value: value)
    assert len(sample.values) <= most
    assert len(sample.values) >= min(offered, most // 2)
    assert len(set(np.diff(sample.values))) <= 1


def test_examples_show_what_is_trained_and_tell_typed_text_from_special_tokens(tmp_path):
    messages = [
        {"role": "user", "content": "Say <|end|> please"},
        {"role": "assistant", "content": "It is Paris."},
    ]
    path = lines_file(tmp_path / "rows.jsonl", {"messages": messages})
    tools = Tools(tokenizer=tokenizer())
    text = printed(findings(path, tools=tools), tools)
    shown = text[text.index("<|user|>") :]
    assert shown.startswith("<|user|>Say <|end|> please<|end|><|assistant|>⟦It is Paris.⟧⟦<|end|>⟧")


def test_without_a_tokenizer_the_trained_turns_are_marked(tmp_path):
    path = lines_file(tmp_path / "rows.jsonl", DIALOGUE)
    assert "<|assistant|>⟦It is Paris.⟧" in printed(findings(path))


def test_examples_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = [{"text": f"{STORY} {number}"} for number in range(50)]
    there = found(lines_file(tmp_path / "a.jsonl", *rows), Tools(examples=3))
    back = found(lines_file(tmp_path / "b.jsonl", *rows[::-1]), Tools(examples=3))
    texts = [[row.text for row in number(file).examples] for file in (there, back)]
    assert texts[0] == texts[1] and len(texts[0]) == 3


@pytest.mark.parametrize("width", [30, 60, 200])
def test_the_report_is_readable_at_any_width(tmp_path, width):
    lines_file(tmp_path / "a.jsonl", DIALOGUE, DIALOGUE, "{", '{"text": "\\ud800"}')
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / "c.txt").write_text(STORY)
    contamination = Contamination([("test:1", STORY)])
    tools = Tools(contamination=contamination, context=8, examples=2)
    text = printed(findings(tmp_path, tools=tools), tools, width)
    assert f"data.sft={tmp_path}/a.jsonl" in text
    assert f"{tmp_path}/a.jsonl:3" in text
    text.encode("utf-8")


def test_json_is_ascii_whatever_rows_and_names_hold(tmp_path, capsys):
    name = b"r\xff.jsonl".decode("utf-8", "surrogateescape")
    path = lines_file(tmp_path / name, {"text": "one"}, '{"\\ud800": 1}')
    code, out, _ = called(capsys, path, "--json")
    assert code == 0 and out.isascii() and out.count("\n") == 1
    assert json.loads(out)["files"][0]["rows"] == 2


def test_an_answer_of_weight_zero_is_shown_as_context(tmp_path):
    turns = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "No.", "loss_weight": 0},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Yes."},
    ]
    path = lines_file(tmp_path / "rows.jsonl", {"messages": turns})
    for tools in (Tools(), Tools(tokenizer=tokenizer())):
        text = printed(findings(path, tools=tools), tools)
        assert "<|assistant|>No." in text and "<|assistant|>⟦Yes.⟧" in text


def test_every_side_of_a_row_is_shown_with_what_it_is_worth(tmp_path):
    asked = {"prompt": "Name a river."}
    lines_file(tmp_path / "a.jsonl", {**asked, "chosen": "The Elbe.", "rejected": "The Alps."})
    ranked = {**asked, "responses": ["The Alps.", "The Elbe."], "scores": [1, 4.5]}
    lines_file(tmp_path / "b.jsonl", ranked)
    lines_file(tmp_path / "c.jsonl", {**asked, "completion": "The Elbe.", "label": True})
    lines_file(tmp_path / "d.jsonl", {"question": "2 + 2?", "answer": "It is 4.\n#### 4"})
    text = printed(findings(tmp_path))
    for part in ("chosen", "rejected", "score 1", "score 4.5", "label true", "ground truth: 4"):
        assert part in text
    assert text.count("⟦The Alps.⟧") == 2


def test_a_prompt_has_nothing_that_is_trained(tmp_path):
    path = lines_file(tmp_path / "rows.jsonl", {"prompt": "Name a river."})
    for tools in (Tools(), Tools(tokenizer=tokenizer())):
        text = printed(findings(path, tools=tools), tools)
        assert "<|user|>Name a river." in text and "⟦" not in text.partition("<|special|>")[2]


def test_a_folder_stands_for_its_files_where_all_of_them_fit_the_same(tmp_path, capsys):
    for name in ("books/a", "books/in/b", "talks/c", "talks/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        lines_file(tmp_path / f"{name}.jsonl", {"text": STORY} if name != "talks/c" else DIALOGUE)
    _, out, _ = called(capsys, tmp_path, tmp_path / "books" / "a.jsonl")
    fits = [line.split()[0] for line in out.split("\n") if line.startswith("  data.")]
    assert fits == [
        f"data.pretrain={tmp_path}/books",
        f"data.sft={tmp_path}/talks/c.jsonl",
        f"data.pretrain={tmp_path}/talks/d.jsonl",
    ]
