"""What CONTRIBUTING.md shows works as it is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MERGE_TESTS = ("test_median", "test_merges_registry", "test_merges_docs", "test_merges_properties")

# Runs command lines from standard input, then the tests in its arguments.
SCRIPT = """
import importlib, shlex, sys
for line in sys.stdin.read().splitlines():
    python, m, package, *arguments = shlex.split(line)
    assert (python, m) == ("python", "-m"), line
    assert not importlib.import_module(f"{package}.cli").main(arguments), line
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


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
    assert len(commands()) == 5
    tests = [f"tests/merges/{name}.py" for name in MERGE_TESTS]
    # One process for everything: imports are what takes time here.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *tests, "-k", "median", "-p", "no:cacheprovider"],
        input="\n".join(commands()),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "median: Median" in done.stdout
    assert re.search(r"mine/sums +acc +\d\.\d{3}", done.stdout)
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 3
