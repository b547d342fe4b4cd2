"""A step's measured cost: bytes, children, mappings, GPUs; and that failures leave none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from common import cost

SIZE = 3_000_000


def measured(tmp_path, work) -> dict:
    with cost.measure(tmp_path / "cost.json") as counter:
        work(counter)
    return json.loads((tmp_path / "cost.json").read_text())


def test_bytes_are_those_that_were_asked_for_whether_cached_or_not(tmp_path):
    def work(_):
        (tmp_path / "file").write_bytes(bytes(SIZE))
        for _ in range(2):  # the second time surely from the page cache
            (tmp_path / "file").read_bytes()

    found = measured(tmp_path, work)
    assert 2 * SIZE <= found["bytes_read"] < 2 * SIZE + 100_000
    assert SIZE <= found["bytes_written"] < SIZE + 100_000


def test_bytes_of_a_child_that_was_waited_for_count(tmp_path):
    def work(_):
        command = f"open({str(tmp_path / 'file')!r}, 'wb').write(bytes({SIZE}))"
        subprocess.run([sys.executable, "-c", command], check=True)

    assert SIZE <= measured(tmp_path, work)["bytes_written"] < SIZE + 100_000


def test_a_fork_counts_its_own_bytes_only(tmp_path):
    (tmp_path / "file").write_bytes(bytes(SIZE))
    (tmp_path / "file").read_bytes()  # the parent's
    child = os.fork()
    if child == 0:
        with cost.measure(tmp_path / "cost.json"):
            pass
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / "cost.json").read_text())["bytes_read"] < 100_000


def test_mapped_bytes_are_told_by_the_reader(tmp_path):
    assert measured(tmp_path, lambda _: cost.count_mapped(SIZE))["bytes_read"] >= SIZE


def test_gpu_seconds_are_wall_seconds_times_the_gpus_held(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = measured(tmp_path, lambda _: None)
    assert (found["gpu_s"], found["peak_gpu_mb"]) == (0, 0)
    peaks = [5_000_000_000, 0, 7_000_000_000]
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 3,
        max_memory_reserved=peaks.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = measured(tmp_path, lambda _: time.sleep(0.05))
    assert found["gpu_s"] == pytest.approx(2 * found["wall_s"], abs=0.002)
    assert found["peak_gpu_mb"] == 7000


def test_counts_add_up_and_a_failed_step_leaves_no_cost(tmp_path):
    def work(counter):
        counter.count(flops=2, forward_tokens=5)
        counter.count(flops=3)

    assert measured(tmp_path, work)["counted"] == {"flops": 5, "forward_tokens": 5}
    (tmp_path / "cost.json").unlink()
    with pytest.raises(ValueError, match="no"), cost.measure(tmp_path / "cost.json"):
        raise ValueError("no")
    assert not (tmp_path / "cost.json").exists()


def test_a_step_of_milliseconds_has_cpu_seconds(tmp_path):
    """The clock of `os.times` has ticks of ten milliseconds, which leave most such steps at 0."""

    def work(_):
        start = time.process_time()
        while time.process_time() - start < 0.004:
            pass

    for _ in range(5):
        assert 0.004 <= measured(tmp_path, work)["cpu_s"] < 0.5


def test_cpu_seconds_of_a_child_that_was_waited_for_count(tmp_path):
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    found = measured(tmp_path, lambda _: subprocess.run([sys.executable, "-c", busy], check=True))
    assert 0.3 <= found["cpu_s"] < 1.5
