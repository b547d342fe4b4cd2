"""What runs again after a change of the code: all that it can change, and nothing more."""

import ast
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow
ROOT = Path(__file__).resolve().parents[2]
REPORT = {"smoke", "make_tables", "make_figures", "make_page"}
CASE1, CASE2 = ("bottle_ja8", "bottle_gsm_en"), ("bottle_okapi_de", "bottle_kobest")


@contextmanager
def changed(project, *edits):
    """Change files of a project: (path, text that goes, text that comes); None appends."""
    paths = [project.folder / path for path, _, _ in edits]
    before = [path.read_bytes() for path in paths]
    for path, (_, old, new) in zip(paths, edits, strict=True):
        text = path.read_text(encoding="utf-8")
        assert old is None or old in text, (path, old)
        text = text + new if old is None else text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    yield
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)


def jobs(project):
    """Return the jobs that a dry run lists: (rule, case, name of the model or row)."""
    listed = re.split(r"^(?:local)?rule (\w+):$", project.snakemake("-n"), flags=re.M)[1:]
    found = set()
    for rule, about in zip(listed[::2], listed[1::2], strict=True):
        names = dict(re.findall(r"(\w+)=([^\s,]+)", about.partition("wildcards:")[2]))
        case = "ablation" if "objective" in names else names.get("case")
        found.add((rule, case, names.get("model") or names.get("row") or names.get("expert")))
    return found - {("all", None, None)}


def rules(found, case=None):
    return {rule for rule, of, _ in found if case in (None, of)}


def rewritten(source):
    """Write a file in other words: no comment, another format, other docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            node.body[0].value.value += " In other words."
    return ast.unparse(tree)


def test_no_comment_docstring_format_driver_or_unused_suite_runs_anything(project):
    assert jobs(project) == set()
    for path in project.folder.glob("*/**/*.py"):
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in project.folder.glob("evaluation/**/*.yaml"):
        path.write_text("# A comment.\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("cli", "cost", "errors", "manifest", "progress", "sources", "warm"):
        with open(project.folder / "common" / f"{name}.py", "a", encoding="utf-8") as source:
            source.write("\nX = 1\n")
    for room in ("bottle", "checkpoints", "evaluation", "merges", "report", "search"):
        with open(project.folder / room / "cli.py", "a", encoding="utf-8") as source:
            source.write("\nX = 1\n")
    for name in ("agreement", "postgres", "sql_eval", "server"):
        with open(project.folder / "evaluation/sql" / f"{name}.py", "a", encoding="utf-8") as file:
            file.write("\nX = 1\n")
    for path in ("backends/vllm.py", "data/converters/ja8.py", "tasks/ja8/functions.py"):
        with open(project.folder / "evaluation" / path, "a", encoding="utf-8") as source:
            source.write("\nX = 1\n")
    tasks = project.folder / "evaluation" / "tasks"
    shutil.copytree(tasks / "kobest", tasks / "unused")
    assert jobs(project) == set()


def test_a_change_of_what_computes_runs_what_it_can_change(project):
    everything = "\nX = 1\n"

    def after(*paths):
        with changed(project, *((path, None, everything) for path in paths)):
            return jobs(project)

    # The SQL that judges case 2's queries: its evaluations and searches, and no merge but those.
    found = after("evaluation/sql/bottle.py")
    assert rules(found, "case1") == set() and rules(found, "ablation") == set()
    assert rules(found, "case2") == {"evaluate", "gate", "tune", "smoke"}
    assert {name for rule, _, name in found if rule == "tune"} == {"ties_tuned"}
    assert rules(found) >= REPORT

    # One suite's definition: the same, and not case 1's.
    suite = "evaluation/tasks/bottle_kobest/suite.yaml"
    with changed(project, (suite, "label: Bottle KoBEST", "label: KoBEST")):
        assert jobs(project) == found

    # A metric of all suites: all evaluations and searches, and no merge that is not searched.
    found = after("evaluation/metrics.py")
    scored = {"evaluate", "ablation_evaluate", "gate", "tune", "evolve", "greedy"}
    assert rules(found) == scored | REPORT | {"ablation_smoke"} - {"ablation_smoke"}
    assert {case for rule, case, _ in found if rule == "evaluate"} == {"case1", "case2"}
    assert after("evaluation/backends/hf.py") == found

    # Arithmetic of the merges: of a few methods, of all, of DAM's training.
    found = after("merges/arithmetic/selection.py")
    assert {name for rule, _, name in found if rule in ("merge", "tune", "evolve", "greedy")} == {
        *("ties", "dare_ties", "ties_tuned", "evolutionary")
    }
    found = after("merges/arithmetic/kernels.py")
    assert rules(found) >= {"merge", "tune", "evolve", "greedy", "ablation_merge"}
    assert not rules(found) & {"teachers", "gate", "bottle_base", "bottle_data"}
    found = after("merges/dam/training.py")
    assert {name for rule, _, name in found if rule == "merge"} == {"dam_paper"}
    assert rules(found) & {"teachers", "tune", "evolve", "greedy", "ablation_merge"} == {
        "ablation_merge"
    }
    # A generator of one case's text: all of that case, nothing of the other.
    found = after("bottle/worlds/german.py")
    assert rules(found, "case1") == rules(found, "ablation") == set()
    made = {"bottle_data", "bottle_base", "bottle_expert", "teachers", "merge", "tune"}
    assert rules(found, "case2") == made | {"evaluate", "gate", "smoke"}
    # The report alone.
    assert rules(after("report/palette.py")) == {"make_figures", "make_page"}
    assert rules(after("report/averages.py")) == {"make_tables", "make_figures", "make_page"}
