"""What CONTRIBUTING.md shows works as it is printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MERGE_TESTS = ("test_median", "test_merges_registry", "test_merges_docs", "test_merges_properties")


def examples() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    return dict(
        re.findall(r"`([\w/]+\.\w+)`[^`\n]*(?:`methods`)?:\n\n```\w+\n(.*?)```", PAGE, re.S)
    )


def commands() -> list[str]:
    """Return the command lines that the page shows."""
    return "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).splitlines()


@pytest.mark.workflow
def test_the_method_and_the_task_pass_the_tests_and_work_by_hand(tmp_path):
    ignore = shutil.ignore_patterns(".*", "results", "__pycache__", "node_modules")
    shutil.copytree(ROOT, tmp_path, ignore=ignore, dirs_exist_ok=True)
    shown = examples()
    assert {"merges/methods/median.py", "sums.jsonl", "sums.yaml"} < set(shown)
    for name, text in shown.items():
        if name != "config.yaml":
            (tmp_path / name).write_text(text, encoding="utf-8")
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": places, "PYTHONPATH": str(tmp_path)}

    def run(*command: str) -> str:
        found = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
        return found.stdout

    lines = commands()
    assert len(lines) == 5
    printed = [run(*line.replace("python", sys.executable, 1).split()) for line in lines]
    assert "median: Median" in printed[1]
    assert re.search(r"mine/sums +acc +\d\.\d{3}", printed[-1])
    tests = [f"tests/merges/{name}.py" for name in MERGE_TESTS]
    ran = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "median"
    )
    assert int(re.search(r"(\d+) passed", ran)[1]) >= 3
