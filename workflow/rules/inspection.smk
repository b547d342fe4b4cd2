# How far experts moved, and what every merge kept of them.


def inspected_rows(case):
    """Rows whose weights compare with the base's: not those that order layers anew."""
    rows = {name: CONFIG.methods[name] for name in ROWS[case]}
    return [n for n, row in rows.items() if not (row.evolve and row.evolve.space == "data-flow")]


def inspected_models(wildcards):
    case = wildcards.case
    models = {name: f"{OUT}/{case}/models/{name}" for name in PARENTS[case]}
    return models | {row: f"{OUT}/{case}/merges/{row}" for row in inspected_rows(case)}


def inspected_options(wildcards):
    models = inspected_models(wildcards)
    parents = {name: models[name] for name in PARENTS[wildcards.case]}
    merges = {name: path for name, path in models.items() if name not in parents}
    base = parents.pop("base")
    merged = f" --merges {pairs(merges)}" if merges else ""
    return f"--base {base} --experts {pairs(parents)}{merged}"


# A merge that holds NaN is left out; its row says so by the smoke check.
rule inspect:
    """Lengths, angles and shares of all models' changes of the base, by layer and module."""
    input:
        lambda wildcards: [
            f"{folder}/manifest.json" for folder in inspected_models(wildcards).values()
        ],
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
