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
    output:
        f"{OUT}/{{case}}/ancestor/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/ancestor.log",
    wildcard_constraints:
        case=ancestry.WORLD,
    params:
        train=options(
            ANCESTRY_CASE.base.train.model_dump() | {"stop_after": ANCESTRY.steps(ANCESTRY_CASE)}
        ),


use rule bottle_expert as study_ancestry_expert with:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        base=f"{OUT}/{{case}}/ancestor/manifest.json",
    wildcard_constraints:
        case=ancestry.WORLD,
        expert=ANCESTRY.expert,


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
