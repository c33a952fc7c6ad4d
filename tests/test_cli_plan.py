"""What `fourstage plan` and `fourstage recipes` print, and how they answer wrong input."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from fourstage.cli.app import main
from fourstage.planning import DataFacts
from fourstage.planning.plan import make_plan
from fourstage.planning.speed import Speed
from fourstage.recipe import load, shipped, shipped_text

SPEED = Speed("a core", 4e10, 5e10, 4000.0, 0.003, "measured")


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fourstage ...` in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def core(monkeypatch):
    """A machine of known speed instead of this one."""
    monkeypatch.setattr("fourstage.planning.speed.measure", lambda *args, **options: SPEED)


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 100


def test_a_recipe_is_told_with_its_stages_and_every_derived_value(core, capsys):
    code, out, err = call(capsys, "plan", "smoke", "pretrain.tokens=240k")
    assert code == 0 and err == "" and narrow(out)
    for word in ("pretrain", "sft", "reward", "rl", "all", "steps x batch", "FLOPs", "memory"):
        assert word in out
    assert "241k" in out and "a core, measured" in out
    derived = make_plan(load("smoke", ["pretrain.tokens=240k"]), DataFacts(), SPEED).derived
    assert all(each.key in out for each in derived)


def test_accelerators_come_with_hours_and_with_a_price_with_cost(capsys):
    code, out, _ = call(capsys, "plan", "single-host", "--gpus", "8xH100")
    assert code == 0 and "GPU-h" in out and "cost" not in out
    words = " ".join(out.split())
    assert "estimated conservatively" in words and "data.pretrain=FOLDER" in words
    code, out, _ = call(capsys, "plan", "single-host", "--gpus", "8xH100", "--price", "2.5")
    assert code == 0 and "cost" in out and narrow(out)


def test_a_better_utilisation_takes_less_time(capsys):
    hours = []
    for mfu in ("0.2", "0.4"):
        _, out, _ = call(capsys, "plan", "domain", "--gpus", "8xA100", "--mfu", mfu)
        row = next(line for line in out.splitlines() if line.strip().startswith("pretrain "))
        hours.append(float(row.split()[-1]))
    assert hours[0] > 1.8 * hours[1]


@pytest.mark.parametrize(("size", "shown"), [("1B", "20,000,000,000"), ("1M", "20,000,000")])
def test_a_size_is_told_with_shape_tokens_batch_and_rate(core, size, shown, capsys):
    code, out, _ = call(capsys, "plan", "--params", size)
    assert code == 0 and narrow(out) and shown in out
    for word in (
        "layers of width",
        "Chinchilla",
        "pretrain.batch_tokens",
        "pretrain.learning_rate",
    ):
        assert word in out
    assert "keep_checkpoints" not in out and "log_every" not in out


def test_a_time_gives_a_recipe_file_that_loads_and_fits(core, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    code, out, _ = call(capsys, "plan", "--time", "10m", "seed=7", "--write", path)
    assert code == 0 and f"fourstage run {path}" in out
    recipe = load(path)
    recipe.require_data()
    assert recipe.name == "mine" and recipe.seed == 7 and recipe.data.pretrain == "world"
    assert 300 < make_plan(recipe, DataFacts(), SPEED).seconds <= 600
    code, _, err = call(capsys, "plan", "--time", "10m", "--write", path)
    assert code == 2 and "exists" in err


def test_without_write_the_whole_output_is_the_recipe_file(core, capsys, tmp_path):
    code, out, _ = call(capsys, "plan", "--time", "5m")
    assert code == 0 and narrow(out)
    path = tmp_path / "redirected.yaml"
    path.write_text(out)
    assert load(path).pretrain.tokens == yaml.safe_load(out)["pretrain"]["tokens"]


def test_a_text_of_ones_own_gives_its_size_to_the_plan(core, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 20_000)
    text = f"data.pretrain={tmp_path}"
    code, out, _ = call(capsys, "plan", "--time", "1d", text)
    assert code == 0 and "used up" in out
    assert yaml.safe_load(out)["data"]["pretrain"] == str(tmp_path)
    code, out, _ = call(capsys, "plan", "--params", "10M", text)
    assert code == 0 and "4 epochs of the" in out


def test_rows_of_ones_own_are_counted_and_the_plan_says_so(core, capsys, tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("\n".join(["question,answer", *(f"{n}?,{n}." for n in range(200))]))
    code, out, _ = call(capsys, "plan", "smoke", f"data.sft={path}", "data.preferences=hf:a/b")
    assert code == 0 and narrow(out)
    words = " ".join(out.split())
    assert "data.sft: 200 rows counted in answers.csv." in words
    assert "data.preferences: 20,000 comparisons taken for granted" in words


def test_text_that_lies_on_the_cluster_is_planned_by_rule(capsys):
    arguments = ("plan", "domain", "data.pretrain=/there/corpus")
    code, out, _ = call(capsys, *arguments, "--gpus", "8xA100")
    assert code == 0 and "planned by rule" in out
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "/there/corpus" in err


def test_hours_are_a_time_on_a_cluster(capsys):
    code, out, _ = call(capsys, "plan", "--gpus", "8xH100", "--hours", "1")
    assert code == 0 and "torchrun --nproc-per-node 8" in out and "data.pretrain=FOLDER" in out
    assert yaml.safe_load(out)["model"]["params"] > 1e8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "write a recipe (quickstart), --params 1B, or --time 10m"),
        (["--params", "minus"], "'minus' is not a number"),
        (["--params", "-3"], "at least 1,000"),
        (["--params", "999"], "at least 1,000"),
        (["--params", "1e30"], "at most"),
        (["--params", "nan"], "not a number"),
        (["--time", "soon"], "'soon' is not a time"),
        (["--time", "0"], "above 0"),
        (["--time", "-5m"], "above 0"),
        (["--time", "1s"], "too short"),
        (["--time", "1h", "--hours", "1"], "write one of them"),
        (["--hours", "many"], "--hours: 'many' is not a number"),
        (["--time", "1h", "--gpus", "8xFOO"], "unknown accelerator"),
        (["smoke", "--gpus", "0xH100"], "at least one"),
        (["smoke", "--gpus", "8xH100", "--mfu", "2"], "--mfu 2"),
        (["smoke", "--gpus", "8xH100", "--price", "-1"], "--price -1"),
        (["smoke", "--price", "2"], "add --gpus"),
        (["smoke", "--mfu", "0.5"], "add --gpus"),
        (["smoke", "--mfu", "half"], "--mfu"),
        (["smoke", "--params", "1M"], "one at a time"),
        (["smoke", "--time", "10m"], "one at a time"),
        (["--params", "1M", "--time", "10m"], "one at a time"),
        (["smoke", "--write", "x.yaml"], "add --time"),
        (["--time", "10m", "--write", "x.toml"], "x.yaml"),
        (["smok"], "did you mean 'smoke'?"),
        (["smoke", "again"], "'again' is no override"),
        (["smoke", "pretrain.tokns=3"], "did you mean 'pretrain.tokens'?"),
        (["--time", "10m", "pretrain.tokns=3"], "did you mean 'pretrain.tokens'?"),
        (["--time", "10m", "data.pretrain=nowhere"], "data.pretrain=nowhere"),
        (["smoke", "sft.from=nowhere"], "nowhere"),
        (["--tme", "10m"], "did you mean '--time'?"),
        (["--time"], "--time"),
    ],
)
def test_wrong_input_is_answered_in_one_line(arguments, words, core, capsys):
    code, out, err = call(capsys, "plan", *arguments)
    assert code == 2 and out == "" and words in err
    assert err.count("\n") == 1 and err.startswith("error: ")


def test_recipes_lists_every_shipped_one_with_what_it_is(capsys):
    code, out, _ = call(capsys, "recipes")
    assert code == 0 and narrow(out)
    for name in shipped():
        assert f"\n{name} " in f"\n{out}"
        first_words = shipped_text(name).splitlines()[0].removeprefix("# ")[:40]
        assert first_words in out
    assert "1.02" in out and "GRPO" in out


def test_recipes_prints_one_as_it_is(capsys):
    for name in shipped():
        assert call(capsys, "recipes", name) == (0, shipped_text(name), "")


def test_an_unknown_recipe_is_answered_with_the_nearest(capsys):
    code, out, err = call(capsys, "recipes", "quikstart")
    assert code == 2 and out == "" and "did you mean 'quickstart'?" in err
    assert err.count("\n") == 1


def test_recipes_needs_no_torch():
    code = (
        "import sys\nfrom fourstage.cli.app import main\ntry:\n    main(['recipes'])\n"
        "except SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "quickstart" in done.stdout
