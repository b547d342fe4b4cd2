"""What an experiment on published checkpoints will fetch, store, compute and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.files import read_json
from paper import budget
from paper.checks import check_disk, check_places, free_gigabytes, gigabytes_in, has_token, no_token
from paper.hub.lock import locked
from paper.hub.table import Reference
from workflow import capacity, resources
from workflow.config.ablation import Ablation
from workflow.config.experiment import Experiment

# Models of the ablation on the disk at a time where they are not kept: while one is evaluated or
# checked, the next is made.
AT_A_TIME = 2


@dataclass(frozen=True)
class Step:
    """One line of the estimate: what a kind of step takes in a case, all its runs together.

    Attributes:
        part: The case, or ``ablation``.
        name: What is done.
        gigabytes: What it leaves on the disk, GB of 10^9 bytes.
        hours: Its runs one after another.
        gpu_hours: Of these, with a GPU at work.
        known: How the figures are known: ``measured``, ``estimated`` or ``guessed``.
        memory: What one run holds, GB, where that is estimated.
    """

    part: str
    name: str
    gigabytes: float
    hours: float
    gpu_hours: float = 0.0
    known: str = "estimated"
    memory: float = 0.0


def measured(step: Step, costs: Sequence[Path], clock: str = "wall_s") -> Step:
    """Replace an estimate by measurements; runs to come count as the others' mean.

    Args:
        step: The estimate.
        costs: The cost.json of each run, whether it is there or not.
        clock: Which of its times is meant.
    """
    done = [read_json(path) for path in costs if path.is_file()]
    if not done:
        return step
    share = len(costs) / len(done) / 3600
    hours, gpu = (share * sum(cost.get(name, 0) for cost in done) for name in (clock, "gpu_s"))
    part = "" if len(done) == len(costs) else f" in {len(done)} of {len(costs)}"
    return replace(step, hours=hours, gpu_hours=gpu, known=f"measured{part}")


def _fetching(config: Experiment) -> Iterator[Step]:
    """Estimate the downloads, and the second copy of models that come as pickles."""
    lock, about = config.hub_lock, budget.assumptions()
    seen: set[Reference] = set()

    def download(part: str, what: str, size: float, known: str) -> Step:
        return Step(part, f"download of {what}", size, size * 1e9 / about["line"] / 3600, 0, known)

    for name in budget.fetched_cases(config):
        new = [ref for ref in budget.references_of_case(config, name) if ref not in seen]
        seen |= set(new)
        for kind, what in (("model", "models"), ("dataset", "calibration data sets")):
            locks = {ref: locked(lock, ref) for ref in new if ref.kind == kind}
            sizes = [budget.size_of(ref, config, known) for ref, known in locks.items()]
            total = sum(about["dataset_gb"] if size is None else size for size in sizes)
            known = "measured" if all(locks.values()) else "estimated"
            yield download(
                name, f"{len(locks)} {what}", total, "guessed" if None in sizes else known
            )
        yield download(name, "the benchmarks", about["benchmarks_gb"], "guessed")
        if pickles := sum(ref.pickle for ref in new):
            size = pickles * config.cases[name].gigabytes
            hours = 2 * size * 1e9 / about["disk_bandwidth"] / 3600
            yield Step(name, f"{pickles} models of pickles, rewritten", size, hours)


def _making(config: Experiment, name: str, out: Path) -> Iterator[Step]:
    """Estimate a case's teachers, merges, trainings, evaluations and smoke check."""
    size = config.cases[name].gigabytes
    rows = {row: config.methods[row] for row in config.rows_of(name)}
    searched = [row for row, entry in rows.items() if entry.search]
    fixed = [row for row, entry in rows.items() if entry.hub is None and row not in searched]
    learning = [row for row in fixed if rows[row].learns]
    plain = [row for row in fixed if row not in learning]

    def merges(rows: Sequence[str], what: str, hours: float, gpu_hours: float) -> Step:
        step = Step(name, f"{len(rows)} merges {what}", len(rows) * size, hours, gpu_hours)
        return measured(step, [out / name / "merges" / row / "cost.json" for row in rows])

    if any(rows[row].method == "dam" for row in (*learning, *searched)):
        hours = budget.teacher_hours(config, name)
        states = budget.states_gigabytes(config, name)
        step = Step(name, "teachers' predictions", states, hours, hours)
        yield measured(step, [out / name / "teachers" / "cost.json"])
    if plain:
        yield merges(plain, "on the CPU", len(plain) * budget.merge_hours(config, name), 0.0)
    if learning:
        hours = budget.training_hours(config, name, budget.learning_runs(config, name))
        yield merges(learning, "that learn", hours, hours)
    if searched:
        hours = sum(budget.search_hours(config, name, rows[row]) for row in searched)
        yield merges(searched, "that are searched for", hours, hours)
    models = [*config.cases[name].parents, *rows]
    yield _evaluating(config, name, name, [out / name / "scores/test" / model for model in models])
    yield _checking(name, len(models))


def _evaluating(config: Experiment, case: str, part: str, scores: Sequence[Path]) -> Step:
    hours = len(scores) * budget.evaluation_hours(config, case)
    step = Step(part, f"evaluation of {len(scores)} models", 0.0, hours, hours)
    return measured(step, [path.with_name(f"{path.name}.cost.json") for path in scores])


def _checking(part: str, models: int) -> Step:
    hours = models * budget.assumptions()["smoke_s"] / 3600
    return Step(part, f"smoke check of {models} models", 0.0, hours)


def _ablation(config: Experiment, ablation: Ablation, out: Path) -> Iterator[Step]:
    """Estimate the ablation's runs."""
    case = ablation.case
    runs = budget.ablation_runs(config)
    folders = [
        out / "ablation" / objective / f"seed{seed}"
        for objective in ablation.objectives
        for seed in ablation.seeds
    ]
    hours = budget.training_hours(config, case, runs)
    kept = len(runs) if ablation.keep_merges else min(AT_A_TIME, len(runs))
    size = kept * config.cases[case].gigabytes
    what = "" if kept == len(runs) else f", {kept} kept at a time"
    step = Step("ablation", f"{len(runs)} merges that learn{what}", size, hours, hours)
    yield measured(step, [folder / "model" / "cost.json" for folder in folders])
    yield _evaluating(config, case, "ablation", [folder / "scores" for folder in folders])
    yield _checking("ablation", len(runs) * (1 if ablation.keep_merges else 2))


def steps_of(config: Experiment, out: Path) -> list[Step]:
    """Estimate every kind of step of an experiment, in the order of the work, case by case.

    Args:
        config: The resolved configuration.
        out: The experiment's results; costs measured there replace estimates.

    Returns:
        The steps of the cases of published checkpoints, and of the ablation if its case is one.
    """
    cases = budget.fetched_cases(config)
    steps = [*_fetching(config), *(s for name in cases for s in _making(config, name, out))]
    steps.sort(key=lambda step: cases.index(step.part))
    if config.ablation and config.ablation.case in cases:
        steps += _ablation(config, config.ablation, out)
    return steps


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lay rows out as lines, numbers to the right, the first and the last column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if place in (0, len(widths) - 1) else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table_of(steps: Sequence[Step]) -> list[str]:
    """Lay steps out as lines of a table, with the sums of each part and of all."""
    about = budget.assumptions()["machine"]
    price, currency = about["price_per_hour"], about["currency"]
    rows: list[tuple[str, ...]] = [("step", "GB", "hours", "GPU h", currency, "")]

    def add(name: str, of: Sequence[Step], known: str) -> None:
        size, hours, gpu = (
            sum(getattr(step, field) for step in of)
            for field in ("gigabytes", "hours", "gpu_hours")
        )
        shown = [f"{size:.0f}", f"{hours:.2f}", f"{gpu:.2f}", f"{hours * price:.2f}"]
        rows.append((name, *("" if float(text) == 0 else text for text in shown), known))

    for part in dict.fromkeys(step.part for step in steps):
        own = [step for step in steps if step.part == part]
        for step in own:
            add(f"{part}: {step.name}", [step], step.known)
        add(f"{part}: in all", own, "")
    add("all", steps, "")
    return aligned(rows)


def _references(config: Experiment) -> tuple[list[str], list[str]]:
    lines, errors = [], []
    lock = config.hub_lock
    for reference in budget.references_of(config):
        known = locked(lock, reference)
        size = budget.size_of(reference, config, known)
        revision = known.revision if known else reference.revision
        how = "recorded" if known else "table" if reference.gb else "estimated"
        token = ""
        if reference.gated and config.hub.mirror is None:
            token = ", gated: a token is there" if has_token() else ", gated: NO TOKEN"
            if not has_token():
                errors.append(no_token(reference))
        lines.append(
            f"  {reference.repository}@{revision[:12] if revision else 'newest'}: "
            f"{f'{size:.1f} GB ({how})' if size else 'size unknown'}, "
            f"licence {reference.licence or 'unknown, see its page'}{token}"
        )
    return lines, errors


def _gpu_memory(config: Experiment) -> tuple[list[str], list[str]]:
    """Compare the memory that steps hold on a GPU with the one here, or else the assumed one."""
    found = capacity.gpus()
    has = found[0] / 1000 if found else budget.assumptions()["gpu"]["memory_gb"]
    where = "the GPU here has" if found else "the GPU assumed has"
    lines, errors = [], []
    for name in budget.fetched_cases(config):
        case = config.cases[name]
        learning = any(config.methods[row].learns for row in config.rows_of(name))
        kind = "trained_merge" if learning else "evaluate"
        asked = resources.ask(kind, case, experts=len(case.experts))["gpu_mem_mb"] / 1000
        what = "training" if learning else "evaluation"
        lines.append(f"GPU memory: {name} holds {asked:.0f} GB in {what}, {where} {has:.1f} GB")
        if asked > has:
            errors.append(
                f"{name}: {what} holds {asked:.0f} GB on a GPU, and {where} {has:.1f} GB; use a "
                "larger one (gpu.memory_gb in paper/assumptions.yaml, where none is here), or "
                "fewer experts"
            )
    return lines, errors


def report(config: Experiment, results: Path) -> tuple[list[str], list[str]]:
    """Report what an experiment will fetch, store, compute and cost.

    Args:
        config: The resolved configuration.
        results: The folder of its results; it need not exist.

    Returns:
        Lines for people, and the errors that would stop the run, a line each.

    Raises:
        UserError: Nothing is assumed of a task, or a file of measured costs is damaged.
    """
    if not budget.references_of(config):
        return [f"{config.name} fetches nothing: the bottle makes its own models"], []
    references, errors = _references(config)
    steps = steps_of(config, results)
    memory, too_large = _gpu_memory(config)
    stored = sum(step.gigabytes for step in steps)
    here = gigabytes_in(results)
    price = budget.assumptions()["machine"]
    lines = ["to fetch:", *references, "", *table_of(steps), ""]
    lines += [
        "hours: the steps one after another; on one machine, CPU steps run next to the GPU's",
        f"{price['currency']}: at {price['price_per_hour']:g} an hour for a machine with one GPU, "
        "which is assumed, as is all else in paper/assumptions.yaml",
        *memory,
        f"disk: about {stored:.0f} GB below {results}, of which {here:.0f} GB are there; "
        f"{free_gigabytes(results):.0f} GB are free",
    ]
    errors += too_large
    # Every obstacle is listed, so that one preflight suffices.
    for check in (lambda: check_places(config), lambda: check_disk(stored - here, results)):
        try:
            check()
        except UserError as error:
            errors.append(str(error))
    return lines, errors
