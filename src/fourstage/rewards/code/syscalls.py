"""A filter of system calls (seccomp): what a contained program may not ask of Linux.

A program has one process that ends with its parent, no network, and no way to reach another process
or to change a file's owner, mode or times, which Landlock does not restrict. Calls newer than the
filter do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Iterator

# name of a machine -> (its number for the kernel's audit, column of its numbers below)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}
# The highest call that is known here; others answer ENOSYS, and C libraries then take older ones.
_NEWEST = 470
_NONE = -1

# name -> (number on x86_64, number on aarch64)
_REFUSED = {
    # Other programs and processes.
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, _NONE), "vfork": (58, _NONE),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # Another user's name would clear the signal of a parent's death.
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159),
    "setfsuid": (122, 151), "setfsgid": (123, 152), "seccomp": (317, 277),
    # Network, and memory that outlives or escapes the limits of a process.
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # Open files sent to itself would be more than it may have open.
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # What the programs of a user, or of a machine, share a number of.
    "inotify_init": (253, _NONE), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "io_setup": (206, 0), "timer_create": (222, 107),
    # Room on the disk without the time to write it.
    "fallocate": (285, 47),
    # What Landlock lets through.
    "chmod": (90, _NONE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, _NONE), "lchown": (94, _NONE), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, _NONE), "utimes": (235, _NONE), "futimesat": (261, _NONE),
    "utimensat": (280, 88), "truncate": (76, 45), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # The system itself, and parts of the kernel that have been ways out of containers.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, _NONE), "ioperm": (173, _NONE), "modify_ldt": (154, _NONE), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "personality": (135, 92), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18), "vhangup": (153, 58), "sync": (162, 81), "syncfs": (306, 267),
}  # fmt: skip
# Their arguments lie in memory, where a filter cannot look: older calls do the same.
_MISSING = {"clone3": (435, 435), "openat2": (437, 437)}
_OTHERS = {
    "clone": (56, 220), "prlimit64": (302, 261), "fcntl": (72, 25), "ioctl": (16, 29),
    "socketpair": (53, 199), "open": (2, _NONE), "openat": (257, 56), "prctl": (157, 167),
    "close_range": (436, 436),
}  # fmt: skip

# A thread shares the table of open files, which is what their limit counts.
_CLONE_THREAD, _CLONE_FILES, _CLOSE_RANGE_UNSHARE = 0x10000, 0x400, 2
# F_SETOWN, F_SETSIG, F_SETOWN_EX: have the kernel send a signal to another process. F_SETLEASE
# makes others wait for a file, F_NOTIFY watches folders, F_SETPIPE_SZ takes a user's pipes.
_FCNTL_REFUSED = (8, 10, 15, 1024, 1026, 1031)
# Of terminals TCGETS, TIOCGWINSZ and TCGETS2; FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; FICLONE. Others
# type on a terminal, send signals, or change attributes of a file that is open for reading.
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x802C542A, 0x541B, 0x5421, 0x5450, 0x5451, 0x40049409)
# PR_GET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_SVE_GET_VL, PR_SET_VMA. Others clear the signal of
# a parent's death, let other processes trace this one, or make it the parent of orphans.
_PRCTL_ALLOWED = (2, 15, 16, 51, 0x53564D41)
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF
_ACCESS_MODE, _O_TRUNC = 0x3, 0x200

# Instructions of the filter's machine (linux/filter.h).
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_GREATER, _IF_BITS = 0x15, 0x25, 0x45
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_CAPABILITIES_VERSION = 0x20080522

Instruction = tuple[int, int, int, int]


class Unavailable(RuntimeError):
    """This machine cannot contain a program, for the reason that is told."""


def give_up_privileges() -> None:
    """Leaves root no more rights than another user has, and nothing executed can bring more.

    Raises:
        Unavailable: Linux refuses.
    """
    _call("no_new_privs", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(head, none) != 0:
        raise Unavailable("Linux does not let capabilities go")


def install() -> None:
    """Puts the filter on this process for good, behind `give_up_privileges`.

    Raises:
        Unavailable: the machine is another one, or Linux has no seccomp.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise Unavailable(f"there is no filter of system calls for {machine}")
    program = list(instructions(*_MACHINES[machine]))
    lines = (_Line * len(program))(*(_Line(*line) for line in program))
    told = _Program(len(program), ctypes.addressof(lines))
    _call("seccomp", _SET_SECCOMP, _FILTER_MODE, ctypes.addressof(told), 0, 0)


def instructions(machine: int, column: int) -> Iterator[Instruction]:
    """The filter as (code, jump if true, jump if false, number)."""
    yield _LOAD, 0, 0, _MACHINE
    yield _IF_EQUAL, 1, 0, machine
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    # Calls of x86_64's 32-bit variant have large numbers, and fall here too.
    yield from _returns((_IF_GREATER, _NEWEST), errno.ENOSYS)
    for numbers in _REFUSED.values():
        if numbers[column] != _NONE:
            yield from _returns((_IF_EQUAL, numbers[column]), errno.EPERM)
    for numbers in _MISSING.values():
        yield from _returns((_IF_EQUAL, numbers[column]), errno.ENOSYS)
    for name, numbers in _OTHERS.items():
        if numbers[column] != _NONE:
            rest = list(_judged(name))
            yield _IF_EQUAL, 0, len(rest), numbers[column]
            yield from rest
    yield _RETURN, 0, 0, _ALLOW


def _returns(test: tuple[int, int], error: int) -> Iterator[Instruction]:
    code, number = test
    yield code, 0, 1, number
    yield _RETURN, 0, 0, _ERROR | error


def _judged(name: str) -> Iterator[Instruction]:
    """What is returned for a call whose arguments decide."""
    match name:
        case "clone":
            # A thread is allowed, a process is not.
            yield _argument(0)
            yield _IF_BITS, 0, 1, _CLONE_THREAD
            yield _IF_BITS, 1, 0, _CLONE_FILES
        case "close_range":
            yield _argument(2)
            yield _IF_BITS, 0, 1, _CLOSE_RANGE_UNSHARE
        case "prlimit64":
            # Of this process alone.
            yield _argument(0)
            yield _IF_EQUAL, 1, 0, 0
        case "socketpair":
            # Datagrams could be sent to sockets of others; other families load modules.
            yield _argument(0)
            yield _IF_EQUAL, 0, 3, _AF_UNIX
            yield _argument(1)
            yield _AND, 0, 0, _SOCK_TYPES
            yield _IF_EQUAL, 1, 0, _SOCK_STREAM
        case "open" | "openat":
            # Early Landlock lets a file be emptied that is opened for reading.
            yield _argument(1 if name == "open" else 2)
            yield _AND, 0, 0, _O_TRUNC | _ACCESS_MODE
            yield _IF_EQUAL, 0, 1, _O_TRUNC
        case "fcntl":
            yield _argument(1)
            for place, number in enumerate(_FCNTL_REFUSED):
                left = len(_FCNTL_REFUSED) - place - 1
                yield _IF_EQUAL, left, int(not left), number
        case "ioctl" | "prctl":
            allowed = _IOCTL_ALLOWED if name == "ioctl" else _PRCTL_ALLOWED
            yield _argument(1 if name == "ioctl" else 0)
            for place, number in enumerate(allowed):
                yield _IF_EQUAL, len(allowed) - place, 0, number
    yield _RETURN, 0, 0, _ERROR | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW


def _argument(index: int) -> Instruction:
    """Loads the lower half of an argument: both machines store it first."""
    return _LOAD, 0, 0, _ARGUMENTS + 8 * index


class _Line(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("number", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.c_void_p))


def _call(what: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(*map(ctypes.c_ulong, arguments)) != 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "an error")
        raise Unavailable(f"Linux refuses {what} ({reason})")
