"""A run on a disk that is full at one of its writes, again and again."""

from __future__ import annotations

import errno
import os
import random
import sys
import traceback
from pathlib import Path

from fourstage.errors import MachineError
from fourstage.recipe import load
from pipeline_support import go, path_changed


def fill_at_writes(recipe: str, out: str, seed: str) -> None:
    """Runs a recipe in forks, each of which finds no space at one of its next writes, until one
    ends; prints how many found none."""
    # Imported once, so that a fork costs nothing.
    import torch._dynamo  # noqa: F401

    import fourstage.pipeline.opening  # noqa: F401

    draw = random.Random(int(seed))
    for ended in range(300):
        number = draw.randrange(1, 100)
        process = os.fork()
        if not process:
            os._exit(_run(recipe, out, number))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            print(ended)
            return
        assert code == 1
    raise AssertionError("the run made no way")


def _run(recipe: str, out: str, number: int) -> int:
    _refuse_write(number, out)
    try:
        go(load(recipe), Path(out))
    except MachineError as error:
        assert "the disk is full" in str(error) and "\n" not in str(error), error
        return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0


def _refuse_write(number: int, folder: str) -> None:
    """From its `number`-th new file below `folder` on, this process finds no space for one."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        path = path_changed(event, arguments, ("os.mkdir",))
        if path is None:
            return
        if str(path).startswith(folder):
            seen += 1
            if seen >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    sys.addaudithook(watch)
