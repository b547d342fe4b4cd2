import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.main_snakefile).resolve().parent
if ROOT.name == "workflow":
    ROOT = ROOT.parent
sys.path.insert(0, str(ROOT))

from common import client, machine, numerics, sources
from common.errors import UserError
from common.manifest import library_versions
from evaluation import own_data
from evaluation.sources import data_files, evaluation_files
from evaluation.suites import select
from merges.engine import registry
from merges.statistics.kinds import KINDS
from search.sources import search_files
from workflow import configuration, lock, order
from workflow.config import hub
from workflow.config.methods import SEARCHES

order.respect_ancient()
try:
    CONFIG = configuration.from_snakemake(config, workflow.overwrite_configfiles)
except UserError as error:
    # Snakemake takes every word after --configfile for a further configuration.
    several = len(workflow.overwrite_configfiles) > 1
    remedy = "; if the last is a target, put it before --configfile" if several else ""
    raise WorkflowError(f"error: {error}{remedy}") from None

# `python -m workflow` holds the lock for the Snakemake that it starts; one started by hand takes it
# itself, unless it only looks.
if client.WORKFLOW not in os.environ and not {"-n", "--dry-run", "--dryrun", "--lint"} & set(
    sys.argv
):
    if workflow.is_main_process:
        try:
            LOCK = lock.take()
        except UserError as error:
            raise WorkflowError(f"error: {error}") from None

OUT = f"results/{CONFIG.name}"
SCORES_FROM = CONFIG.scores_from
# The tables' cases, and the further worlds of studies: the same cases from other seeds.
CASES = CONFIG.worlds
ABLATION = CONFIG.ablation
RUNS = [
    {"objective": objective, "seed": seed}
    for objective in (ABLATION.objectives if ABLATION else ())
    for seed in ABLATION.seeds
]
# A run of the ablation: its record, and its merged model, which may be dropped once it was evaluated.
RUN = f"{OUT}/ablation/{{objective}}/seed{{seed}}"
KEPT = not ABLATION or ABLATION.keep_merges
RUN_MODEL = f"{RUN}/model" if KEPT else f"{RUN}/merged"

# Finished tasks of evaluations. Not part of a rule's command, which would run again with another.
STORE = f"--store {OUT}/store" if CONFIG.evaluation.store else ""
# Nor how many GPUs an evaluation by vLLM has.
PARALLEL = " ".join(
    f"--{name.replace('_', '-')} {number}"
    for name, number in CONFIG.evaluation.scoring("tensor_parallel", "data_parallel").items()
)
# Read by the libraries when a job loads them.
NUMERICS = numerics.environment(CONFIG.numerics)
# Each step's cost.json names the commit.
if machine.COMMIT not in os.environ:
    os.environ[machine.COMMIT] = machine.commit(ROOT)
# Jobs run this project's packages with the interpreter that runs Snakemake, from any folder. A
# prefix replaces Snakemake's own strict mode, without which `| tee` would hide a failure.
shell.prefix(
    f"set -euo pipefail; STORE={shlex.quote(STORE)}; "
    f"PARALLEL_hf=''; PARALLEL_vllm={shlex.quote(PARALLEL)}; "
    # A cluster's job inherits the submitting machine's environment, not its processes.
    + (f"unset {client.VARIABLE} {client.WORKFLOW}; " if workflow.remote_exec else "")
    + f"export PYTHONPATH={shlex.quote(str(ROOT))} "
    f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" '
    "PYTHONHASHSEED=0 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 OMP_NUM_THREADS=1 "
    + " ".join(f"{name}={shlex.quote(value)}" for name, value in NUMERICS.items())
    + "; "
)


def any_of(names):
    """A wildcard constraint that matches exactly these names, or nothing where there are none."""
    return "|".join(sorted(set(names), key=len, reverse=True)) or "(?!)"


ROWS = {name: CONFIG.rows_of(case.of) for name, case in CASES.items()}
PARENTS = {name: list(case.parents) for name, case in CASES.items()}
SEARCHED = {
    kind: [name for name, row in CONFIG.methods.items() if row.search == kind] for kind in SEARCHES
}
# Some merges and cases are fetched from the hub, the others are made here.
HUB_ROWS = [name for name, row in CONFIG.methods.items() if row.hub]
FETCHED = [name for name, case in CASES.items() if case.fetched]
CASKS = [name for name, case in CASES.items() if case.in_cask]
MADE = [case for case in CASES if case not in FETCHED]
BOTTLED = [case for case in MADE if case not in CASKS]
PLAIN = [name for name, row in CONFIG.methods.items() if not row.search and not row.hub]


wildcard_constraints:
    case=any_of(CASES),
    expert=any_of(expert for case in CASES.values() for expert in case.experts),
    parent=any_of(parent for case in CASES for parent in PARENTS[case]),
    row=any_of(CONFIG.methods),
    model=any_of(model for case in CASES for model in PARENTS[case] + ROWS[case]),
    split="dev|test",
    objective=any_of(ABLATION.objectives if ABLATION else []),
    seed=r"\d+",


def exact_code(*entries):
    """Hash of a job's entry points, imports included, and of the libraries' versions.

    As a parameter it makes Snakemake run exactly the jobs whose code has changed. For jobs that
    only write texts or copy weights, which are the same on every processor.
    """
    return sources.version(entries) + json.dumps(library_versions())


def code(*entries):
    """`exact_code`, and the numerics of the experiment."""
    return exact_code(*entries) + json.dumps(NUMERICS)


def tasks_in(suites):
    return select(suites.split(","), own=own_data.known(CONFIG.tasks, with_rows=False))


def scoring_code(suites, backend):
    """Code of an evaluation on these suites."""
    return code(*evaluation_files(tasks_in(suites), backend, CONFIG.evaluation.engine))


def folder_of(path):
    return str(Path(path).parent)


def output_folder(wildcards, output):
    return folder_of(output[0])


# A row that failed stays a row: the tables show the reason that is kept here.
TELL_FAILURE = (
    " || {{ ( grep '^error: ' {log} || tail -n 1 {log} ) | tail -n 1 > {params.failed}; exit 1; }}"
)


def failed_file(wildcards, output):
    """Where a failed step's reason is kept: next to the model's folder or the scores' file."""
    if output[0].endswith("manifest.json"):
        return f"{folder_of(output[0])}.failed"
    return str(Path(output[0]).with_suffix(".failed"))


def options(values):
    """Command line options from a mapping: {learning_rate: 0.1} becomes --learning-rate 0.1."""
    return " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in values.items()
    )


def scoring(*names):
    """Options of how models are scored, given always, for commands' defaults are in no key."""
    return options(CONFIG.evaluation.scoring(*names))


def settings(values):
    """--set options of a method's parameters."""
    return " ".join(
        f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in values.items()
    )


def seed_of(wildcards):
    """A step's seed: its own in a study, else that of its case's world."""
    if wildcards.get("seed"):
        return int(wildcards.seed)
    return CASES[wildcards.case].seed


def worlds_beside(world):
    """The worlds of a world's case, itself included; a study's own world has none."""
    worlds = CONFIG.worlds_of(CASES[world].of)
    return list(worlds) if world in worlds else [world]


def pairs(paths):
    """NAME=PATH for each, as commands take several models or files."""
    return " ".join(f"{name}={path}" for name, path in paths.items())


# What the wildcard `setting` of a study means: the case and the method row, by setting.
SETTINGS = {}


def case_of(wildcards):
    """A step's case; the steps of the ablation and of studies have it in the configuration."""
    if wildcards.get("case"):
        return CASES[wildcards.case]
    if wildcards.get("setting"):
        return SETTINGS[wildcards.setting][0]
    return CASES[ABLATION.case] if ABLATION else next(iter(CASES.values()))


def row_of(wildcards):
    """The method row that a step belongs to; None where it belongs to none."""
    if wildcards.get("setting"):
        return SETTINGS[wildcards.setting][1]
    row = ABLATION.row if wildcards.get("objective") else wildcards.get("row")
    return CONFIG.methods.get(row)


def own_manifests(case):
    """What a step that scores a case's tasks needs of the user's own ones among them."""
    own = [task for task in CASES[case].tasks if task in CONFIG.tasks]
    return [f"{OUT}/{case}/data/tasks/{task}/manifest.json" for task in own]


def suites(wildcards):
    return ",".join(case_of(wildcards).evaluated(wildcards.get("split", "test")))
