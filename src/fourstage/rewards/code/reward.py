"""Code of a response against the tests of its row, run in a contained process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fourstage.errors import InputError
from fourstage.rewards.code.blocks import NoTests, Tests, code_of, printed_alike, read_tests
from fourstage.rewards.code.folders import remove_left
from fourstage.rewards.code.running import Ended, Limits, Runner
from fourstage.rewards.contracts import Item, Outcome, Reward


class Code(Reward):
    """1 where the code passes all tests of its row, else 0; a limit that is broken is a fault.

    See `running` for what a program can and cannot do. Asserts run in the process of the code: one
    that sets out to forge their success can; standard output is compared where code cannot reach.

    Args:
        tests: the column of the tests (see `blocks.read_tests`); without one the ground truth.
        partial: whether the share of tests that pass counts.
        unfenced: whether a response without a fenced block is code as a whole.
        allow_uncontained: whether programs are run where the machine cannot contain them.
        workers: programs at a time.
    """

    def __init__(
        self,
        limits: Limits,
        tests: str | None = None,
        partial: bool = False,
        unfenced: bool = False,
        packages: bool = False,
        allow_uncontained: bool = False,
        workers: int = 1,
    ):
        self.limits, self.column, self.partial = limits, tests, partial
        self.unfenced, self.packages, self.workers = unfenced, packages, workers
        self.allow_uncontained = allow_uncontained
        self._runner = Runner(limits, contain=True, packages=packages)

    def start(self, say: Callable[[str], None]) -> None:
        remove_left()
        leak = self._runner.leak()
        if not leak:
            say("rl.rewards runs code of responses contained: no network, no files, one process")
            return
        if not self.allow_uncontained:
            raise InputError(
                f"code of responses cannot be contained on this machine ({leak}): take a Linux "
                "with Landlock (5.13 and later), or write allow_uncontained: true in a virtual "
                "machine that may be lost"
            )
        say(
            f"rl.rewards runs code of responses UNCONTAINED ({leak}): it can do what you can, and "
            "only time, memory and output are limited"
        )
        self._runner = Runner(self.limits, contain=False, packages=self.packages)

    def unfit(self, item: Item) -> str:
        try:
            self._tests(item)
        except NoTests as error:
            return str(error)
        return ""

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._of, items))

    def _tests(self, item: Item) -> Tests:
        return read_tests(item.value(self.column), item.columns)

    def _of(self, item: Item) -> Outcome:
        if reason := self.unfit(item):
            return Outcome(fault=reason)
        code = code_of(item.response, self.unfenced)
        if code is None:
            return Outcome(0.0, note="no block of code")
        tests = self._tests(item)
        passed: list[bool] = []
        notes: list[str] = []
        if tests.programs:
            ended = self._runner.tests(code, tests.programs)
            if fault := _fault(ended):
                return Outcome(fault=fault)
            passed += _passed(ended, len(tests.programs))
            notes.append(str(ended.told.get("why", "it ended before its tests did")))
        for given, expected in tests.pairs:
            ended = self._runner.script(code, given)
            if fault := _fault(ended):
                return Outcome(fault=fault)
            why = str(ended.told.get("why", ""))
            passed.append(not why and printed_alike(ended.printed, expected))
            notes.append(why or ("" if passed[-1] else "printed something else"))
            if not passed[-1] and not self.partial:
                break
        share = sum(passed) / len(tests)
        note = next((each for each in notes if each), "")
        return Outcome(share if self.partial else float(share == 1.0), note=note)


def _passed(ended: Ended, count: int) -> list[bool]:
    """Which tests passed: none where it does not tell, or a program that forges tells nonsense."""
    told = ended.told.get("passed")
    if not isinstance(told, list) or len(told) != count:
        return [False] * count
    return [each is True for each in told]


def _fault(ended: Ended) -> str:
    return ended.fault or str(ended.told.get("uncontained", ""))
