"""What runs again after a change of the code: all that it can change, and nothing more."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from common.sources import no_number, reachable
from common.warm import PRELOAD
from evaluation.sources import data_files, evaluation_files
from evaluation.suites import select
from merges.engine import registry
from search.sources import ALGORITHMS, search_files

pytestmark = pytest.mark.workflow
REPORT = {"smoke", "inspect", "make_tables", "make_figures", "make_page"}


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
    assert rules(found, "case2") == {"evaluate", "gate", "tune", "smoke", "inspect"}
    assert {name for rule, _, name in found if rule == "tune"} == {"ties_tuned"}
    assert rules(found) >= REPORT

    # One suite's definition: the same, and not case 1's.
    suite = "evaluation/tasks/bottle_kobest/suite.yaml"
    with changed(project, (suite, "label: Bottle KoBEST", "label: KoBEST")):
        assert jobs(project) == found

    # A metric of all suites: all evaluations and searches, and no merge that is not searched.
    found = after("evaluation/metrics.py")
    scored = {"evaluate", "ablation_evaluate", "gate", "tune", "evolve", "greedy"}
    assert rules(found) == scored | REPORT
    assert {case for rule, case, _ in found if rule == "evaluate"} == {"case1", "case2"}
    assert after("evaluation/backends/hf.py") == found

    # Arithmetic of the merges: of a few methods, of all, of DAM's training.
    found = after("merges/arithmetic/selection.py")
    assert {name for rule, _, name in found if rule in ("merge", "tune", "evolve", "greedy")} == {
        *("ties", "dare_ties", "ties_tuned")
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
    assert rules(found, "case2") == made | {"evaluate", "gate", "smoke", "inspect"}
    # The report alone.
    assert rules(after("report/palette.py")) == {"make_figures", "make_page"}
    assert rules(after("report/averages.py")) == {"make_tables", "make_figures", "make_page"}


def test_a_merge_waits_for_the_gate_and_one_that_fails_stops_it(project):
    project.config["gate"] = {"stop": True}
    project.config["methods"]["ties"]["set"]["density"] = 0.3
    project.write()
    found = jobs(project)
    assert {case for rule, case, _ in found if rule == "gate"} == {"case1", "case2"}
    assert {name for rule, _, name in found if rule in ("merge", "tune", "greedy")} == {"ties"}
    # The experts of the tiny experiment learn nothing.
    code, output = project.run("snakemake", "--configfile", "tiny.yaml", "--cores", "2")
    assert code != 0 and re.search(r"^error: expert \w+ did not learn its domain", output, re.M)
    assert "rule merge:" not in output and "rule make_tables:" not in output


# What only a command line needs: to list the methods, to say where the paper's values are.
_READS_METHODS = {
    *(f"merges/engine/{name}.py" for name in ("__init__", "parameters", "registry")),
    *(f"merges/statistics/{name}.py" for name in ("__init__", "kinds")),
}
BESIDES = {
    # It also looks at the folder that it is to write.
    "align": _READS_METHODS | {f"merges/engine/{name}.py" for name in ("checks", "requests")},
    "teachers": _READS_METHODS,
    "inspect": _READS_METHODS,
    "tables": {"report/published.py"},
}
# Runs steps in forks of one process, and writes which files of the project each has imported.
SPY = """
import importlib, json, os, sys
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)  # once for all steps
root = os.environ["PYTHONPATH"] + os.sep
for name, (module, arguments) in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        importlib.import_module(module).main(arguments)
        files = {getattr(found, "__file__", None) or "" for found in list(sys.modules.values())}
        with open(f"{name}.imports", "w") as stream:
            json.dump([file[len(root):] for file in files if file.startswith(root)], stream)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} failed")
"""


def steps(case, experts, suites):
    """Return one step of each kind: its module, its command line, its entry points."""
    models, data = f"{case}/models", f"{case}/data"
    parents = ["--base", f"{models}/base", "--experts", *(f"{e}={models}/{e}" for e in experts)]
    learned = ["--calibration", *(f"{e}={data}/calibration/{e}.jsonl" for e in experts)]
    guided = ["--data", data, "--suites", ",".join(suites), "--out"]
    tasks, world, states = select(suites), f"bottle/{case}.py", "merges/dam/states.py"
    dam = ["--method", "dam", "--teachers", f"{case}/teachers", "--set", "samples=8"]
    tune = ["tune", "--method", "ties", *parents, "--candidates", '[{"density": 0.3}]', *guided]
    evolve = ["evolve", "--method", "dare_ties", *parents, "--budget", "2", *guided]
    train = ["train", "--case", case, "--role", "base", "--data", data, "--steps", "1", "--out"]
    few = ["--test-items", "2", "--dev-items", "2", "--calibration-rows", "4", "--out"]
    scores = ["--model", f"{models}/base", "--split", "dev", *guided, "base.json"]
    greedy = ["greedy", *parents, *guided]
    asked = ["prompts", "--tokenizer", f"{models}/base", *guided, "asked"]
    smoke = ["smoke", "--model", f"{models}/base", "--out", "smoke.json"]
    tables = ["tables", "--config", "config.json", "--results", ".", "--out", "more"]
    return {
        "data": (
            "bottle",
            ["data", "--case", case, *few, "made"],
            "bottle/data.py",
            world,
        ),
        "train": ("bottle", [*train, "trained"], "bottle/training.py", world),
        "evaluate": ("evaluation", scores, *evaluation_files(tasks)),
        "prompts": ("evaluation", asked, "evaluation/asked.py", *evaluation_files(tasks)),
        "ties": ("merges", ["--method", "ties", *parents, "--out", "a"], *registry.sources("ties")),
        "dam": ("merges", [*dam, *parents, *learned, "--out", "b"], *registry.sources("dam")),
        "align": (
            "merges",
            ["align", "--reference", f"{models}/base", "--model", f"{models}/de", "--out", "g"],
            "merges/alignment/aligning.py",
            "checkpoints/conversion.py",
        ),
        "teachers": (
            "merges",
            ["teachers", *parents, *learned, "--out", "c"],
            states,
        ),
        "tune": ("search", [*tune, "d"], *search_files("tune", "ties", tasks)),
        "evolve": ("search", [*evolve, "e"], *search_files("evolve", "dare_ties", tasks)),
        **{
            name: (
                "search",
                [
                    *evolve,
                    name,
                    "--algorithm",
                    name,
                    *(["--budget", "16"] if name == "map" else []),
                ],
                *search_files("evolve", "dare_ties", tasks, algorithm=name),
            )
            for name in ALGORITHMS
            if name != "cma-es"
        },
        "greedy": (
            "search",
            [*greedy, "f"],
            *search_files("greedy", "linear", tasks),
        ),
        "inspect": (
            "merges",
            ["inspect", *parents, *learned, "--rows", "2", "--out", "inspection.json"],
            "merges/inspecting.py",
        ),
        "smoke": ("checkpoints", smoke, "checkpoints/smoke.py"),
        "tables": ("report", tables, "report/tables.py", "report/cost.py"),
    }


def test_every_module_that_a_step_imports_is_in_its_key_or_cannot_change_a_number(project):
    made = steps("case2", ("de", "ko", "sql"), ["bottle_okapi_de/arc", "bottle_sql_eval"])
    commands = {name: (f"{step[0]}.cli", step[1]) for name, step in made.items()}
    done = subprocess.run(
        [sys.executable, "-c", SPY, json.dumps(commands), json.dumps(PRELOAD)],
        cwd=project.results,
        env=os.environ | {"PYTHONPATH": str(project.folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (_, _, *entries) in made.items():
        imported = set(json.loads((project.results / f"{name}.imports").read_text()))
        key = set(reachable(tuple(entries)))
        assert imported & key, name
        unknown = {path for path in imported - key if not no_number(path)} - BESIDES.get(
            name, set()
        )
        assert not unknown, (name, unknown)


def test_one_converter_and_one_engine_are_in_the_keys_that_use_them():
    data = {suite: set(reachable(data_files([suite]))) for suite in ("ja8", "kobest")}
    assert data["ja8"] - data["kobest"] >= {"evaluation/data/converters/ja8.py"}
    assert "evaluation/data/converters/kobest.py" not in data["ja8"]
    sql = {
        engine: set(reachable(evaluation_files(select(["sql_eval"]), engine=engine)))
        for engine in ("sqlite", "postgres")
    }
    assert "evaluation/sql/postgres.py" in sql["postgres"] - sql["sqlite"]
    assert "evaluation/sql/sqlite.py" in sql["sqlite"]
    vllm = set(reachable(evaluation_files(select(["kobest"]), "vllm")))
    assert "evaluation/backends/vllm.py" in vllm and "evaluation/backends/hf.py" not in vllm
    assert not any(path.startswith("evaluation/sql/") for path in vllm)
