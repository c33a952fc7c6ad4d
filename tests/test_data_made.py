"""Instructions made from a text: the real passage is right, other answers are not."""

from __future__ import annotations

import pytest

from data_texts import chinese, english
from fourstage import tasks
from fourstage.data.made import KINDS
from fourstage.data.making import Limits, Maker, free_task, paragraphs_of, pool, reference_task
from fourstage.data.words import HAN, SPACED, Vocabulary, script_of
from fourstage.errors import InputError
from fourstage.tasks import Task

TEXTS = {SPACED: [english(200)], HAN: [chinese(200)]}
LIMITS = Limits(12, 120)


def _made(script: str, count: int = 80, seed: int = 0) -> list[tuple[Task, str]]:
    maker = Maker(Vocabulary.of(TEXTS[script]), LIMITS, seed)
    return list(maker.make(paragraphs_of(TEXTS[script]), "sft", count))


MADE = {script: _made(script) for script in TEXTS}
every_script = pytest.mark.parametrize("script", list(TEXTS))


@every_script
def test_the_real_passage_is_right_and_reaches_the_ceiling(script: str) -> None:
    assert {task.kind for task, _ in MADE[script]} == set(KINDS)
    for task, real in MADE[script]:
        assert tasks.success(task, real)
        assert tasks.gold(task, real) == tasks.best_gold(task) == 1.0


@every_script
def test_empty_repeated_and_foreign_answers_are_wrong(script: str) -> None:
    for task, real in MADE[script]:
        others = ["", real + real + real, "zxq vvw qqk zxq.", str(task.prompt), "。。。"]
        for other in others:
            assert not tasks.success(task, other), (task, other)
            assert 0 <= tasks.gold(task, other) < 1


@every_script
def test_the_wording_is_in_the_language_of_the_text(script: str) -> None:
    for task, _ in MADE[script]:
        assert script_of(str(task.prompt)) == script


@every_script
def test_making_is_a_function_of_the_seed(script: str) -> None:
    assert _made(script) == MADE[script]
    assert _made(script, seed=1) != MADE[script]
    assert _made(script, count=20) == MADE[script][: len(_made(script, count=20))]


@every_script
def test_no_prompt_is_made_twice_and_tasks_survive_json(script: str) -> None:
    prompts = [task.prompt for task, _ in MADE[script]]
    assert len(set(prompts)) == len(prompts)
    assert all(Task.from_json(task.to_json()) == task for task, _ in MADE[script])


def _of(kind: str, script: str = SPACED) -> tuple[Task, str]:
    return next(pair for pair in MADE[script] if pair[0].kind == kind)


def test_gold_counts_the_requested_words_that_are_there() -> None:
    task, real = _of("words")
    without = real.replace(task.facts["words"][0], "station").replace(
        task.facts["words"][0].capitalize(), "Station"
    )
    assert tasks.gold(task, without) < 1 and not tasks.success(task, without)


def test_an_opening_must_be_begun_with_and_gone_on_from() -> None:
    task, real = _of("begin")
    assert not tasks.success(task, task.facts["opening"])
    assert not tasks.success(task, "Ada went. " + real)


def test_a_choice_is_right_wrong_or_outside_of_what_was_offered() -> None:
    task, _ = _of("choose")
    wrong = next(w for w in task.facts["offered"] if w != task.facts["answer"])
    assert tasks.success(task, f" {task.facts['answer'].upper()}.")
    assert tasks.gold(task, wrong) == 0.3
    assert tasks.gold(task, "neither of them") == 0.0


def test_copying_the_given_text_is_no_continuation() -> None:
    task, _ = _of("continue")
    assert not tasks.success(task, task.facts["given"] + ".")


def test_parts_of_the_text_are_disjoint() -> None:
    paragraphs = paragraphs_of(english(400).split("\n\n"))
    parts = [pool(paragraphs, name) for name in ("sft", "preferences", "prompts")]
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            assert not set(part) & set(other)


def test_an_own_prompt_with_an_answer_is_judged_by_shared_words() -> None:
    task = reference_task("Who?", "Ada mended the lantern")
    assert tasks.success(task, "It was Ada, who mended the lantern")
    assert not tasks.success(task, "Bela did")
    assert tasks.gold(task, "Ada mended the lantern.") == 1.0


def test_an_own_prompt_alone_is_judged_by_manners() -> None:
    task = free_task("Tell me about the harbour.", Vocabulary.of(TEXTS[SPACED]), LIMITS)
    assert tasks.success(task, "Ada mended the lantern near the library.")
    assert not tasks.success(task, "Ada mended the lantern near the")
    assert tasks.gold(free_task("Hi", None, LIMITS), "Unheard words, all.") == 1.0


def test_a_task_whose_vocabulary_is_not_loaded_is_refused_in_words() -> None:
    task, real = _of("words")
    lost = Task(task.prompt, task.kind, task.facts | {"vocabulary": "0" * 16})
    with pytest.raises(InputError, match="open the run's data first"):
        tasks.gold(lost, real)


def test_a_task_without_a_checker_is_refused() -> None:
    with pytest.raises(ValueError, match="no known checker"):
        tasks.success(Task("Hi", "free", {}), "x")
