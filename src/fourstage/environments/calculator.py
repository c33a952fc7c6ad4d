"""Sums with a calculator: the policy calls a tool, reads what it gives, and answers.

A call is `<call>12*7+3</call>`; the environment answers with the result. What holds no call is the
answer, and ends the episode.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from fourstage.environments.contracts import Environment
from fourstage.errors import InputError
from fourstage.randomness import python_random
from fourstage.tasks import Messages

_CALL = re.compile(r"<call>(.*?)</call>", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
# Longer ones are no sums, and powers of them would not end.
_LONGEST, _LARGEST = 200, 10**12
HELP = "write <call>12+7</call> to have a sum worked out; what has no call in it is the answer"


class Calculator(Environment):
    """A reward of 1 for the right answer, 0 for a wrong one and for calls.

    Args:
        digits: of the numbers of its own problems.
        operations: what they are joined by, of `+-*`.
        rows: whether problems and answers are those of the rows, instead of its own.
    """

    def __init__(self, digits: int = 2, operations: str = "+-*", rows: bool = False):
        if digits < 1 or digits > 9:
            raise InputError(f"options.digits={digits} is out of range: write 1 to 9")
        if not operations or set(operations) - set("+-*"):
            raise InputError(f"options.operations={operations!r}: write some of +-*")
        self.digits, self.operations, self.rows = digits, operations, rows
        self.truth: Fraction | None = None

    def reset(self, task: Mapping[str, Any], seed: int) -> str | Messages:
        if self.rows:
            self.truth = _last_number(str(task["ground_truth"]))
            if self.truth is None:
                raise ValueError(f"the row's ground truth {task['ground_truth']!r} is no number")
            prompt = task["prompt"]
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return [{"role": "system", "content": HELP}, *turns]
        draw = python_random(seed, "calculator")
        terms = [str(draw.randrange(10**self.digits)) for _ in range(2)]
        expression = draw.choice(self.operations).join(terms)
        self.truth = worked_out(expression)
        return f"what is {expression}? {HELP}"

    def step(self, response: str) -> tuple[str, float, bool]:
        call = _CALL.search(response)
        if call is None:
            return "", float(_last_number(response) == self.truth), True
        try:
            return _written(worked_out(call[1])), 0.0, False
        except ValueError as error:
            return f"error: {error}", 0.0, False


def worked_out(expression: str) -> Fraction:
    """The value of numbers, + - * / and brackets, without rounding.

    Raises:
        ValueError: it is something else, or too large.
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"more than {_LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("no sum") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


def _value(node: ast.expr) -> Fraction:
    found = None
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        found = Fraction(str(node.value)) if abs(node.value) <= _LARGEST else None
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand)
        found = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            found = left + right
        elif isinstance(node.op, ast.Sub):
            found = left - right
        elif isinstance(node.op, ast.Mult):
            found = left * right
        elif isinstance(node.op, ast.Div):
            found = left / right
    if found is None:
        raise ValueError("no sum")
    if abs(found) > _LARGEST or found.denominator > _LARGEST:
        raise ValueError("too large")
    return found


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def _last_number(text: str) -> Fraction | None:
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None
