"""A person's own Python by its import path: `module:name` or `file.py:name`, as a recipe names it.

The path stands in the recipe, never in data, and what it stands for is said before it is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fourstage import files
from fourstage.errors import InputError, nearest

# key of the recipe -> how such a thing is written.
WRITTEN = {
    "function": "module:function or file.py:function, such as rewards.py:score",
    "path": "module:Class or file.py:Class, such as game.py:Game",
}


def split_name(given: str, key: str = "function") -> tuple[str, str]:
    """Module or file, and the name in it.

    Raises:
        InputError: it is not of that form.
    """
    where, colon, name = given.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise InputError(f"{key}={given}: write {WRITTEN[key]}")
    return where, name


def located(key: str, given: str) -> tuple[str, str]:
    """The name, and in words where it is: a file with its hash, or a module.

    Raises:
        InputError: there is no such file.
    """
    where, name = split_name(given, key)
    path = Path(where)
    if path.suffix != ".py":
        return name, f"the module {where}"
    if not path.is_file():
        near = nearest(path.name, (each.name for each in path.parent.glob("*.py")))
        raise InputError(f"{key}={given}: there is no file {path}{near}")
    return name, f"{path} (sha256 {files.sha256_file(path)[:12]})"


def imported(key: str, given: str) -> Callable[..., Any]:
    """What the path stands for; whoever calls is in a process of its own.

    Raises:
        InputError: it cannot be imported, or can not be called.
    """
    where, name = split_name(given, key)
    try:
        module = _from_file(where) if where.endswith(".py") else _from_path(where)
    except BaseException as error:
        raise InputError(
            f"{key}={given} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        kind = "class" if key == "path" else key
        names = [each for each, value in vars(module).items() if callable(value)]
        raise InputError(f"{key}={given}: {where} has no {kind} {name}{nearest(name, names)}")
    return found


def own_file(given: str, key: str = "function") -> dict[str, str]:
    """File -> sha256; nothing of a module that is installed, whose version is not known here."""
    path = Path(split_name(given, key)[0])
    return {path.name: files.sha256_file(path)} if path.is_file() else {}


def _from_file(where: str) -> Any:
    path = Path(where).resolve()
    # Its neighbours can be imported, as where it is run by itself.
    sys.path.insert(0, str(path.parent))
    name = f"own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "its name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _from_path(where: str) -> Any:
    sys.path.insert(0, os.getcwd())
    return importlib.import_module(where)
