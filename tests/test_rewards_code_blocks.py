"""Code is found in responses, and tests in rows, in the forms that data sets have."""

from __future__ import annotations

import pytest

from fourstage.rewards.code.blocks import NoTests, code_of, printed_alike, read_tests
from fourstage.rewards.code.reward import Code
from fourstage.rewards.code.running import Limits
from fourstage.rewards.contracts import Item


def test_code_of_another_language_is_not_run_as_python() -> None:
    assert code_of("```js\nfork()\n```") is None
    assert code_of("```python\nold\n```\nBetter:\n```py\nnew\n```\n```\nlast\n```") == "last\n"
    assert code_of("<think>```python\nno\n```</think>none") is None
    assert code_of("x = 1") is None and code_of("x = 1", unfenced=True) == "x = 1"
    assert code_of("```js\n1\n```", unfenced=True) is None


def test_tests_are_read_in_the_forms_that_data_sets_have() -> None:
    assert read_tests("assert f() == 1", {}).programs == ("assert f() == 1",)
    mbpp = read_tests(["assert f()", "assert g()"], {"test_imports": ["import math"]})
    assert mbpp.programs == ("import math\nassert f()", "import math\nassert g()")
    human = read_tests("def check(candidate):\n    assert candidate()", {"entry_point": "f"})
    assert human.programs[0].endswith("check(f)\n")
    pairs = (("1", "2"), ("3", "4"))
    apps = '{"inputs": ["1", "3"], "outputs": ["2", "4"]}'
    assert read_tests(apps, {}).pairs == pairs
    listed = [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}]
    assert read_tests(listed, {}).pairs == pairs


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no tests"),
        ("", "no tests"),
        ([], "no tests"),
        (7, "no program"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [[1]], "outputs": [[2]], "fn_name": "f"}, "write asserts"),
        ({"inputs": [1], "outputs": [2]}, "not all texts"),
        ([{"input": "1"}], "no texts"),
    ],
)
def test_rows_without_tests_are_told(value, said) -> None:
    with pytest.raises(NoTests, match=said):
        read_tests(value, {})
    item = Item("?", "```python\n1\n```", columns={"tests": value})
    assert said in Code(Limits(), "tests").unfit(item)
    assert said in Code(Limits(), "tests").score([item])[0].fault


def test_printed_text_may_differ_in_trailing_space_alone() -> None:
    assert printed_alike("1 \n2\n\n", "1\n2")
    assert not printed_alike("1\n\n2", "1\n2")
    assert not printed_alike(" 1", "1")
