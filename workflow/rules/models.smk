# The bottle's own world: text, tokenizer, base and experts.


def model_options(wildcards):
    return options(CASES[wildcards.case].model.model_dump())


def train_options(wildcards):
    parent = CASES[wildcards.case].parents[wildcards.get("expert", "base")]
    return options(parent.train.model_dump())


def world_code(step, wildcards):
    """Code of making a case's data or of training on them, with its own generators alone."""
    coded = exact_code if step == "data" else code
    return coded(f"bottle/{step}.py", f"bottle/{CASES[wildcards.case].world}.py")


rule bottle_data:
    output:
        f"{OUT}/{{case}}/data/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/data.log",
    wildcard_constraints:
        case=any_of(BOTTLED),
    priority: 100
    resources:
        **asks("data"),
    params:
        folder=output_folder,
        world=lambda wildcards: CASES[wildcards.case].world,
        drift=lambda wildcards: CASES[wildcards.case].drift,
        seed=seed_of,
        test_items=CONFIG.evaluation.test_items,
        dev_items=CONFIG.evaluation.dev_items,
        rows=CONFIG.calibration.rows,
        code=lambda wildcards: world_code("data", wildcards),
    shell:
        "python -m bottle data --case {params.world} --drift {params.drift} --seed {params.seed}"
        " --test-items {params.test_items} --dev-items {params.dev_items}"
        " --calibration-rows {params.rows} --out {params.folder} 2>&1 | tee {log}"


rule bottle_base:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
    output:
        f"{OUT}/{{case}}/models/base/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/base.log",
    wildcard_constraints:
        case=any_of(BOTTLED),
    priority: 100
    resources:
        **asks("train"),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        folder=output_folder,
        world=lambda wildcards: CASES[wildcards.case].world,
        seed=seed_of,
        model=model_options,
        train=train_options,
        code=lambda wildcards: world_code("training", wildcards),
    shell:
        "python -m bottle train --case {params.world} --role base --data {params.data}"
        " --out {params.folder} --seed {params.seed} --threads {threads}"
        " {params.model} {params.train} 2>&1 | tee {log}"


# The base of an expert that shares none with the others: of another seed, on the same data.
use rule bottle_base as bottle_other_base with:
    output:
        f"{OUT}/{{case}}/bases/{{seed}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/bases/{{seed}}.log",


def base_of(wildcards):
    """The base that an expert is trained from."""
    seed = CASES[wildcards.case].experts[wildcards.expert].base_seed
    return (
        f"{OUT}/{wildcards.case}/{'models/base' if seed is None else f'bases/{seed}'}/manifest.json"
    )


rule bottle_expert:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        base=base_of,
    output:
        f"{OUT}/{{case}}/models/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/{{expert}}.log",
    wildcard_constraints:
        case=any_of(BOTTLED),
    priority: 90
    resources:
        **asks("train"),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        world=lambda wildcards: CASES[wildcards.case].world,
        seed=seed_of,
        train=train_options,
        code=lambda wildcards: world_code("training", wildcards),
    shell:
        "python -m bottle train --case {params.world} --role {wildcards.expert}"
        " --data {params.data} --init {params.base} --out {params.folder}"
        " --seed {params.seed} --threads {threads} {params.train} 2>&1 | tee {log}"
