"""What every row and stage cost: measured time, memory and bytes, counted tokens and FLOPs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from report import fields
from report.case_table import table_title
from report.experiment import Case, Experiment, Model, searched, worlds_of
from report.grid import MISSING, Cell, Grid, Row
from report.reading import COST, NUMBER, Reader, read

STAGES = {
    "data": "Data",
    "base": "Base models",
    "experts": "Experts",
    "teachers": "DAM's teachers",
    "statistics": "Statistics of layers",
    "merges": "Merges",
    "search": "Tuning and search",
    "evaluation": "Evaluation",
    "ablation": "Ablation's merges",
}


@dataclass(frozen=True)
class Cost:
    """The cost of one step."""

    stage: str  # one of STAGES
    case: str  # the case study, or ``ablation``
    id: str  # model, row or run
    split: str  # for an evaluation, the split of the items; else empty
    wall_s: float  # wall time in seconds
    cpu_s: float  # CPU time in seconds, user and system
    peak_rss_mb: float  # peak resident memory in MB (10^6 bytes) of the process
    gpu_s: float = 0.0  # wall seconds times the GPUs that were held
    peak_gpu_mb: float = 0.0  # peak memory on a GPU in MB
    bytes_read: float = 0.0  # asked for by the process, from the page cache or not
    bytes_written: float = 0.0  # the same for writing
    checks_cpu_s: float = 0.0  # CPU seconds of comparing files with their manifests
    # Amounts by name, as the step reported them
    counted: Mapping[str, float] = field(default_factory=dict)

    def _sum(self, *names: str) -> float:
        return sum(self.counted.get(name, 0) for name in names)

    @property
    def forward_tokens(self) -> float:
        """Tokens that went through a model, a search's dev evaluations included."""
        return self._sum("forward_tokens", "dev_tokens", "tokens")

    @property
    def backward_tokens(self) -> float:
        """Tokens that gradients were computed for."""
        return self._sum("backward_tokens")

    @property
    def flops(self) -> float:
        """FLOPs derived from these tokens; the merging of weights itself is not in them."""
        return self._sum("flops", "dev_flops")

    @property
    def evaluations(self) -> float:
        """Candidates that were scored on dev items."""
        return self._sum("evaluations")


MEASURED = (
    *("wall_s", "cpu_s", "gpu_s", "peak_rss_mb", "peak_gpu_mb", "bytes_read", "bytes_written"),
    "checks_cpu_s",
)
DERIVED = ("forward_tokens", "backward_tokens", "flops", "evaluations")


def read_cost(
    path: Path, stage: str, case: str, id: str, split: str = "", reader: Reader | None = None
) -> Iterator[Cost]:
    """Yield the cost in a step's cost.json, nothing where there is none.

    A damaged file is an error, or, where a reader is given, a line among its faults.

    A resumed search counts the time of its earlier runs. It is added, for as many GPUs as the last
    run held.
    """
    if path.exists():
        shape = COST | dict.fromkeys(MEASURED, NUMBER)
        content = (reader.optional if reader else read)(path, shape, "cost")
        if not content:
            return
        measured = {name: float(content.get(name, 0)) for name in MEASURED}
        counted = content.get("counted", {})
        earlier = counted.get("earlier_wall_s", 0.0)
        if measured["wall_s"]:
            measured["gpu_s"] *= 1 + earlier / measured["wall_s"]
        measured["wall_s"] += earlier
        measured["cpu_s"] += counted.get("earlier_cpu_s", 0.0)
        yield Cost(stage, case, id, split, **measured, counted=counted)


def teachers_of(case: str, model: Model, found: Sequence[Cost]) -> list[Cost]:
    """Return the cost of a merge's inputs: teachers' signal, statistics, a merged model.

    The rows that learn from it share it; taken alone, each would have had to pay for it.
    """
    given = model.manifest.get("inputs", {})
    made = {("merges", name.removeprefix("experts.")) for name in given}
    made |= {("search", id) for _, id in made} | {("statistics", name) for name in given}
    made |= {("teachers", name) for name in given}
    return [cost for cost in found if cost.case == case and (cost.stage, cost.id) in made]


def has_statistics(case: Case, found: Sequence[Cost]) -> bool:
    """Say whether some of a case's merges know statistics of the models' layers."""
    worlds = {world.id for world in case.each.values()}
    return any(cost.stage == "statistics" and cost.case in worlds for cost in found)


def costs(experiment: Experiment) -> list[Cost]:
    """Read the cost of every step that has one, in the order of the work."""
    return read_costs(experiment)[0]


@functools.lru_cache(maxsize=4)
def read_costs(experiment: Experiment) -> tuple[list[Cost], list[str]]:
    """Read what `costs` returns, and a line for each damaged file."""
    found: list[Cost] = []
    reader = Reader(experiment.results)
    results, methods = experiment.results, experiment.config["methods"]

    def add(path: Path, stage: str, case: str, id: str, split: str = "") -> None:
        found.extend(read_cost(path, stage, case, id, split, reader))

    for _, case in worlds_of(experiment.cases):
        folder = results / case.id
        add(folder / "data" / "cost.json", "data", case.id, "data")
        add(folder / "teachers" / "cost.json", "teachers", case.id, "teachers")
        for path in sorted(folder.glob("statistics/*/*/cost.json")):
            name = f"{path.parts[-3]}.{path.parts[-2]}"  # as merges name it among their inputs
            add(path, "statistics", case.id, name)
        for model in case.all_models:
            if model.kind == "merge":
                stage = "search" if searched(methods[model.id]) else "merges"
                made = folder / "merges"
            else:
                stage = "base" if model.kind == "base" else "experts"
                made = folder / "models"
            add(made / model.id / "cost.json", stage, case.id, model.id)
            for split in ("dev", "test"):
                path = folder / "scores" / split / f"{model.id}.cost.json"
                add(path, "evaluation", case.id, model.id, split)
    for entry in experiment.ablation.objectives if experiment.ablation else ():
        for run in entry.runs:
            folder = results / "ablation" / run.id
            places = [folder / "model" / "cost.json", folder / "cost.json"]
            path = next((path for path in places if path.exists()), places[0])
            add(path, "ablation", "ablation", run.id)
            add(folder / "scores.cost.json", "evaluation", "ablation", run.id, "test")
    # A stable sort: within a stage, steps keep the order of the tables.
    found.sort(key=lambda cost: list(STAGES).index(cost.stage))
    return found, reader.faults


def cost_csv(found: list[Cost]) -> str:
    """Write one row per step: measured, then derived, then every amount that any step counted."""
    names = sorted({name for cost in found for name in cost.counted})
    about = ["stage", "case", "id", "split"]
    rows = [[*about, *MEASURED, *DERIVED, *(f"counted {name}" for name in names)]]
    for cost in found:
        start = [getattr(cost, name) for name in about]
        measured = [
            f"{getattr(cost, name):.{3 if name.endswith('_s') else 0}f}" for name in MEASURED
        ]
        derived = [f"{getattr(cost, name):.0f}" for name in DERIVED]
        amounts = [f"{cost.counted[name]:.0f}" if name in cost.counted else "" for name in names]
        rows.append([*start, *measured, *derived, *amounts])
    return fields.text(rows)


def stages_grid(found: list[Cost]) -> Grid:
    """Lay out where the time went, stage by stage."""
    rows = []
    for stage, label in STAGES.items():
        steps = [cost for cost in found if cost.stage == stage]
        if steps:
            rows.append(_sum_row(label, steps))
    if found:
        rows.append(_sum_row("All", found, "sum"))
    caption = (
        "Measured seconds, summed over the steps of a stage. Steps run side by side, so that "
        "the wall times add up to more than the clock showed; start-up of Python and Snakemake "
        "is not in them. Evaluation includes the ablation's runs."
    )
    header = ("Stage", "Steps", "CPU s", "Wall s", "Peak MB")
    checks, whole = (sum(getattr(cost, n) for cost in found) for n in ("checks_cpu_s", "cpu_s"))
    share = f"{checks:.1f} of the CPU seconds ({checks / whole:.2%})" if checks and whole else ""
    notes = (f"{share} went into the comparison of files with their manifests.",) if share else ()
    return Grid("stages", "Where the time went", caption, header, tuple(rows), notes)


def _sum_row(label: str, steps: list[Cost], group: str = "") -> Row:
    sums = (
        str(len(steps)),
        f"{sum(cost.cpu_s for cost in steps):.1f}",
        f"{sum(cost.wall_s for cost in steps):.1f}",
        f"{max(cost.peak_rss_mb for cost in steps):.0f}",
    )
    return Row((Cell(label), *map(Cell, sums)), group)


def amount(value: float | None) -> str:
    """Write a count with three digits and its size: 1.23 M; a dash for none."""
    if not value:
        return MISSING
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.0f}"


def rows_grid(experiment: Experiment, found: list[Cost]) -> Grid:
    """Lay out what each model of the cases cost to make and to evaluate."""
    rows = []
    for case in experiment.cases:
        table, worlds = table_title(case.table), {world.id for world in case.each.values()}
        for model in case.all_models:
            steps = [cost for cost in found if cost.case in worlds and cost.id == model.id]
            if steps:
                making = [cost for cost in steps if cost.stage != "evaluation"]
                tests = [cost for cost in steps if cost.split == "test"]
                rows.append(_model_row(table, model.label, making, tests, case.id))
        for stage in ("teachers", "statistics"):
            if shared := [cost for cost in found if cost.stage == stage and cost.case in worlds]:
                rows.append(_model_row(table, STAGES[stage], shared, [], case.id))
    caption = (
        "Cost of making each model (training, merging, and its own search or tuning on dev "
        "items) and of its evaluation on test items. Seconds, peak memory and megabytes (asked "
        "for, from the page cache or not) are measured and vary; tokens are counted, a search's "
        "dev evaluations included, and FLOPs derived from them; a dash: none. A plain merge runs "
        "no model, and the arithmetic on its weights is not counted. DAM's rows share their "
        "teachers' signal, and other rows share statistics of the models' layers; both have "
        "separate rows and are not in theirs. Of several worlds, a "
        "cost is the mean of those that have it. cost.csv has every step."
    )
    header = (
        *("Table", "Model", "Making, CPU s", "Making, wall s", "GPU s", "Test, CPU s", "Peak MB"),
        *("Read, MB", "Written, MB", "Forward tokens", "Backward tokens", "FLOPs"),
        "Dev evaluations",
    )
    return Grid("costs", "Cost", caption, header, tuple(rows), texts=2)


def _model_row(
    table: str, label: str, making: Sequence[Cost], tests: Sequence[Cost], group: str
) -> Row:
    def total(steps: Sequence[Cost], name: str) -> float:
        worlds = {cost.case for cost in steps}
        return sum(getattr(cost, name) for cost in steps) / max(len(worlds), 1)

    cells = [
        *(table, label),
        *(f"{total(making, name):.1f}" for name in ("cpu_s", "wall_s")),
        f"{gpu:.1f}" if (gpu := total([*making, *tests], "gpu_s")) else MISSING,
        f"{total(tests, 'cpu_s'):.1f}" if tests else MISSING,
        f"{max(cost.peak_rss_mb for cost in [*making, *tests]):.0f}",
        *(f"{total(making, name) / 1e6:.1f}" for name in ("bytes_read", "bytes_written")),
        *(amount(total(making, name)) for name in DERIVED),
    ]
    return Row(tuple(map(Cell, cells)), group)
