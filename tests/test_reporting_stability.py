"""What the page shows of the guards' events and of the numbers that were watched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fourstage.reporting import build_report
from fourstage.reporting.charts import Chart, Flag, Series
from fourstage.reporting.events import events, flags
from fourstage.reporting.runfiles import StageFiles
from fourstage.reporting.sections.stability import EVENTS_SHOWN, stability
from fourstage.reporting.watched import watched
from fourstage.training.counts import Counts
from fourstage.training.events import cause_of, react, rollback_row
from fourstage.training.reactions import Rollback, Stability
from fourstage.training.settings import TrainSettings
from fourstage.training.spikes import Spike
from fourstage.training.update import Outcome
from reporting_run import write_run

SPIKE = Spike("loss", 9.31, 3.02, 14.2)
LAYER = "model.layers.1.mlp.up_proj"


def event(on_spike: str, outcome: Outcome, step: int = 121) -> dict[str, Any]:
    """The row that the trainer writes of an odd step."""
    settings = TrainSettings(steps=1000, learning_rate=1e-3, on_spike=on_spike)
    counts = Counts(step=step, tokens=1536 * step)
    cause = cause_of(outcome)
    return react(outcome, cause, Stability(settings), counts)[1] | {"tokens": counts.tokens}


def spiked(applied: bool) -> Outcome:
    return Outcome(9.31, 0.5, {}, applied=applied, spike=SPIKE)


def looks(**columns: Any) -> dict[str, Any]:
    return {"step": 8, "activation_rms": [1.0, 4.0, 2.0], **columns}


def stage(rows: Sequence[dict] = (), layers: Sequence[dict] = ()) -> StageFiles:
    return StageFiles("pretrain", Path("pretrain"), rows=list(rows), layers=list(layers))


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def places(svg: str) -> tuple[list[float], list[tuple[float, float]]]:
    """Where the flags of a drawing stand, and the points of its last line."""
    flagged = re.findall(r'class="flag[^>]*><title>[^<]*</title><line x1="([\d.]+)"', svg)
    points = re.findall(r'<polyline points="([^"]+)"', svg)[-1].split()
    return [float(x) for x in flagged], [tuple(map(float, p.split(","))) for p in points]


@pytest.mark.parametrize("log", [False, True])
def test_a_flag_stands_above_the_point_of_its_step(log):
    line = Series("", [(float(step), 1.0 / step) for step in range(1, 12)])
    chart = Chart([line], "step", "loss", "loss", x_log=log, flags=[Flag(9, "b"), Flag(3, "a")])
    flagged, points = places(chart.svg())
    assert flagged == [points[2][0], points[8][0]]


def test_a_flag_outside_the_line_widens_the_axis_and_one_before_a_logarithmic_axis_stands_at_it():
    line = Series("", [(4.0, 1.0), (8.0, 2.0)])
    flagged, points = places(Chart([line], "", "", "", flags=[Flag(1, ""), Flag(9, "")]).svg())
    assert flagged[0] < points[0][0] and points[-1][0] < flagged[1]
    flagged, points = places(Chart([line], "", "", "", x_log=True, flags=[Flag(0, "")]).svg())
    assert flagged == [points[0][0]]


def test_flags_that_would_cover_one_another_are_drawn_as_one_that_tells_how_many():
    line = Series("", [(0.0, 1.0), (1e5, 2.0)])
    several = [Flag(500.0 + step, f"step {step}", hollow=step < 9) for step in range(10)]
    svg = Chart([line], "", "", "", flags=several).svg()
    assert svg.count('class="flag"') == 1
    assert "<title>step 0\nstep 1\nstep 2\nand 7 more</title>" in svg
    assert 'class="flag hollow"' in Chart([line], "", "", "", flags=several[:9]).svg()


@pytest.mark.parametrize(
    ("row", "seen", "done"),
    [
        (event("warn", spiked(True)), "loss 9.310, 14.2 deviations above the usual 3.020", "told"),
        (event("skip", spiked(False)), "loss 9.310", "the update was left out"),
        (event("lower_rate", spiked(True)), "loss 9.310", "applied; .* rate is 0.500 of"),
        (
            event("lower_rate", Outcome(1.0, 1.0, {}, f"the weights of {LAYER}.weight")),
            f"not finite: the weights of {LAYER}.weight",
            "left out; .* rate is 0.500 of",
        ),
        (
            rollback_row(Rollback(9, 13, 9, 12, cause_of(spiked(False))), 10),
            "at step 13 loss 9.310",
            "went back to step 9, and on without batches 9 to 12",
        ),
    ],
)
def test_each_event_of_the_trainer_is_told_in_words(row, seen, done):
    (told,) = events([row])
    assert told.seen.startswith(seen)
    assert re.match(done, told.done)
    assert told.is_told == (row["event"] == "warning")
    assert told.step == row["step"]


def test_events_are_flags_of_the_loss_and_a_table(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("pretrain", "sft", "reward", "rl"):
        before = build_report(run).read_text(encoding="utf-8").count('class="flag"')
        append(run / name / "metrics.jsonl", event("skip", spiked(False)))
        text = build_report(run).read_text(encoding="utf-8")
        assert text.count('class="flag"') == before + 2  # a drawing for a desk, one for a phone
    assert text.count("<title>step 121: loss 9.310, 14.2 deviations") == 8
    assert text.count("What happened: ") == 4


def test_pretraining_flags_stand_at_their_tokens():
    rows = [{"step": 1, "loss": 2.0, "tokens": 1536}, event("skip", spiked(False))]
    assert [flag.x for flag in flags(rows, "tokens")] == [1536 * 121]
    assert [flag.x for flag in flags(rows)] == [121]


def test_very_many_events_are_counted():
    rows = [event("skip", spiked(False), step) for step in range(1, EVENTS_SHOWN + 8)]
    text = stability(stage(rows))
    assert text.count("the update was left out") == EVENTS_SHOWN
    assert "and 7 more in metrics.jsonl" in text


def test_names_and_events_can_inject_no_html(tmp_path):
    run = write_run(tmp_path / "run")
    evil = "<script>alert(1)</script>"
    row = {"step": 60, "event": evil, "cause": evil, "detail": f"{evil}\x1b", "tokens": 9}
    append(run / "sft" / "metrics.jsonl", row)
    column = {f"{evil}.activation_rms": [1.0], f"update_ratio/{evil}": [0.1]}
    append(run / "sft" / "watch.jsonl", looks(**column), looks(step=9, **column))
    text = build_report(run).read_text(encoding="utf-8")
    assert "<script" not in text and "\x1b" not in text
    assert text.count("&lt;script&gt;") > 4


def test_the_worst_layer_and_group_are_named():
    ratios = {"update_ratio/attention": [0.01, 0.02, 0.03], "update_ratio/norms": [0.5] * 4}
    other = {"step": 16, "activation_rms": [1.0, 2.0, -3.0], "update_ratio/attention": [0.1] * 2}
    found = {each.name: each for each in watched(stage(layers=[looks(**ratios), other]))}
    rms, ratio = found["activation_rms"], found["update_ratio"]
    assert (rms.worst.step, rms.worst.value, rms.worst.where) == (8, 4.0, "layer 1")
    assert (rms.last.value, rms.last.where, rms.last.middle) == (-3.0, "layer 2", 1.0)
    assert ratio.worst.where == "norms"
    # A layer is frozen: which one is not known.
    assert ratio.last.where == "attention"
    ratios["update_ratio/attention"][2] = 0.9
    (each,) = [e for e in watched(stage(layers=[looks(**ratios)])) if e.name == "update_ratio"]
    assert each.worst.where == "attention of layer 2"


def test_the_first_layer_that_is_not_finite_is_the_worst():
    rows = [looks(), {"step": 9, "activation_rms": [1.0, None, None]}, looks(step=10)]
    (rms,) = watched(stage(layers=rows))
    assert (rms.worst.step, rms.worst.value, rms.worst.where) == (9, None, "layer 1")
    assert "not finite in layer 1, step 9" in stability(stage(layers=rows))


def test_every_watched_number_has_a_chart_and_the_critics_are_apart():
    columns = {f"{c}{n}": [1.0, 2.0] for c in ("", "critic.") for n in ("activation_max",)}
    layers = [looks(**columns, **{"critic.activation_rms": [1.0], "step": s}) for s in (8, 16)]
    rows = [{"step": s, "gradient_norm": s / 2, "log_z": 8.0, "logit_max": 9.0} for s in (8, 16)]
    names = [each.name for each in watched(stage(rows, layers))]
    assert names == [
        "gradient_norm",
        *("activation_rms", "activation_max", "logit_max", "log_z"),
        *("critic.activation_rms", "critic.activation_max"),
    ]
    text = stability(stage(rows, layers))
    assert text.count('class="chart wide"') == len(names)
    assert text.startswith("<details>")
    assert "critic: activation, largest" in text


def test_a_run_without_watched_numbers_shows_none(tmp_path):
    text = build_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "was watched" not in text and 'class="flag' not in text and "What happened" not in text


def test_odd_values_do_not_break_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    odd = [
        {"event": "skip"},
        {"event": "skip", "step": -1e308, "tokens": 1e308},
        {"event": "rollback", "step": "x", "tokens": None, "batches": [1], "from_step": []},
        {"event": "lower_rate", "step": 3, "rate": "half", "cause": 7, "value": [1]},
        {"event": 5, "step": 4},
    ]
    append(run / "rl" / "metrics.jsonl", *odd)
    watch = [
        {"step": 1, "activation_rms": 3, "update_ratio/mlp": "x"},
        {"step": "x", "activation_rms": [1.0]},
        {"step": 2, "activation_rms": [], "activation_max": ["x", True], "log_z": [1]},
    ]
    append(run / "rl" / "watch.jsonl", *watch)
    (run / "sft" / "watch.jsonl").write_text('{"step": 1, "activation_rms": [1.0]}\n{"ste')
    build_report(run)
