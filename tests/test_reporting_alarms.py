"""Alarms of reinforcement learning: each is raised by its fault, once, and by nothing healthy."""

from __future__ import annotations

from typing import Any

import pytest

from fourstage.reporting.alarms import NAMES, Lookout, alarms
from fourstage.reporting.events import events, flags
from fourstage.reporting.runfiles import StageFiles
from fourstage.reporting.sections.stability import stability

COUNT = 30
HEALTHY: dict[str, Any] = {
    "kl": lambda i: 0.3 * i,
    "entropy": lambda i: 2.0 - 0.02 * i,
    "length": lambda i: 40 + i,
    "reward": lambda i: 0.05 * i,
    "gold": lambda i: 0.4 + 0.01 * i,
    "clip_fraction": lambda i: 0.1,
    "ratio_deviation": lambda i: 0.05,
    "dead_groups": lambda i: 0.3,
    "explained_variance": lambda i: -0.5 if i < 4 else 0.4,
    "distinct_2": lambda i: 0.8 - 0.005 * i,
    "self_overlap": lambda i: 0.3 + 0.01 * i,
    "reward_faults/math": lambda i: float(i % 3 == 0),
    "correction_fraction": lambda i: 0.01,
    "watch_reward": lambda i: 0.04 * i,
    "proxy_unfamiliar": lambda i: 0.02 + 0.005 * i,
    "proxy_disagreement": lambda i: 1.0 + 0.01 * i,
    "reward_chosen": lambda i: 0.1 * i - 2,
    "validation_loss": lambda i: 0.6 - 0.01 * i,
}
# Rows of given comparisons are of no iteration.
GIVEN: dict[str, Any] = {"iteration": lambda i: None}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "kl": ({"kl": lambda i: 0.1 * 1.3**i}, "nats a response"),
    "entropy": ({"entropy": lambda i: 2.0 * 0.8**i}, "nats a token of entropy"),
    "length": ({"length": lambda i: 40 * 1.1**i}, "tokens a response"),
    "over-optimisation": ({"gold": lambda i: 0.5 - 0.02 * abs(i - 10)}, "while the reward rose"),
    "clips": ({"clip_fraction": lambda i: 0.5, "ratio_deviation": lambda i: 0.3}, "50% clipped"),
    "dead groups": ({"dead_groups": lambda i: 0.95}, "95% of groups"),
    "critic": ({"explained_variance": lambda i: -0.2}, "explained variance"),
    "diversity": ({"distinct_2": lambda i: 0.8 * 0.9**i}, "distinct-2"),
    "faults": ({"reward_faults/math": lambda i: 4.0}, "4 faults of math"),
    "correction": ({"correction_fraction": lambda i: 0.3}, "30% of tokens"),
    "watcher": ({"watch_reward": lambda i: 0.5 - 0.05 * abs(i - 10)}, "that only watches"),
    "unfamiliar": ({"proxy_unfamiliar": lambda i: 0.02 * i}, "hardly have any"),
    "disagreement": ({"proxy_disagreement": lambda i: 1 + 0.1 * i}, "2.1 times as much"),
    "displacement": (GIVEN | {"reward_chosen": lambda i: -0.8 * i}, "far less likely"),
    "over-fitting": (GIVEN | {"validation_loss": lambda i: 0.5 + 0.02 * abs(i - 9)}, "after 0.5"),
}


# What alarms of updates look at: every row has other numbers, also within an iteration.
OF_UPDATES = ("clips",)
GIVEN_ALONE = ("displacement", "over-fitting")


def rows(**changed) -> list[dict[str, Any]]:
    told = HEALTHY | changed
    made: list[dict[str, Any]] = [
        {"step": 4 * i + 4, "tokens": 100 * i, "iteration": i, **{n: f(i) for n, f in told.items()}}
        for i in range(COUNT)
    ]
    # Rows between iterations, of a validation or an event, say nothing.
    return [row for each in made for row in ({"step": each["step"] - 1, "loss": 0.1}, each)]


@pytest.mark.parametrize("kind", [{}, GIVEN])
def test_a_healthy_run_raises_none(kind):
    assert alarms(rows(**kind)) == [] and alarms([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_fault_raises_its_alarm_once_with_what_to_do(name):
    changed, words = FAULTS[name]
    (alarm,) = alarms(rows(**changed))
    assert alarm.name == name and words in alarm.what and "rl." in alarm.remedy


@pytest.mark.parametrize("name", NAMES)
def test_an_alarm_stands_where_it_is_first_seen(name):
    made = rows(**FAULTS[name][0])
    (alarm,) = alarms(made)
    until = [row for row in made if row["step"] <= alarm.step]
    before = [row for row in until if row["step"] < alarm.step]
    assert alarms(until) == [alarm] and alarms(before) == []


def every_update(made: list[dict[str, Any]], updates: int = 4) -> list[dict[str, Any]]:
    """The rows where each update has one: those of an iteration tell the same of what it drew."""
    told = [row for row in made if "iteration" in row]
    repeated = [(row, update) for row in told for update in range(updates)]
    return [{**row, "step": row["step"] - updates + 1 + n} for row, n in repeated]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_UPDATES + GIVEN_ALONE])
def test_an_iteration_counts_once_however_many_rows_tell_of_it(name):
    """At its first row, which is when it is known."""
    made = rows(**FAULTS[name][0])
    (alarm,) = alarms(made)
    (often,) = alarms(every_update(made))
    assert (often.name, often.what) == (name, alarm.what)
    assert often.step == alarm.step - 3
    # The row of step 1 stands beside that of the first whole iteration.
    (twice,) = alarms([{**made[1], "step": 1}, *made])
    assert twice == alarm


def first_alone(before: int, fault: float, healthy: float):
    return lambda i: fault if i < before else healthy


def test_faults_of_few_iterations_are_none_where_each_update_has_a_row():
    one = rows(**{"reward_faults/math": first_alone(1, 4.0, 0.0)})
    assert alarms(every_update(one)) == []
    three = rows(**{"reward_faults/math": first_alone(3, 4.0, 0.0)})
    assert [alarm.step for alarm in alarms(every_update(three))] == [9]


@pytest.mark.parametrize("updates", [4, 16])
def test_a_critic_has_five_iterations_to_learn_where_each_update_has_a_row(updates):
    early = rows(explained_variance=first_alone(5, -0.5, 0.4))
    assert alarms(every_update(early, updates)) == []


def test_clips_are_of_updates_each_of_which_counts():
    clipped = {"clip_fraction": first_alone(1, 0.5, 0.0), "ratio_deviation": lambda i: 0.3}
    assert alarms(rows(**clipped)) == []
    (alarm,) = alarms(every_update(rows(**clipped)))
    assert (alarm.name, alarm.step) == ("clips", 3)


def test_rows_of_given_comparisons_count_each():
    made = [{"step": step, "reward_chosen": -20.0} for step in (1, 2, 3)]
    assert [alarm.step for alarm in alarms(made)] == [3] and alarms(made[:2]) == []


@pytest.mark.parametrize(("first", "last", "raised"), [
    (0.3, 0.9, True), (0.3, 0.75, False), (0.6, 1.0, False),
])  # fmt: skip
def test_answers_to_one_prompt_that_become_alike_are_seen_by_what_they_share(first, last, raised):
    made = rows(self_overlap=lambda i: first if i < 6 else last)
    assert [alarm.name for alarm in alarms(made)] == ["diversity"] * raised
    assert all("0.90 self-overlap, 0.30 at first" in alarm.what for alarm in alarms(made))


class Counted(dict):
    """A row that counts how often it is asked."""

    asked = 0

    def get(self, *of):
        self.asked += 1
        return super().get(*of)


def test_a_row_is_looked_at_when_it_comes_and_never_again():
    lookout, made = Lookout(), [Counted(row) for row in rows()]
    asked = [0] * len(made)
    for index, row in enumerate(made):
        lookout(row)
        asked[index] = row.asked
    assert [row.asked for row in made] == asked and max(asked) == asked[-1] < 2 * len(NAMES)


def test_narrow_clips_of_whole_responses_are_no_alarm():
    gspo = {"clip_fraction": lambda i: 0.9, "ratio_deviation": lambda i: 0.001}
    assert alarms(rows(**gspo)) == []


def test_numbers_that_are_missing_or_not_finite_raise_none():
    assert alarms([{"step": i, "iteration": i} for i in range(COUNT)]) == []
    nothing = [{name: None for name in HEALTHY} | {"step": i, "iteration": i} for i in range(9)]
    assert alarms(nothing) == []


def test_alarms_are_told_among_the_events_of_a_report(tmp_path):
    spike = {"step": 9, "event": "skip", "cause": "loss", "value": 9.0}
    made = [*rows(dead_groups=lambda i: 0.95), spike]
    found = events(made)
    assert [event.step for event in found] == [9, 12]
    assert found[1].is_told and "rl.dynamic_sampling" in found[1].done
    assert len(flags(made)) == 2
    stage = StageFiles("rl", tmp_path, rows=made)
    text = str(stability(stage))
    assert "teach nothing" in text and "what to do" in text
