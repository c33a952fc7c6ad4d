"""Which files a contained program may see and write (Landlock, Linux 5.13 and later; no root).

M. Salaün, *Landlock: unprivileged access control* (kernel documentation, userspace-api/landlock).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable

from fourstage.rewards.code.syscalls import Unavailable

# The same numbers on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
# Rights by bit: execute, write, read, list, remove folder, remove file, make (character device,
# folder, file, socket, pipe, block device, link), refer, truncate, ioctl of devices.
_WRITE, _READ, _LIST, _REMOVE, _MAKE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
# How many of these rights each version knows; the last count holds for later ones.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
# Version 4 knows TCP (bind, connect), version 6 abstract sockets and signals to others.
_TCP, _SCOPES = 0b11, 0b11


def version() -> int:
    """The version of Landlock that Linux offers; 0 is none."""
    found = _library().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    return max(0, int(found))


def restrict(readable: Iterable[str], writable: str, devices: Iterable[str]) -> None:
    """Leaves this process files to read, one folder to write flat files in, and some devices.

    For good. Nothing may be executed, and no folder, link, socket or device be made.

    Raises:
        Unavailable: Linux has no Landlock, or it is turned off.
    """
    offered = version()
    if offered < 1:
        raise Unavailable("Linux has no Landlock, or it is turned off (lsm=landlock,...)")
    handled = (1 << _RIGHTS.get(offered, _RIGHTS[5])) - 1
    attributes = _Ruleset(handled, _TCP, _SCOPES)
    size = 24 if offered >= 6 else 16 if offered >= 4 else 8
    rules = _made(
        _library().syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    )
    for path in readable:
        _allow(rules, path, _READ | _LIST)
    _allow(rules, writable, handled & (_READ | _LIST | _WRITE | _REMOVE | _MAKE | _TRUNCATE))
    for path in devices:
        _allow(rules, path, _READ | _WRITE)
    _made(_library().syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    """Rights on a file, or on all that lies in a folder; nothing where there is none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= _READ | _WRITE | _TRUNCATE
    beneath = _Beneath(rights, place)
    _made(_library().syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(beneath), 0))
    os.close(place)


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("place", ctypes.c_int32))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _made(result: int) -> int:
    if result < 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "an error")
        raise Unavailable(f"Linux refuses Landlock's rules ({reason})")
    return result
