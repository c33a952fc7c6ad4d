"""What is asked of a cluster for the tasks of a preparation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from fourstage.errors import InputError

# Text that one task works on for some ten minutes, and tasks that a scheduler takes at once.
_TASK_BYTES = 1_000_000_000
_MOST_TASKS = 1000
# A shared task holds one part. Judging takes 0.5 kB a document, so that these are for 60 million.
_MEMORY, _JUDGE_MEMORY = 4, 32
_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")


@dataclass(frozen=True)
class Resources:
    """What each task gets.

    Attributes:
        tasks: of the stages that are shared out; 0 is by the text, see `usual_tasks`.
        workers: tasks at a time on one machine; None is one a core.
        cpus: cores of a task; a task computes on one, the stages of a single task on all.
        memory, judge_memory: GB of a shared task, and of the stages of a single task.
        time: most of a task, as `[DAYS-]HOURS:MM:SS`.
        partition, sbatch: of Slurm: the partition, and more options by name.

    Raises:
        InputError: the time is none.
    """

    tasks: int = 0
    workers: int | None = None
    cpus: int = 1
    memory: int = _MEMORY
    judge_memory: int = _JUDGE_MEMORY
    time: str = "24:00:00"
    partition: str | None = None
    sbatch: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if _TIME.fullmatch(self.time) is None:
            raise InputError(f"--time {self.time}: write HOURS:MM:SS, such as 24:00:00")

    @property
    def seconds(self) -> int:
        match = _TIME.fullmatch(self.time)
        assert match is not None, "checked when it was given"
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def usual_tasks(executor: str, text_bytes: int) -> int:
    """Tasks of a shared stage where none are asked for: by cores here, by the text elsewhere."""
    if executor == "local-datatrove":
        return os.cpu_count() or 1
    return min(_MOST_TASKS, max(1, round(text_bytes / _TASK_BYTES)))


def options_of(given: list[str]) -> dict[str, str]:
    """Options of sbatch, each given as `name=value`.

    Raises:
        InputError: one is not.
    """
    options = {}
    for option in given:
        name, equals, value = option.removeprefix("--").partition("=")
        if not (name and equals):
            raise InputError(f"--sbatch {option}: write NAME=VALUE, such as account=research")
        options[name] = value
    return options
