"""docs/metrics.md tells every number of reinforcement learning, and every alarm."""

from __future__ import annotations

import re
from pathlib import Path

from fourstage.objectives.algorithms import ALGORITHMS
from fourstage.reporting.alarms import NAMES
from fourstage.training.metrics import read_rows
from pipeline_support import whole_run
from test_stages_algorithms import trained
from test_stages_rollouts import KINDS, WORDS

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")


def chapter(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def names() -> set[str]:
    """All that stands in code in the first column of a table."""
    text = chapter("In every stage") + chapter("rl")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {re.sub("/NAME$", "", name) for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def watched(name: str) -> bool:
    """Told in docs/training.md, of every stage."""
    last = name.rpartition(".")[2]
    return last.startswith(("activation_", "attention_logit", "logit_max", "log_z", "update_ratio"))


def test_every_number_of_reinforcement_learning_is_told(tmp_path, tmp_path_factory):
    found = {name for row in read_rows(
        whole_run(tmp_path_factory.getbasetemp()) / "rl" / "metrics.jsonl") for name in row
    }  # fmt: skip
    for number, more in enumerate(KINDS.values()):
        _, rows = trained(tmp_path / str(number), 4, **more)
        found |= {name for row in rows for name in row}
    left = {"algorithm": "dapo", "group": 4, "overlong": "leave_out", "rewards": WORDS}
    _, rows = trained(tmp_path / "left", 1, **left)
    found |= {name for row in rows for name in row}
    told = names()
    lacking = {name for name in found if name.partition("/")[0] not in told and not watched(name)}
    assert not lacking
    for name in ("redrawn_groups", "left_out", "correction_fraction", "explained_variance"):
        assert name in found


def test_every_alarm_is_told():
    alarms = chapter("rl").split("### Alarms")[1].split("results.json")[0]
    assert set(re.findall(r"^\| ([a-z -]+) \|", alarms, re.M)) - {"alarm"} == set(NAMES)


def test_every_algorithm_without_a_reference_is_named_where_its_alarms_are():
    """The alarm `kl` cannot be raised there."""
    text = chapter("rl").split("**Without a reference**")[1].split("results.json, at")[0]
    named = {name for name in ALGORITHMS if f"`{name}`" in text}
    assert named == {name for name, row in ALGORITHMS.items() if not row.needs_reference}
