"""The sum of rewards: weighted, counted by name, and never an end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.fromfiles import task_maker
from fourstage.data.making import Limits
from fourstage.data.shapes import recognise
from fourstage.errors import InputError
from fourstage.recipe import load, recipe_from
from fourstage.recipe.rewards import PARTS_BY_KIND
from fourstage.rewards.building import build, own_files
from fourstage.rewards.contracts import Item, Outcome, Reward, item_of, outcome
from fourstage.rewards.shaping import Length, MissingEnd
from fourstage.rewards.total import Part, Rewards


class Told(Reward):
    """Says what it was told to."""

    def __init__(self, say: Callable[[Item], Outcome]):
        self.say = say
        self.is_open = False

    def start(self, say: Callable[[str], None]) -> None:
        self.is_open = True

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        return [self.say(item) for item in items]

    def close(self) -> None:
        self.is_open = False


def number(value: float | None) -> Told:
    return Told(lambda item: Outcome(value))


def raising(item: Item) -> Outcome:
    raise RuntimeError("broken")


ITEMS = [Item("?", "a"), Item("?", "bb", columns={"kind": "x"})]


def test_the_sum_is_weighted_and_every_part_is_logged_by_name() -> None:
    lengths = Told(lambda item: Outcome(float(len(item.response))))
    judged = Rewards([Part("one", number(1.0), 2.0), Part("length", lengths, 0.5)]).score(ITEMS)
    assert judged.scores == [2.5, 3.0]
    assert judged.metrics() == {
        "reward/one": 1.0, "reward_faults/one": 0.0,
        "reward/length": 1.5, "reward_faults/length": 0.0,
    }  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5),
            st.sampled_from([None, math.nan, math.inf, -math.inf]) | st.floats(-9, 9),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_training_gets_is_finite_whatever_the_parts_say(parts) -> None:
    rewards = Rewards([Part(str(n), number(v), w, -3.0) for n, (w, v) in enumerate(parts)])
    judged = rewards.score(ITEMS)
    expected = 0.0
    for weight, value in parts:
        if value is not None:
            expected += weight * (value if math.isfinite(value) else -3.0)
    assert judged.scores == [pytest.approx(expected)] * 2


@pytest.mark.parametrize("value", [math.nan, -math.inf, "x", [1.0], object(), 10**400, 1e10])
def test_what_is_no_usual_number_is_a_fault(value) -> None:
    found = outcome(value)
    assert found.score is None and found.fault


def test_faults_are_counted_penalised_and_told() -> None:
    bad = Told(lambda item: Outcome(fault="too odd") if item.response == "a" else Outcome(1.0))
    judged = Rewards([Part("bad", bad, 2.0, -0.5), Part("raises", Told(raising))]).score(ITEMS)
    assert judged.scores == [2 * -0.5 - 1.0, 2 * 1.0 - 1.0]
    assert judged.metrics() == {
        "reward/bad": 1.0, "reward_faults/bad": 1.0, "reward_faults/raises": 2.0
    }  # fmt: skip
    assert judged.faults() == {"bad: too odd": 1, "raises: RuntimeError: broken": 2}


def test_a_part_that_loses_count_costs_its_number_and_not_the_run() -> None:
    class Short(Told):
        def score(self, items: Sequence[Item]) -> list[Outcome]:
            return [Outcome(1.0)]

    judged = Rewards([Part("short", Short(raising)), Part("one", number(1.0))]).score(ITEMS)
    assert judged.scores == [0.0, 0.0]
    assert judged.faults() == {"short: it gave 1 outcomes for 2 responses": 2}


def test_a_weight_of_zero_is_logged_only() -> None:
    parts = [Part("seen", number(7.0), 0.0), Part("broken", Told(raising), 0.0)]
    judged = Rewards(parts).score(ITEMS)
    assert judged.scores == [0.0, 0.0] and judged.metrics()["reward/seen"] == 7.0


def test_a_part_says_nothing_of_rows_that_are_not_its_own() -> None:
    asked: list[Item] = []

    def note(item: Item) -> Outcome:
        asked.append(item)
        return Outcome(5.0)

    rewards = Rewards([Part("x", Told(note), only={"kind": "x"}), Part("all", number(1.0))])
    judged = rewards.score(ITEMS)
    assert judged.scores == [1.0, 6.0] and asked == [ITEMS[1]]
    assert judged.metrics()["reward/x"] == 5.0
    with pytest.raises(InputError, match="no row has kind=x"):
        rewards.check(ITEMS[:1])


def test_rows_that_cannot_be_judged_are_told_before_training() -> None:
    rewards = build(recipe_from({"rl": {"rewards": "math,length"}}).rl.rewards, 64)
    rewards.check([Item("2+2?", "", truth="4")])
    with pytest.raises(InputError) as told:
        rewards.check(
            [Item(f"{n}?", "", truth="four") for n in range(9)] + [Item("?", "", truth="4")]
        )
    assert len(told.value.faults) == 3
    assert told.value.faults[0].startswith("rl.rewards, math: the ground truth 'four' is no plain")
    assert told.value.faults[-1].endswith("so it is with 9 of 10 rows")


def test_all_that_cannot_start_is_told_at_once_and_the_rest_is_closed() -> None:
    class Broken(Told):
        def start(self, say: Callable[[str], None]) -> None:
            raise InputError("there is no such thing")

    fine = number(1.0)
    rewards = Rewards([Part("fine", fine), Part("a", Broken(raising)), Part("b", Broken(raising))])
    with pytest.raises(InputError) as told:
        rewards.start(print)
    assert told.value.faults == tuple(f"rl.rewards, {n}: there is no such thing" for n in "ab")
    assert not fine.is_open
    with Rewards([Part("fine", fine)]) as open_ones:
        open_ones.start(print)
        assert fine.is_open
    assert not fine.is_open


@pytest.mark.parametrize(
    "row",
    [
        {"question": "3750/3?", "answer": "3750/3 = <<3750/3=1250>>1,250.\n#### 1,250"},
        {"prompt": "3750/3?", "ground_truth": "1,250"},
        {"messages": [{"role": "user", "content": "3750/3?"}], "ground_truth": "1250"},
        {"context": "3750/3=", "continuation": "1250"},
    ],
)
def test_a_row_of_a_persons_prompts_is_judged_by_its_ground_truth(row) -> None:
    task = task_maker(None, Limits.within(64, 3.0))(recognise(row, "f:1"))
    rewards = build(recipe_from({"rl": {"rewards": "math"}}).rl.rewards, 64)
    items = [item_of(task, text, True, 5) for text in ("#### 1250", "#### 1251", "1250")]
    rewards.check(items)
    assert rewards.score(items).scores == [1.0, 0.0, 0.0]
    assert items[0].asked.startswith("3750/3")


@pytest.mark.parametrize("verifier", ["numbers", "math_verify"])
@pytest.mark.parametrize(
    ("told", "prompt", "truths", "is_advised"),
    [
        ({}, "6*7?", ("42", "1,250"), True),
        ({"extraction": "lenient"}, "6*7?", ("42",), False),
        ({}, "6*7? Put it in \\boxed{}.", ("42",), False),
        ({}, "6*7? End with: The answer is N.", ("42",), False),
        ({}, "6*7?", ("42", "6*7=42\n#### 42"), False),
        ({"only": {"set": "other"}}, "6*7?", ("42",), False),
    ],
)
def test_strict_math_over_bare_numbers_is_advised_of(
    verifier, told, prompt, truths, is_advised
) -> None:
    section = recipe_from({"rl": {"rewards": [{"kind": "math", "verifier": verifier, **told}]}})
    advice = build(section.rl.rewards, 64).advice([Item(prompt, "", truth=each) for each in truths])
    assert len(advice) == is_advised
    if advice:
        assert advice[0].startswith("rl.rewards, math: ") and "extraction: lenient" in advice[0]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 700))
def test_the_overlong_penalty_is_that_of_dapo(most, buffer, tokens) -> None:
    most, buffer = max(most, buffer), min(most, buffer)
    (found,) = Length(most, buffer).score([Item("?", "", tokens=tokens)])
    if tokens <= most - buffer:
        expected = 0.0
    elif tokens <= most:
        expected = ((most - buffer) - tokens) / buffer
    else:
        expected = -1.0
    assert found.score == pytest.approx(expected, abs=1e-12)


def test_a_response_without_an_end_is_penalised() -> None:
    found = MissingEnd().score([Item("?", "", ended=False), Item("?", "")])
    assert [each.score for each in found] == [-1.0, 0.0]


def test_every_kind_is_built_from_its_section() -> None:
    needed = {"python": {"function": "json:dumps"}, "http": {"url": "http://127.0.0.1:9/"}}
    sections = [{"kind": kind, **needed.get(kind, {})} for kind in PARTS_BY_KIND]
    recipe = recipe_from({"rl": {"rewards": sections}})
    assert recipe_from(recipe.to_dict()) == recipe
    rewards = build(recipe.rl.rewards, 100)
    assert [part.name for part in rewards.parts] == list(PARTS_BY_KIND)


def test_sections_reach_what_they_are_of() -> None:
    sections = [
        {"kind": "math", "name": "sums", "weight": 3, "fault_score": -2, "extraction": "lenient",
         "tolerance": 0.1, "truth": "gold", "only": {"set": "a"}},
        {"kind": "length", "buffer": 10},
        {"kind": "code", "memory": "2G", "seconds": "1m", "workers": 3, "partial": True},
    ]  # fmt: skip
    sums, length, code = build(recipe_from({"rl": {"rewards": sections}}).rl.rewards, 100).parts
    assert (sums.name, sums.weight, sums.fault_score) == ("sums", 3.0, -2.0)
    item = Item("?", "about 105", columns={"gold": "100", "set": "a"})
    assert sums.judges(item) and sums.reward.score([item])[0].score == 1.0
    assert not sums.judges(Item("?", ""))
    assert length.reward.score([Item("?", "", tokens=95)])[0].score == -0.5
    assert (code.reward.limits.memory, code.reward.limits.seconds) == (2_000_000_000, 60.0)  # ty: ignore
    assert (code.reward.workers, code.reward.partial) == (3, True)  # ty: ignore


def test_the_buffer_is_a_fifth_of_the_longest_response_unless_said() -> None:
    (part,) = build(recipe_from({"rl": {"rewards": "length"}}).rl.rewards, 100).parts
    tokens = (80, 90, 100, 101)
    found = part.reward.score([Item("?", "", tokens=n) for n in tokens])
    assert [each.score for each in found] == [0.0, -0.5, -1.0, -1.0]
    for section, said in (({"most": 101}, "never reached"), ({"buffer": 101}, "is more than")):
        parts = recipe_from({"rl": {"rewards": [{"kind": "length", **section}]}}).rl.rewards
        with pytest.raises(InputError, match=said):
            build(parts, 100)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("mth", "rl.rewards.0=mth: there is no kind 'mth'; did you mean 'math'?"),
        ([{"weight": 1}], "kind is missing (there are: model,"),
        ([{"kind": "math", "extractoin": "x"}], "'extractoin'; did you mean 'extraction'?"),
        ([{"kind": "math", "extraction": "loose"}], "must be one of strict, lenient"),
        ([{"kind": "math", "weight": -1}], "must be at least 0"),
        ([{"kind": "math", "fault_score": ".inf"}], "is not a number"),
        ([{"kind": "math", "tolerance": 1, "verifier": "math_verify"}], "leave it out"),
        ("math,math", "two parts are called 'math'"),
        ([{"kind": "http", "url": "ftp://x"}], "write http://HOST:PORT/PATH"),
        ([{"kind": "http", "url": "http://me:word@x/"}], "token_env"),
        ([{"kind": "http"}], "rl.rewards.0: kind http needs url: write http://HOST:PORT/PATH"),
        ([{"kind": "python", "function": "x.py"}], "write module:function or file.py:function"),
        ([{"kind": "choice", "letters": "AA"}], "write the letters of the choices"),
        ([{"kind": "length", "most": 5, "buffer": 9}], "buffer=9 is more than most=5"),
        ([{"kind": "regex", "pattern": "a", "column": "b"}], "leave one of the two out"),
        ([{"kind": "code", "memory": 0}], "must be above 0"),
        ([3], "must be a section with keys of its own"),
    ],
)
def test_a_wrong_section_is_told_with_what_to_write(rewards, said) -> None:
    with pytest.raises(InputError) as told:
        recipe_from({"rl": {"rewards": rewards}})
    assert len(told.value.faults) == 1 and said in told.value.faults[0]


def test_kinds_can_be_given_on_the_command_line() -> None:
    recipe = load("quickstart", ["rl.rewards=math,missing_end"])
    assert [part.kind for part in recipe.rl.rewards] == ["math", "missing_end"]
    assert load("quickstart", ["rl.rewards=format"]).rl.rewards[0].kind == "format"


@pytest.mark.parametrize("nothing", ["[]", "[ ]", ","])
def test_an_empty_list_on_the_command_line_asks_for_nothing(nothing) -> None:
    with pytest.raises(InputError) as told:
        load("quickstart", [f"rl.rewards={nothing}"])
    assert len(told.value.faults) == 1
    assert told.value.faults[0].startswith(f"rl.rewards={nothing} asks for no reward: leave it out")


def test_the_empty_list_that_a_run_writes_down_is_read_again(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(load("quickstart").to_yaml())
    assert "rewards: []" in path.read_text()
    assert load(path).rl.rewards == []


def test_the_files_of_own_functions_are_named_by_their_content(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f(completions): return []")
    sections = [{"kind": "python", "function": "mine.py:f"}, {"kind": "math"}]
    parts = recipe_from({"rl": {"rewards": sections}}).rl.rewards
    before = own_files(parts)
    assert list(before) == ["mine.py"]
    (tmp_path / "mine.py").write_text("def f(completions): return [1]")
    assert own_files(parts) != before


def test_the_usual_format_is_thought_then_answer() -> None:
    rewards = build(recipe_from({"rl": {"rewards": "format"}}).rl.rewards, 64)
    good = "<think>\nHm.\n</think>\n<answer>4</answer>\n"
    bad = ["4", good + "more", "so " + good, "<think>a<think>b</think><answer>4</answer>",
           "<think>a</think>", good + good]  # fmt: skip
    with rewards:
        rewards.start(print)
        assert rewards.score([Item("?", text) for text in (good, *bad)]).scores == [1.0] + [0.0] * 6


def test_right_is_a_full_mark_and_a_fault_is_none():
    told = [Outcome(1.0), Outcome(0.5), Outcome(0.0), Outcome(fault="late"), Outcome()]
    judged = Rewards([Part("it", Told(lambda item: told[int(item.response)]))]).score(
        [Item("?", str(number)) for number in range(5)]
    )
    assert judged.right("it") == [True, False, False, False]


def test_some_parts_alone_are_asked_without_being_started_again():
    asked: list[str] = []

    def noted(name: str) -> Part:
        return Part(name, Told(lambda item: asked.append(name) or Outcome(1.0)))

    with Rewards([noted("a"), noted("b")]) as rewards:
        judged = rewards.only(["b"]).score([Item("?", "x")])
    assert list(judged.outcomes) == ["b"] and asked == ["b"]
