"""What a run says about its machine."""

import json
import subprocess
import time

from common import machine

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9004
flags\t\t: fpu sse4_2 avx2 avx512f avx512bw
"""


def test_a_processor_is_named_by_family_model_and_instruction_sets(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    found = machine.describe(tmp_path / "cpuinfo")
    assert found["processor"] == "AMD EPYC 9004 (family 25, model 17)"
    assert found["instructions"] == ["AVX2", "AVX-512"]
    assert found["cores"] >= 1
    assert machine.describe(tmp_path / "none")["instructions"] == []


def test_a_run_held_to_avx2_names_no_more(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert machine.used(cpuinfo) == machine.describe(cpuinfo)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    found = machine.used(cpuinfo)
    assert found["instructions"] == ["AVX2"]
    assert found["processor"].endswith("model 17), libraries held to AVX2,")
    cpuinfo.write_text(CPUINFO.replace(" avx512f avx512bw", ""))  # all that it has
    assert machine.used(cpuinfo) == machine.describe(cpuinfo)


def test_a_run_is_recorded_once_it_has_done_a_step(tmp_path):
    (tmp_path / "case1").mkdir()
    cost = tmp_path / "case1/cost.json"
    cost.write_text("{}")
    machine.record(tmp_path, tmp_path, time.time() + 10)  # nothing done since
    assert not (tmp_path / "machine.json").exists()
    for runs in (1, 2):
        machine.record(tmp_path, tmp_path, time.time() - 60)
        found = json.loads((tmp_path / "machine.json").read_text())
        assert len(found) == runs
    assert 60 <= found[0]["seconds"] < 90


def test_the_commit_says_whether_tracked_files_differ(tmp_path):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", tmp_path, *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert machine.commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    first = git("rev-parse", "HEAD")
    assert machine.commit(tmp_path) == first[:12]
    (tmp_path / "file").write_text("b")
    assert machine.commit(tmp_path) == f"{first[:12]} with changes"
