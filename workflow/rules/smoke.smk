# Does every model still speak? Finite logits and perplexity on a fixed text.


def smoke_models(wildcards):
    """All models of a case, of the ablation, or of one run of it, as name and folder."""
    if wildcards.get("case"):
        case = wildcards.case
        models = {parent: f"{OUT}/{case}/models/{parent}" for parent in PARENTS[case]}
        return models | {row: f"{OUT}/{case}/merges/{row}" for row in ROWS[case]}
    runs = RUNS
    if wildcards.get("objective"):
        runs = [{"objective": wildcards.objective, "seed": wildcards.seed}]
    models = {"base": f"{OUT}/{ABLATION.case}/models/base"}
    return models | {"{objective}/seed{seed}".format(**r): RUN_MODEL.format(**r) for r in runs}


def smoke_inputs(wildcards):
    return [f"{folder}/manifest.json" for folder in smoke_models(wildcards).values()]


def run_smoke_inputs(wildcards):
    base, run = smoke_models(wildcards).values()
    return [f"{base}/manifest.json", run]


def smoke_options(wildcards):
    # One process reads all, because starting one for each would cost several times the reading.
    # Only the first may not be broken: the report marks a broken row, and the others continue.
    base, *others = smoke_models(wildcards).items()
    return f"--model {base[1]} " + " ".join(f"--parent {name}={path}" for name, path in others)


rule smoke:
    """Finite logits of every model of a case, and perplexity compared with the parents'."""
    input:
        smoke_inputs,
    output:
        f"{OUT}/{{case}}/smoke.json",
    log:
        f"{OUT}/logs/{{case}}/smoke.log",
    priority: 10
    resources:
        **asks("smoke"),
    params:
        models=smoke_options,
        code=code("checkpoints/smoke.py"),
    # Standard error holds a warning of the tokenizer for each model; a failure's reason is printed.
    shell:
        "python -m checkpoints smoke {params.models} --out {output} > {log} 2>&1"
        " || {{ tail -n 1 {log} >&2; exit 1; }}"


use rule smoke as ablation_smoke with:
    output:
        f"{OUT}/ablation/smoke.json",
    log:
        f"{OUT}/logs/ablation/smoke.log",


# The same for one run, whose model is dropped when it was evaluated and checked.
use rule smoke as ablation_run_smoke with:
    input:
        run_smoke_inputs,
    output:
        f"{RUN}/smoke.json",
    log:
        f"{OUT}/logs/ablation/{{objective}}/seed{{seed}}.smoke.log",
    priority: 65
