"""A whole run whose last stage plays with an environment of one's own, one iteration ahead."""

from __future__ import annotations

import pytest

from fourstage.cli.app import main
from fourstage.errors import InputError
from fourstage.files import read_json
from pipeline_support import go, results, rows, tiny, weights

ECHO = '''
class Echo:
    """Says back what it was told; longer answers are worth more."""
    def reset(self, task, seed):
        return None
    def step(self, response):
        return response[:20], len(response) / 100, False
'''
TOLD = (
    "rl.algorithm=grpo", "rl.group=4", "rl.behind=1", "rl.environment.kind=own",
    "rl.environment.turns=2", "rl.max_new_tokens=24", "sft.steps=20",
)  # fmt: skip


def test_a_run_plays_measures_shows_and_is_a_function_of_its_file(tmp_path, capsys):
    path = tmp_path / "echo.py"
    path.write_text(ECHO)
    recipe = tiny(*TOLD, f"rl.environment.path={path}:Echo")
    said = go(recipe, tmp_path / "one")
    assert any("rl.environment plays with Echo" in line and "sha256" in line for line in said)
    assert "reward: left out, rl.environment gives the rewards" in said
    metrics = results(tmp_path / "one", "rl")["metrics"]
    assert {"proxy_reward_sft", "proxy_reward", "turns", "cut_episodes"} <= set(metrics)
    (first, *_) = rows(tmp_path / "one", "rl")
    assert {"turns", "reward/environment", "rollout_gap", "correction_weight"} <= set(first)
    shown = rows(tmp_path / "one", "rl", "samples.jsonl")
    assert all(isinstance(each["rewards"]["environment"], list) for each in shown)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "rollout", str(tmp_path / "one")])
    assert ended.value.code == 0
    assert "advantage" in capsys.readouterr().out

    assert "rl: finished and unchanged, kept" in go(recipe, tmp_path / "one")
    path.write_text(ECHO.replace("/ 100", "/ 50"))
    before = weights(tmp_path / "one")
    again = go(recipe, tmp_path / "one")
    assert any(line.startswith("rl: run again") for line in again)
    assert read_json(tmp_path / "one" / "run.json")["stages"]["rl"]["inputs"]["environment"]
    assert weights(tmp_path / "one")["sft"] == before["sft"]


def test_an_environment_or_engine_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        go(tiny(*TOLD, f"rl.environment.path={tmp_path}/none.py:Echo"), tmp_path / "one")
    url = "http://127.0.0.1:9/v1/completions"
    engine = ("rl.engine.kind=openai", f"rl.engine.url={url}", f"rl.engine.update={url}")
    with pytest.raises(InputError, match="does not answer a prompt as it should"):
        go(tiny(*engine), tmp_path / "two")
    for name in ("one", "two"):
        assert not (tmp_path / name / "pretrain" / "model").exists()
