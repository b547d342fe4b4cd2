# Quality against price over search seeds.

COST = CONFIG.studies.cost
COST_OUT = f"{OUT}/studies/cost"
COST_RUN = f"{COST_OUT}/{{case}}/{{row}}/seed{{seed}}"
COST_LOG = f"{OUT}/logs/studies/cost/{{case}}/{{row}}/seed{{seed}}"


wildcard_constraints:
    after=r"\d+",


def cost_model(wildcards):
    """The model after so many evaluations: the result of the complete search, or a replay."""
    run = COST_RUN.format(**wildcards)
    last = COST.evaluations_of(CONFIG.methods[wildcards.row])[-1]
    name = "model" if int(wildcards.after) == last else f"after{wildcards.after}"
    return f"{run}/{name}/manifest.json"


def row_replay_code(wildcards):
    sources = registry.sources(method_of(wildcards))
    return code("search/replay.py", "search/evolutionary.py", *sources)


def cost_scores():
    return [
        f"{COST_OUT}/{case}/{row}/seed{seed}/test/after{after}.json"
        for case, row in COST.runs(CONFIG)
        for seed in COST.seeds
        for after in COST.evaluations_of(CONFIG.methods[row])
    ]


# The rows again, each under its seed.
use rule merge as study_cost_merge with:
    output:
        f"{COST_RUN}/model/manifest.json",
    log:
        f"{COST_LOG}.log",


use rule tune as study_cost_tune with:
    output:
        f"{COST_RUN}/model/manifest.json",
    log:
        f"{COST_LOG}.log",


use rule evolve as study_cost_evolve with:
    output:
        f"{COST_RUN}/model/manifest.json",
    log:
        f"{COST_LOG}.log",


rule study_cost_replay:
    """The model that was best on dev items when a search had spent a part of its budget."""
    input:
        unpack(merge_inputs),
        search=f"{COST_RUN}/model/manifest.json",
    output:
        f"{COST_RUN}/after{{after}}/manifest.json",
    log:
        f"{COST_LOG}.after{{after}}.log",
    priority: 50
    resources:
        **asks("merge"),
    params:
        folder=output_folder,
        failed=failed_file,
        search=lambda wildcards, input: folder_of(input.search),
        parents=parent_options,
        code=row_replay_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m search replay --of {params.search} --evaluations {wildcards.after}"
        " {params.parents} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{TELL_FAILURE}"


use rule evaluate as study_cost_evaluate with:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        own=lambda wildcards: own_manifests(wildcards.case),
        model=cost_model,
    output:
        scores=f"{COST_RUN}/{{split}}/after{{after}}.json",
        manifest=f"{COST_RUN}/{{split}}/after{{after}}.manifest.json",
    log:
        f"{COST_LOG}.after{{after}}.{{split}}.log",


rule study_cost:
    """The study's table, its figure, and what they say of the paper's claim C2."""
    input:
        scores=cost_scores(),
        teachers=[f"{OUT}/{case}/teachers/manifest.json" for case in COST.cases],
        config=f"{OUT}/config.json",
    output:
        f"{COST_OUT}/manifest.json",
    log:
        f"{OUT}/logs/studies/cost.log",
    localrule: True
    params:
        results=OUT,
        folder=output_folder,
        code=code("studies/cost/files.py"),
    shell:
        "python -m studies cost --config {input.config} --results {params.results}"
        " --out {params.folder} 2>&1 | tee {log}"
