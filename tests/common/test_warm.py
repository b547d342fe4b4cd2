"""A command gives the same output and exit code cold and warm, and dies with its caller."""

import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import client, warm

PROGRAM = """
import os, sys, time
def main(arguments):
    from common.errors import UserError
    if arguments[0] == "wrong":
        raise UserError("what, where, mend")
    if arguments[0] == "fault":
        raise RuntimeError("a fault")
    if arguments[0] == "killed":
        os.kill(os.getpid(), int(arguments[1]))
    if arguments[0] == "system":
        import errno
        number = getattr(errno, arguments[1])
        raise OSError(number, os.strerror(number), "some/place")
    if arguments[0] == "unnamed":
        print("kept")
        raise OSError(24, os.strerror(24))
    if arguments[0] == "parent":
        os.kill(os.getppid(), 9)
        time.sleep(60)
    if arguments[0] == "letters":
        print("\u2020")
        return 0
    if arguments[0] == "memory":
        import gc, resource
        print(gc.get_freeze_count())
        for _ in range(5):  # three blocks of 30 MB, written and given back
            blocks = [bytearray(30 << 20) for _ in range(3)]
            for block in blocks:
                block[::4096] = b"x" * len(block[::4096])
            del blocks, block
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return 0
    if arguments[0] == "sleep":
        open("pid", "w").write(str(os.getpid()))
        time.sleep(60)
    print(os.getcwd(), os.environ["MARK"], *arguments)
    print("to stderr", file=sys.stderr)
    return 3
"""


@pytest.fixture(scope="module")
def worker():
    # The worker's own imports are not what is tested here.
    with warm.Worker(preload=["json"]):
        yield


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def command(*arguments):
    return [sys.executable, "-c", "from common.client import run; run('program')", *arguments]


def environment(folder, warmly):
    env = {**os.environ, "MARK": "m", "PYTHONPATH": f"{Path.cwd()}:{folder}"}
    return env if warmly else {k: v for k, v in env.items() if k != client.VARIABLE}


def run(folder, warmly, *arguments):
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder, warmly),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("what", ["fine", "wrong"])
def test_warm_equals_cold(worker, folder, what):
    cold, warmly = run(folder, False, what, "x"), run(folder, True, what, "x")
    assert cold == warmly
    assert cold[0] == (3 if what == "fine" else 2)
    if what == "fine":
        assert cold[1] == f"{folder} m fine x\n"
    else:
        assert cold[2] == "error: what, where, mend\n"


@pytest.mark.parametrize(
    ("number", "why"),
    [(9, "(SIGKILL); the system may have run out of memory"), (11, "(SIGSEGV); a library crashed"),
     (15, "(SIGTERM); somebody or a scheduler ended it")],
)  # fmt: skip
def test_a_step_that_was_killed_says_so(worker, folder, number, why):
    code, _, said = run(folder, True, "killed", str(number))
    assert code == 128 + number and said.count("\n") == 1
    assert f"error: the step was killed by signal {number} {why}" in said


def test_a_step_whose_server_was_killed_says_so(worker, folder):
    code, _, said = run(folder, True, "parent")
    assert code == 1 and said.count("\n") == 1
    assert "error: the warm worker was killed, and with it this step" in said


@pytest.mark.parametrize("warmly", [True, False])
@pytest.mark.parametrize(
    "name", ["EROFS", "ENOSPC", "EDQUOT", "EIO", "EACCES", "EEXIST", "ENOTDIR", "EFBIG", "EMFILE"]
)
def test_every_error_of_the_system_is_one_line_with_its_place(worker, folder, name, warmly):
    import errno

    code, _, said = run(folder, warmly, "system", name)
    assert code == 2 and said.count("\n") == 1
    assert f"error: some/place: {os.strerror(getattr(errno, name))}; " in said


@pytest.mark.parametrize("warmly", [True, False])
def test_what_was_printed_before_an_error_of_the_system_is_kept(worker, folder, warmly):
    code, printed, said = run(folder, warmly, "unnamed")
    assert (code, printed) == (2, "kept\n")
    assert said.startswith("error: standard output or a file: Too many open files; ")


@pytest.mark.parametrize("warmly", [True, False])
def test_output_on_a_full_device_is_one_line(worker, folder, warmly):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("letters"),
            cwd=folder,
            env=environment(folder, warmly),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: standard output or a file: No space left on device; ")


def test_letters_that_a_terminal_lacks_are_escaped(folder):
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = subprocess.run(
        command("letters"),
        cwd=folder,
        env={**environment(folder, False), **ascii_only, "PYTHONIOENCODING": ""},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u2020\n", b"")


def listens(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(f"\0{name}")
        except ConnectionRefusedError:
            return False
    return True


def test_a_worker_leaves_no_file_and_serves_its_user_alone(folder, monkeypatch):
    with warm.Worker(preload=["json"]):
        name = os.environ[client.VARIABLE]
        assert run(folder, True, "fine")[0] == 3
        # Another user would see the name too: it says who is asked, and who asks.
        assert listens(name)
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        assert client.request("program", ["fine"]) is None
    wait_for(lambda: not listens(name))


def test_a_client_imports_little():
    """It starts for every step: what it has no use for would be most of its time."""
    shown = "import sys, common.client; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "common.client" in imported
    assert not {"argparse", "dataclasses", "subprocess", "typing", "common.warm"} & imported


def test_a_fault_of_the_program_shows_its_traceback(worker, folder):
    code, _, stderr = run(folder, True, "fault")
    assert code == 1 and "RuntimeError: a fault" in stderr


def test_a_fork_keeps_its_memory_and_leaves_that_of_the_libraries_alone(folder):
    with warm.Worker(preload=["json"]):
        code, printed, _ = run(folder, True, "memory")
    frozen, first, *others = map(int, printed.split())
    assert code == 0
    assert frozen > 1000  # what the worker made before it forked; no collection goes through it
    # Pages of 90 MB are 23,040; given back to the system, each would be faulted in every time.
    assert others[-1] - first < 1000


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_step_dies_with_its_caller(worker, folder):
    caller = subprocess.Popen(command("sleep"), cwd=folder, env=environment(folder, True))
    pid = folder / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    assert alive(int(pid.read_text()))
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_for(lambda: not alive(int(pid.read_text())))


def test_without_a_worker_the_command_runs_cold(folder):
    env = {**environment(folder, False), client.VARIABLE: str(folder / "nothing")}
    done = subprocess.run(command("fine"), cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"{folder} m fine\n")


@pytest.mark.parametrize("module", [*warm.PRELOAD, *warm.STEPS])
def test_what_a_worker_imports_is_there(module):
    """One that were gone would be a line in a log, and a slower run."""
    assert importlib.util.find_spec(module) is not None


def test_a_step_has_the_worker_s_modules_until_one_of_their_files_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brewery").mkdir()
    (tmp_path / "brewery/__init__.py").touch()
    (tmp_path / "brewery/mash.py").write_text("from brewery import malt\nTASTE = malt.TASTE\n")
    (tmp_path / "brewery/malt.py").write_text("import colorsys\nTASTE = 'sweet'\n")
    sys.modules.pop("colorsys", None)
    kept = warm._Kept(["brewery.mash"])
    held = sys.modules["brewery.mash"]
    kept.forget_if_changed()
    assert sys.modules["brewery.mash"] is held
    (tmp_path / "brewery/malt.py").write_text("TASTE = 'smoky'\n")
    kept.forget_if_changed()
    assert not {"brewery", "brewery.mash", "brewery.malt"} & sys.modules.keys()
    assert importlib.import_module("brewery.mash").TASTE == "smoky"
    assert "colorsys" in sys.modules  # a library's, which nobody edits
    kept.forget_if_changed()
    (tmp_path / "brewery/mash.py").unlink()
    kept.forget_if_changed()
    assert "brewery.mash" not in sys.modules
