"""Alarms are said while a stage trains: each once, in the words of the report, and none is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fourstage.errors import Interrupted
from fourstage.reporting.alarms import Alarm, alarms
from fourstage.stages import alarming
from fourstage.stages.alarming import SaidAlarms
from fourstage.training.metrics import Rows, read_rows
from test_reporting_alarms import FAULTS, every_update, rows
from training_support import KillsItself, same_bits, tiny_model, trainer, weights_of


class Stage:
    """A stage's rows as they are written and looked at, by one process after another."""

    def __init__(self, folder: Path):
        self.rows = Rows(folder / "metrics.jsonl")
        self.begin()

    def begin(self) -> None:
        """A process of its own: nothing was said by it."""
        self.said: list[str] = []
        self.alarms = SaidAlarms(self.rows.path, self.said.append)

    def write(self, *made: dict[str, Any]) -> None:
        for row in made:
            self.alarms(self.rows.append(row))

    @property
    def report(self) -> list[Alarm]:
        return alarms(read_rows(self.rows.path))


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


def line(alarm: Alarm) -> str:
    return f"rl: alarm at step {alarm.step:g}: {alarm.what}; {alarm.remedy}"


BROKEN = every_update(rows(**FAULTS["dead groups"][0], **FAULTS["faults"][0]))


def test_an_alarm_is_said_at_the_row_that_raises_it_and_once(stage):
    for row in BROKEN:
        before = [*stage.said]
        stage.write(row)
        assert stage.said == [line(each) for each in stage.report]
        raised = [line(each) for each in stage.report if each.step == row["step"]]
        assert stage.said == before + raised
    assert len(stage.said) == 2
    stage.alarms.catch_up()
    assert len(stage.said) == 2, "nothing is left to be said at the end"


def test_all_rows_are_read_at_the_first_alone(stage, monkeypatch):
    reads = []
    monkeypatch.setattr(alarming, "read_rows", lambda path: reads.append(path) or read_rows(path))
    stage.write(*BROKEN)
    assert len(reads) == 1 and stage.said


def test_a_process_that_goes_on_says_what_was_raised_before_once(stage):
    stage.write(*BROKEN[:20])
    earlier = [*stage.said]
    stage.begin()
    stage.write(BROKEN[20])
    assert stage.said == earlier == [line(each) for each in stage.report]
    stage.write(*BROKEN[21:])
    assert stage.said == earlier


def test_means_go_on_where_the_process_before_ended(stage):
    stage.write(*BROKEN[:8])
    assert not stage.said
    stage.begin()
    stage.write(*BROKEN[8:10])
    assert len(stage.said) == 2 and stage.said == [line(each) for each in stage.report]


def test_rows_that_a_rollback_takes_back_count_no_more(stage):
    healthy = [{**row, "dead_groups": 0.1, "reward_faults/math": 0.0} for row in BROKEN]
    stage.write(*BROKEN[:8])
    stage.rows.cut_back(4)
    stage.write(*healthy[4:12])
    assert stage.said == [] == stage.report
    stage.write(*BROKEN[12:])
    assert stage.said == [line(each) for each in stage.report] and len(stage.said) == 2
    stage.rows.cut_back(8)
    stage.write(*healthy[8:20], *BROKEN[20:])
    assert stage.said[2:] == [line(each) for each in stage.report], "those of other steps"


def test_what_was_trained_before_is_said_by_who_finds_it_done(stage):
    for row in BROKEN:
        stage.rows.append(row)
    stage.alarms.catch_up()
    assert stage.said == [line(each) for each in stage.report] and len(stage.said) == 2


class Dead(KillsItself):
    """Iterations of two steps whose groups teach nothing, cut off by SIGTERM at a step."""

    def metrics(self) -> dict[str, float]:
        return {"iteration": (len(self.asked) - 1) // 2, "dead_groups": 1.0}


def train(folder: Path, said: list[str] | None, at: int = -1) -> dict[str, Any]:
    """The weights in the end; what is said of alarms goes to `said`, None looks at no row."""
    model = tiny_model()
    running = trainer(folder, model, Dead(at), log_every=1)
    if said is not None:
        running.journal.reader = SaidAlarms(folder / "metrics.jsonl", said.append)
    running.train()
    return weights_of(model)


def test_looking_at_rows_moves_no_bit_of_training(tmp_path):
    said: list[str] = []
    assert same_bits(train(tmp_path / "a", said), train(tmp_path / "b", None))
    (alarm,) = alarms(read_rows(tmp_path / "a" / "metrics.jsonl"))
    assert said == [line(alarm)] and alarm.step == 5


def test_an_interrupt_loses_no_alarm(tmp_path):
    said: list[str] = []
    with pytest.raises(Interrupted):
        train(tmp_path, said, at=6)
    assert len(said) == 1 and "100% of groups teach nothing" in said[0]
    train(tmp_path, said)
    assert said[1:] == said[:1], "once by each process"
