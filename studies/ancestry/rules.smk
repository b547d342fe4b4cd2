# One expert from an ancestor of the base, all else as in its case.
from studies.ancestry import settings as ancestry

ANCESTRY = CONFIG.studies.ancestry
ANCESTRY_CASE = CASES[ancestry.WORLD]
ANCESTRY_OUT = f"{OUT}/{ancestry.WORLD}"


ruleorder: study_ancestry_shared > bottle_data
ruleorder: study_ancestry_shared > bottle_base
ruleorder: study_ancestry_shared > bottle_expert
ruleorder: study_ancestry_expert > bottle_expert


rule study_ancestry_shared:
    """Data, base and the other experts are those of the case, bit for bit."""
    input:
        f"{OUT}/{ANCESTRY_CASE.of}/{{shared}}/manifest.json",
    output:
        f"{ANCESTRY_OUT}/{{shared}}/manifest.json",
    wildcard_constraints:
        shared=any_of(
            [
                "data",
                *(f"models/{p}" for p in PARENTS[ancestry.WORLD] if p != ANCESTRY.expert),
            ]
        ),
    localrule: True
    params:
        source=lambda wildcards, input: folder_of(input[0]),
        folder=output_folder,
    shell:
        "rm -rf {params.folder} && cp -r {params.source} {params.folder}"


use rule bottle_base as study_ancestry_ancestor with:
    input:
        data=f"{ANCESTRY_OUT}/data/manifest.json",
    output:
        f"{ANCESTRY_OUT}/ancestor/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/ancestor.log",
    params:
        data=lambda wildcards, input: folder_of(input.data),
        folder=output_folder,
        world=ANCESTRY_CASE.world,
        seed=CONFIG.seed,
        model=options(ANCESTRY_CASE.model.given()),
        train=options(
            ANCESTRY_CASE.base.train.given() | {"stop_after": ANCESTRY.steps(ANCESTRY_CASE)}
        ),
        code=code("bottle/training.py", f"bottle/{ANCESTRY_CASE.world}.py"),


use rule bottle_expert as study_ancestry_expert with:
    input:
        data=f"{ANCESTRY_OUT}/data/manifest.json",
        base=f"{ANCESTRY_OUT}/ancestor/manifest.json",
    output:
        f"{ANCESTRY_OUT}/models/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/models/{{expert}}.log",
    wildcard_constraints:
        expert=ANCESTRY.expert,
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        world=ANCESTRY_CASE.world,
        seed=CONFIG.seed,
        train=options(ANCESTRY_CASE.experts[ANCESTRY.expert].train.given()),
        code=code("bottle/training.py", f"bottle/{ANCESTRY_CASE.world}.py"),


rule study_ancestry:
    """The case's table, and what the start of one expert does to a lead."""
    input:
        scores=[
            f"{OUT}/{case}/scores/test/{model}.json"
            for case in (ANCESTRY_CASE.of, ancestry.WORLD)
            for model in PARENTS[ancestry.WORLD] + ANCESTRY.rows
        ],
        config=f"{OUT}/config.json",
    output:
        f"{ANCESTRY_OUT}/manifest.json",
    log:
        f"{OUT}/logs/{ancestry.WORLD}/tables.log",
    localrule: True
    params:
        results=OUT,
        folder=output_folder,
        code=code("studies/ancestry/files.py"),
    shell:
        "python -m studies ancestry --config {input.config} --results {params.results}"
        " --out {params.folder} 2>&1 | tee {log}"
