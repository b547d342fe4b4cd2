# One expert from an ancestor of the base, all else as in its case. `snakemake case2b`; never in the
# default run.

STUDY2B = CONFIG[ancestry.WORLD]
CASE2B = CASES[ancestry.WORLD]
OUT2B = f"{OUT}/{ancestry.WORLD}"


ruleorder: case2b_shared > bottle_data
ruleorder: case2b_shared > bottle_base
ruleorder: case2b_shared > bottle_expert
ruleorder: case2b_expert > bottle_expert


rule case2b_shared:
    """Data, base and the other experts are those of the case, bit for bit."""
    input:
        f"{OUT}/{CASE2B['of']}/{{shared}}/manifest.json",
    output:
        f"{OUT2B}/{{shared}}/manifest.json",
    wildcard_constraints:
        shared=any_of(
            [
                "data",
                *(f"models/{p}" for p in PARENTS[ancestry.WORLD] if p != STUDY2B["expert"]),
            ]
        ),
    localrule: True
    params:
        source=lambda wildcards, input: folder_of(input[0]),
        folder=output_folder,
    shell:
        "rm -rf {params.folder} && cp -r {params.source} {params.folder}"


use rule bottle_base as case2b_ancestor with:
    input:
        data=f"{OUT2B}/data/manifest.json",
    output:
        f"{OUT2B}/ancestor/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/ancestor.log",
    params:
        data=lambda wildcards, input: folder_of(input.data),
        folder=output_folder,
        world=CASE2B["world"],
        seed=CONFIG["seed"],
        model=options(CASE2B["model"]),
        train=options(CASE2B["base"]["train"] | {"stop_after": ancestry.steps_of(CONFIG)}),
        code=code("bottle"),


use rule bottle_expert as case2b_expert with:
    input:
        data=f"{OUT2B}/data/manifest.json",
        base=f"{OUT2B}/ancestor/manifest.json",
    output:
        f"{OUT2B}/models/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/models/{{expert}}.log",
    wildcard_constraints:
        expert=STUDY2B["expert"],
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        world=CASE2B["world"],
        seed=CONFIG["seed"],
        train=options(CASE2B["experts"][STUDY2B["expert"]]["train"]),
        code=code("bottle"),


rule case2b:
    """The case's table, and what the start of one expert does to a lead."""
    input:
        scores=[
            f"{OUT}/{case}/scores/test/{model}.json"
            for case in (CASE2B["of"], ancestry.WORLD)
            for model in PARENTS[ancestry.WORLD] + ancestry.rows_of(CONFIG)
        ],
        config=f"{OUT}/config.json",
    output:
        f"{OUT2B}/tables/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/tables.log",
    localrule: True
    params:
        results=OUT,
        folder=output_folder,
        code=code("report", "studies/ancestry"),
    shell:
        "python -m studies ancestry --config {input.config} --results {params.results}"
        " --out {params.folder} 2>&1 | tee {log}"
