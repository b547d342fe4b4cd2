# How far experts moved, what every merge kept of them, and whether there is a barrier between.

# Of each expert's data, on which the lines' losses are computed: both cases of the default
# experiment take 35 CPU seconds more with them.
LINE_ROWS = 48


def inspected_models(wildcards):
    """All models of a case whose weights compare with the base's: no search reorders their layers."""
    rows = {name: row for name, row in CONFIG.methods.items() if row.evolve}
    reordered = {name for name, row in rows.items() if row.evolve.space == "data-flow"}
    return {n: path for n, path in smoke_models(wildcards).items() if n not in reordered}


def inspected_options(wildcards):
    models = inspected_models(wildcards)
    parents = {name: models[name] for name in PARENTS[wildcards.case]}
    merges = {name: path for name, path in models.items() if name not in parents}
    base = parents.pop("base")
    merged = f" --merges {pairs(merges)}" if merges else ""
    rows = lines_rows(wildcards) if merges else {}
    lines = f" --calibration {pairs(rows)} --rows {LINE_ROWS}" if rows else ""
    return f"--base {base} --experts {pairs(parents)}{merged}{lines}"


def lines_rows(wildcards):
    """The rows of a bottled case's first world; in larger models, losses on lines would take hours."""
    case = wildcards.case
    lined = case in BOTTLED and case in CONFIG.cases
    return calibration_rows(case, CASES[case].experts) if lined else {}


# A merge that holds NaN is left out; its row says so by the smoke check.
rule inspect:
    """Lengths, angles and shares of all models' changes of the base, by layer and module."""
    input:
        lambda wildcards: [
            f"{folder}/manifest.json" for folder in inspected_models(wildcards).values()
        ],
        rows=lambda wildcards: (
            f"{OUT}/{wildcards.case}/data/manifest.json" if lines_rows(wildcards) else []
        ),
    output:
        f"{OUT}/{{case}}/inspection.json",
    log:
        f"{OUT}/logs/{{case}}/inspection.log",
    priority: 10
    resources:
        **asks("inspect"),
    params:
        models=inspected_options,
        code=code("merges/inspecting.py"),
    shell:
        "python -m merges inspect {params.models} --go-on --out {output} > {log} 2>&1"
        " || {{ tail -n 1 {log} >&2; exit 1; }}"
