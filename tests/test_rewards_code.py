"""Code of a model is tried against its tests, and whatever it does, nothing escapes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage.errors import InputError
from fourstage.rewards.code import running, syscalls
from fourstage.rewards.code.reward import Code
from fourstage.rewards.code.running import Ended, Limits, Runner
from fourstage.rewards.contracts import Item, Outcome

QUICK = Limits(seconds=3.0, cpu_seconds=1.0, memory=400_000_000, output=100_000)
LEAK = Runner(QUICK).leak() if sys.platform == "linux" else "not Linux"
contained = pytest.mark.skipif(bool(LEAK), reason=f"this machine contains no code: {LEAK}")


def judged(code: str, tests: object = "assert add(1, 2) == 3", **options) -> Outcome:
    reward = Code(options.pop("limits", QUICK), "tests", **options)
    (found,) = reward.score(
        [Item("?", f"Here:\n```python\n{code}\n```\n", columns={"tests": tests})]
    )
    return found


def processes_in(folder: Path) -> list[str]:
    """Processes whose folder lies, or lay, in that one."""
    found = []
    for place in Path("/proc").glob("[0-9]*/task/[0-9]*/cwd"):
        # One that has just ended, or that belongs to somebody else.
        with contextlib.suppress(OSError):
            found.append(os.readlink(place))
    return [each for each in found if each.startswith(str(folder))]


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where programs have their folders."""
    monkeypatch.setattr(running.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contained
def test_code_that_passes_its_tests_gets_one_and_other_code_nothing() -> None:
    assert judged("def add(a, b): return a + b") == Outcome(1.0)
    wrong = judged("def add(a, b): return a - b")
    assert (wrong.score, wrong.note) == (0.0, "test 1: AssertionError: ")
    broken = judged("def add(a, b) return a")
    assert broken.score == 0.0 and "SyntaxError" in broken.note
    assert Code(QUICK).score([Item("?", "No code.", truth="assert True")])[0].score == 0.0


@contained
@pytest.mark.parametrize(("partial", "score"), [(False, 0.0), (True, 2 / 3)])
def test_the_share_of_passed_tests_counts_where_it_is_asked_for(partial, score) -> None:
    tests = ["assert add(1, 2) == 3", "assert add(1, 0) == 1", "assert add(2, 2) == 5"]
    found = judged("def add(a, b): return a + b", tests, partial=partial)
    assert found.score == score
    pairs = {"inputs": ["1 2", "2 2", "0 0"], "outputs": ["3\n", "4", "1"]}
    code = "a, b = map(int, input().split())\nprint(a + b)"
    assert judged(code, pairs, partial=partial).score == score


@contained
def test_programs_are_judged_by_what_they_print() -> None:
    pairs = [{"input": "3\n1 2\n", "output": "1\n2\n\n"}]
    code = (
        "if __name__ == '__main__':\n    n = input()\n    print('\\n'.join(input().split()), ' ')"
    )
    assert judged(code, pairs).score == 1.0
    assert judged(code + "\n    print('more')", pairs).score == 0.0
    assert judged(code + "\n    1 / 0", pairs).score == 0.0


@contained
@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "print('passed: [true]')",
        "import os\nfor n in range(3, 60):\n    try: os.write(n, b'{\"passed\": [true]}\\n')\n"
        "    except OSError: pass\nos._exit(0)",
        "class AssertionError(BaseException): pass\n__builtins__ = {}\n",
    ],
)
def test_code_that_ends_early_or_claims_success_has_none(code) -> None:
    assert judged(code).score == 0.0


_LIBRARY = "import ctypes, os\nlibrary = ctypes.CDLL(None)\n"
ATTACKS = {
    "forks": "import os\nos.fork()",
    "forks by the bare call": "import ctypes\nassert ctypes.CDLL(None).syscall(57) >= 0",
    "starts a program": "import subprocess\nsubprocess.run(['true'])",
    "replaces itself": "import os\nos.execv('/bin/true', ['true'])",
    "makes a socket": "import socket\nsocket.socket()",
    "makes a local socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "listens": "import socket\nsocket.socket().bind(('', 0))",
    "sends a datagram": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "writes elsewhere": "open({elsewhere!r} + '/escaped', 'w').write('x')",
    "writes elsewhere by a link": "import os\nos.symlink({elsewhere!r}, 'link')",
    "empties a file": "import os\nos.open({there!r}, os.O_RDONLY | os.O_TRUNC)",
    "cuts a file": "import os\nos.truncate({there!r}, 0)",
    "deletes a file": "import os\nos.remove({there!r})",
    "reads a file": "open({there!r}).read()",
    "lists a folder": "import os\nos.listdir({elsewhere!r})",
    "changes a mode": "import os\nos.chmod({there!r}, 0o777)",
    "changes a time": "import os\nos.utime({there!r}, (0, 0))",
    "makes a folder": "import os\nos.mkdir('folder')",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills all": "import os\nos.kill(-1, 9)",
    "signals a thread": _LIBRARY + "assert library.tgkill(os.getppid(), os.getppid(), 0) == 0",
    "queues a signal": _LIBRARY + "assert library.sigqueue(os.getppid(), 0, None) == 0",
    "holds its parent": "import os\nos.pidfd_open(os.getppid())",
    "traces its parent": _LIBRARY + "assert library.ptrace(16, os.getppid(), 0, 0) == 0",
    "reads its parent's memory": "import os\nopen('/proc/%d/mem' % os.getppid())",
    "slows its parent": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 10)",
    "signals by a socket": "import fcntl, os, socket, struct\n"
    "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', os.getppid()))",
    "outlives its parent": _LIBRARY + "assert library.prctl(1, 0, 0, 0, 0) == 0",
    "outlives its parent as another": "import os\nos.setresuid(*os.getresuid())",
    "hides from tracers": _LIBRARY + "assert library.prctl(4, 0, 0, 0, 0) == 0",
    "adopts orphans": _LIBRARY + "assert library.prctl(36, 1, 0, 0, 0) == 0",
    "leaves its session": "import os\nos.setsid()",
    "leaves its group": "import os\nos.setpgid(0, 0)",
    "forks by a call of 32 bits": "import ctypes, mmap\n"
    "place = mmap.mmap(-1, 4096, prot=7)\n"
    "place.write(bytes([0xB8, 2, 0, 0, 0, 0xCD, 0x80, 0xC3]))\n"
    "start = ctypes.addressof(ctypes.c_char.from_buffer(place))\n"
    "assert ctypes.CFUNCTYPE(ctypes.c_int)(start)() >= 0",
    "listens to the kernel": "import socket\nsocket.socket(16, socket.SOCK_RAW, 0)",
    "makes a socket without a file": "import socket\n"
    "socket.socket(socket.AF_UNIX).bind(chr(0) + 'x')",
    "makes a pair for packets": "import socket\n"
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "keeps open files in a socket": "import socket\n"
    "one, other = socket.socketpair()\nsocket.send_fds(one, [b'x'], [1])",
    "has open files beside the limit": _LIBRARY + "assert library.close_range(50, 60, 2) == 0",
    "keeps shared memory": "open('/dev/shm/fourstage-escaped', 'w')",
    "watches a folder": _LIBRARY + "assert library.inotify_init() >= 0",
    "watches a folder by a file": "import fcntl, os\nfcntl.fcntl(os.open('.', 0), 1026, 1)",
    "makes others wait": "import fcntl, os\n"
    "fcntl.fcntl(os.open('a', os.O_CREAT), 1024, fcntl.F_RDLCK)",
    "takes the pipes of its user": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 1031, 2**20)",
    "takes the timers of its user": _LIBRARY
    + "assert library.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0",
    "changes an attribute": "import fcntl, os\nfile = os.open('a', os.O_CREAT)\n"
    "flags = bytearray(8)\nfcntl.ioctl(file, 0x80086601, flags)\n"
    "fcntl.ioctl(file, 0x40086602, bytes(flags))",
    "takes room at once": "import os\n"
    "os.posix_fallocate(os.open('a', os.O_CREAT | os.O_RDWR), 0, 1000)",
    "makes a pipe with a name": "import os\nos.mkfifo('pipe')",
    "links a file of others": "import os\nos.link(os.__file__, 'file')",
    "stops its parent by a limit": "import os, resource\n"
    "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
    "has the kernel signal": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 8, os.getppid())",
    "raises its limits": "import resource\n"
    "resource.setrlimit(resource.RLIMIT_AS, (10**12, 10**12))",
    "keeps memory without a name": "import os\nos.memfd_create('x')",
    "makes a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "looks at processes": "open('/proc/self/environ').read()",
    "eats memory": "x = bytearray(10**10)",
    "eats memory piece by piece": "x = []\nwhile True: x.append(bytearray(10**7))",
    "writes a large file": "open('a', 'wb').write(bytes(10**8))",
}


@contained
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_reaches_outside_fails_and_leaves_nothing(attack, tmp_path) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    before = there.stat()
    code = ATTACKS[attack].format(elsewhere=str(tmp_path), there=str(there))
    # The answer behind it is right: only being stopped keeps it from its point.
    found = judged(code + "\ndef add(a, b): return a + b")
    assert found.fault or found.score == 0.0
    assert os.listdir(tmp_path) == ["there"] and there.read_text() == "kept"
    after = there.stat()
    assert (before.st_mode, before.st_mtime) == (after.st_mode, after.st_mtime)


@contained
def test_every_call_of_the_table_is_refused() -> None:
    column = syscalls._MACHINES[platform.machine()][1]
    calls = {name: numbers[column] for name, numbers in syscalls._REFUSED.items()}
    code = (
        "import ctypes, errno\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "def is_refused(*arguments):\n"
        "    return library.syscall(*arguments) == -1 and ctypes.get_errno() == errno.EPERM\n"
        f"calls = { ({n: c for n, c in calls.items() if c >= 0}) }\n"
        "print([name for name, number in calls.items() if not is_refused(number, 0, 0, 0, 0, 0)])\n"
        # A thread with open files of its own; were it made, it would crash.
        f"print(is_refused({syscalls._OTHERS['clone'][column]}, 0x10900, 0, 0, 0, 0))"
    )
    assert Runner(QUICK).script(code).printed == "[]\nTrue\n"


@pytest.fixture
def shared() -> Iterator[dict[str, int]]:
    """Numbers of memory, a semaphore and messages that programs of this user share."""
    library = ctypes.CDLL(None)
    made = {
        "shm": library.shmget(0, 4096, 0o600),
        "sem": library.semget(0, 1, 0o600),
        "msg": library.msgget(0, 0o600),
    }
    if min(made.values()) < 0:
        pytest.skip("this machine shares nothing between programs")
    yield made
    library.shmctl(made["shm"], 0, None)
    library.semctl(made["sem"], 0, 0)
    library.msgctl(made["msg"], 0, None)


@contained
def test_what_other_programs_share_is_neither_used_nor_deleted(shared) -> None:
    code = (
        f"{_LIBRARY}message = ctypes.create_string_buffer(16)\nmessage[0] = 1\n"
        f"print(library.msgsnd({shared['msg']}, message, 2, 0o4000),"
        f" library.semctl({shared['sem']}, 0, 16, 1), library.msgctl({shared['msg']}, 0, None),"
        f" library.semctl({shared['sem']}, 0, 0), library.shmctl({shared['shm']}, 0, None))"
    )
    assert Runner(QUICK).script(code).printed.split() == ["-1"] * 5


_MANY_MAPPED = """
import ctypes, os, time
map = ctypes.CDLL(None).mmap
map.restype = ctypes.c_void_p
map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for n in range(100):
    file = os.open('a', os.O_CREAT | os.O_RDWR)
    os.write(file, b'x')
    map(None, 4096, 1, 1, file, 0)
    os.remove('a')
    os.close(file)
"""
_MANY_THREADS = """
import threading, time
threading.stack_size(65536)
for n in range(300):
    try: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    except RuntimeError: pass
"""
# The first thread ends, and others go on.
LEAVING = (
    "import ctypes, platform\n"
    "ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)\n"
)
LIMITS = {
    "sleeps": ("import time\ntime.sleep(60)", "ran longer than 0.7 s"),
    "works for ever": ("while True: pass", "more CPU time than it may"),
    "prints without end": ("while True: print('x' * 10_000)", "printed more than 100,000 bytes"),
    "tells without end": (
        "import os\nwhile True:\n    for n in range(3, 60):\n"
        "        try: os.write(n, b'x' * 60_000)\n        except OSError: pass",
        "printed more",
    ),
    "fills its folder": (
        "import time\nfor n in range(40): open(str(n), 'wb').write(bytes(10**6))\ntime.sleep(9)",
        "wrote more than 16,000,000 bytes",
    ),
    "makes many files": (
        "import time\nfor n in range(300): open(str(n), 'wb')\ntime.sleep(9)",
        "too many files",
    ),
    "maps deleted files": (_MANY_MAPPED + "time.sleep(9)", "mapped too many files"),
    "maps deleted files and leaves": (
        _MANY_MAPPED
        + "import threading\nthreading.Thread(target=time.sleep, args=(9,)).start()\n"
        + LEAVING,
        "mapped too many files",
    ),
    "starts many threads": (
        _MANY_THREADS + "time.sleep(9)",
        "started too many threads (more than 128)",
    ),
    "starts many threads under another name and leaves": (
        "import ctypes\nctypes.CDLL(None).prctl(15, bytes([255, 41, 32, 40, 0]), 0, 0, 0)\n"
        + _MANY_THREADS
        + LEAVING,
        "started too many threads (more than 128)",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", "ended by SIGSEGV"),
}


@contained
@pytest.mark.parametrize("name", LIMITS)
def test_a_broken_limit_is_a_fault_and_the_process_is_gone(name, scratch) -> None:
    code, said = LIMITS[name]
    seconds = 0.7 if name == "sleeps" else 5.0
    found = judged(code, limits=Limits(seconds, 1.0, 400_000_000, output=100_000))
    assert found.score is None and said in found.fault
    assert not processes_in(scratch)


@contained
def test_a_fork_bomb_starts_nothing(scratch) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert judged(code).fault
    assert not processes_in(scratch)


@contained
@pytest.mark.parametrize("depth", [5, 60_000])
def test_nonsense_that_a_program_tells_costs_its_answer_alone(depth) -> None:
    code = (
        "import os\nfor n in range(3, 60):\n"
        f"    try: os.write(n, b'[' * {depth} + bytes([10, 255, 10]))\n"
        "    except OSError: pass\nos._exit(0)"
    )
    assert judged(code) == Outcome(0.0, note="it ended before its tests did")


@pytest.mark.parametrize("passed", [[True, True], [2], "1", None, 7])
def test_a_forged_count_of_tests_is_none(passed, monkeypatch) -> None:
    told = Ended(told={"passed": passed, "why": None})
    monkeypatch.setattr(Runner, "tests", lambda *_: told)
    assert judged("pass", partial=True).score == 0.0


@contained
def test_code_may_do_what_programs_do() -> None:
    code = """
import asyncio, decimal, json, os, re, shutil, ssl, sqlite3, sys, tempfile, threading, zoneinfo
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, range(100))) == 4950
asyncio.run(asyncio.sleep(0))
said = []
thread = threading.Thread(target=said.append, args=(1,))
thread.start(); thread.join()
print(sys.stdin.isatty(), shutil.get_terminal_size())
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("x"); file.seek(0)
    assert file.read() == "x"
open("a", "w").write("y"); os.rename("a", "b"); os.remove("b")
def add(a, b): return a + b if said else None
"""
    assert judged(code) == Outcome(1.0)


@contained
def test_the_folder_of_a_program_is_deleted(scratch) -> None:
    assert judged("open('left', 'w').write('x')\ndef add(a, b): return a + b").score == 1.0
    assert judged("open('left', 'w')\nwhile True: pass").fault
    assert os.listdir(scratch) == []


@contained
def test_installed_packages_are_out_of_reach_unless_allowed() -> None:
    code = "import pydantic\ndef add(a, b): return a + b"
    assert "ModuleNotFoundError" in judged(code).note
    assert judged(code, packages=True) == Outcome(1.0)
    assert judged(ATTACKS["forks"], packages=True).score == 0.0


@contained
def test_environment_variables_do_not_reach_the_code(monkeypatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    code = "import os\ndef add(a, b): return a + b + ('A_SECRET' in os.environ)"
    assert judged(code).score == 1.0


def test_a_machine_that_cannot_contain_code_is_refused_unless_told(monkeypatch) -> None:
    monkeypatch.setattr(running.Runner, "leak", lambda self: "Linux has no Landlock")
    with pytest.raises(InputError, match=r"no Landlock.*allow_uncontained: true"):
        Code(QUICK).start(print)
    said: list[str] = []
    reward = Code(QUICK, "tests", allow_uncontained=True)
    reward.start(said.append)
    assert "UNCONTAINED" in said[0]
    code = (
        "```python\nimport subprocess\nprint(subprocess.check_output(['echo', 'hi']).decode())\n```"
    )
    tests = [{"input": "", "output": "hi"}]
    assert reward.score([Item("?", code, columns={"tests": tests})])[0].score == 1.0


@contained
def test_a_hole_is_found_before_any_code_is_run(monkeypatch) -> None:
    said: list[str] = []
    Code(QUICK).start(said.append)
    assert "contained" in said[0]
    # Were the filter to forget sockets, the look at the start would see it.
    hole = {**running._TRIES, "print": "print('nothing stops this')"}
    monkeypatch.setattr(running, "_TRIES", hole)
    with pytest.raises(InputError, match="a program could print"):
        Code(QUICK).start(print)


HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
GENERIC = Path("/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not GENERIC.is_file(), reason="the headers of Linux are not installed")
@pytest.mark.parametrize(("header", "column"), [(HEADER, 0), (GENERIC, 1)])
def test_the_numbers_of_system_calls_are_those_of_linux(header, column) -> None:
    if not header.is_file():
        pytest.skip("the header is of another machine")
    known: dict[str, int] = {}
    for line in header.read_text().splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[0] == "#define" and parts[1].startswith("__NR"):
            name = parts[1].removeprefix("__NR3264_").removeprefix("__NR_")
            if parts[2].isdecimal():
                known[name] = int(parts[2])
    ours = {**syscalls._REFUSED, **syscalls._MISSING, **syscalls._OTHERS}
    wrong = {
        name: (numbers[column], known[name])
        for name, numbers in ours.items()
        if name in known and numbers[column] != known[name]
    }
    assert not wrong
    # A call that a machine does not have is none of another.
    assert all(numbers[column] == -1 for name, numbers in ours.items() if name not in known
               and numbers[column] <= max(known.values()))  # fmt: skip


def test_every_jump_of_the_filter_stays_in_it() -> None:
    for machine, column in syscalls._MACHINES.values():
        program = list(syscalls.instructions(machine, column))
        assert len(program) < 4096
        for place, (code, if_true, if_false, _) in enumerate(program):
            if code in (syscalls._IF_EQUAL, syscalls._IF_GREATER, syscalls._IF_BITS):
                assert max(if_true, if_false) + place + 1 < len(program)
        assert program[-1][0] == syscalls._RETURN


def test_another_machine_is_told_and_not_filtered(monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(syscalls.Unavailable, match="riscv64"):
        syscalls.install()


_OF_AN_OLDER_LINUX = """
import json, os, sys
sys.path.append(sys.argv[1])
from fourstage.rewards.code import child, landlock
landlock.version = lambda: 1
folder, there = sys.argv[2], sys.argv[3]
limits = {"cpu_seconds": 2, "memory": 400_000_000, "file_size": 1_000_000}
child.confine({"folder": folder, "contain": True, "limits": limits,
               "packages": [there], "parent": os.getppid()})
assert open(there).read() == "kept"
print(json.dumps(child._tries({
    "empty": f"import os\\nos.open({there!r}, os.O_RDONLY | os.O_TRUNC)",
    "cut": f"import os\\nos.truncate({there!r}, 0)",
    "write": f"open({there!r}, 'a')",
    "signal": "import os\\nos.kill(os.getppid(), 0)",
    "connect": "import socket\\nsocket.create_connection(('127.0.0.1', 9))",
})))
"""


@contained
def test_the_first_landlock_contains_as_well(tmp_path) -> None:
    there, folder = tmp_path / "there", tmp_path / "folder"
    there.write_text("kept")
    folder.mkdir()
    source = str(Path(running.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _OF_AN_OLDER_LINUX, source, str(folder), str(there)],
        capture_output=True,
        text=True,
    )
    stopped = json.loads(done.stdout)
    assert len(stopped) == 5 and all("PermissionError" in why for why in stopped.values())
    assert there.read_text() == "kept"


@contained
@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv") or not Path("/usr/bin/python3").is_file(),
    reason="only root can become somebody else",
)
def test_code_is_contained_without_root_too(tmp_path) -> None:
    source = str(Path(running.__file__).parents[3])
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from fourstage.rewards.code.running import Limits, Runner\n"
        "r = Runner(Limits(memory=400_000_000))\n"
        "print(repr(r.leak()), r.tests('def f(): return 1', ['assert f() == 1']).told['passed'])"
    )
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-c", script, source],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("another user cannot read this folder")
    assert done.stdout.split("\n")[0] == "'' [True]", done.stderr
