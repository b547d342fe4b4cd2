"""A command gives the same output and exit code cold and warm, and dies with its caller."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import warm

PROGRAM = """
import os, sys, time
def main(arguments):
    from common.errors import UserError
    if arguments[0] == "wrong":
        raise UserError("what, where, mend")
    if arguments[0] == "fault":
        raise RuntimeError("a fault")
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
    return [sys.executable, "-c", "from common.cli import run; run('program')", *arguments]


def environment(folder, warmly):
    env = {**os.environ, "MARK": "m", "PYTHONPATH": f"{Path.cwd()}:{folder}"}
    return env if warmly else {k: v for k, v in env.items() if k != warm.VARIABLE}


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


def test_a_fault_of_the_program_shows_its_traceback(worker, folder):
    code, _, stderr = run(folder, True, "fault")
    assert code == 1 and "RuntimeError: a fault" in stderr


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
    env = {**environment(folder, False), warm.VARIABLE: str(folder / "nothing")}
    done = subprocess.run(command("fine"), cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"{folder} m fine\n")
