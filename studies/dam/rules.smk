# What matters in DAM: settings compared over worlds.
from studies.dam.settings import world_of

STUDY = CONFIG.studies.dam
STUDY_OUT = f"{OUT}/studies/dam"
STUDY_CASE = CASES[STUDY.case]
SETTINGS |= {name: (STUDY_CASE, STUDY.row_of(name)) for name in STUDY.settings}


wildcard_constraints:
    setting=any_of(STUDY.settings),


def study_world(wildcards):
    """A world's id: its data, base, experts with frozen embeddings and their teachers."""
    return world_of(STUDY.case, int(wildcards.seed), CONFIG.world_seeds)


def study_data(wildcards):
    return f"{OUT}/{study_world(wildcards)}/data/manifest.json"


def study_base(wildcards):
    return f"{OUT}/{study_world(wildcards)}/models/base/manifest.json"


def study_own(wildcards):
    return own_manifests(study_world(wildcards))


def study_models(wildcards, trained):
    """The experts' manifests, by name: a world's own experts have frozen embeddings."""
    models = f"{OUT}/{study_world(wildcards)}/models"
    if trained:
        models = f"{STUDY_OUT}/experts/seed{wildcards.seed}"
    return {expert: f"{models}/{expert}/manifest.json" for expert in STUDY_CASE.experts}


def study_teachers(wildcards):
    """The folder of shared teachers; None where a setting's teachers see or are something else."""
    entry = STUDY.settings[wildcards.setting]
    if entry.method != "dam" or entry.data != "own" or entry.experts:
        return None
    if STUDY.set_of(wildcards.setting).get("teacher_embeddings") == "merged":
        return None
    if entry.expert_embeddings == "trained":
        return f"{STUDY_OUT}/teachers/seed{wildcards.seed}"
    return f"{OUT}/{study_world(wildcards)}/teachers"


def study_inputs(wildcards):
    entry = STUDY.settings[wildcards.setting]
    models = study_models(wildcards, entry.expert_embeddings == "trained")
    inputs = {
        "gate": ancient(gate_before(study_world(wildcards))),
        "data": study_data(wildcards),
        "own": study_own(wildcards),
        "base": study_base(wildcards),
        "experts": [models[expert] for expert in entry.experts or models],
    }
    if teachers := study_teachers(wildcards):
        inputs["teachers"] = f"{teachers}/manifest.json"
    if entry.data == "mixed":
        inputs["mixed"] = f"{STUDY_OUT}/data/seed{wildcards.seed}/mixed.jsonl"
    return inputs


def study_parents(wildcards, input):
    entry = STUDY.settings[wildcards.setting]
    experts = entry.experts or list(STUDY_CASE.experts)
    if not STUDY.row_of(wildcards.setting).learns:
        return parents_given(input, experts, {})
    rows = calibration_rows(study_world(wildcards), experts)
    if entry.data == "mixed":
        rows = dict.fromkeys(rows, input.mixed)
    elif entry.data == "swapped":
        first, second, *_ = rows
        rows[first], rows[second] = rows[second], rows[first]
    return parents_given(input, experts, rows)


use rule bottle_expert as study_dam_expert with:
    input:
        data=study_data,
        base=study_base,
    output:
        f"{STUDY_OUT}/experts/seed{{seed}}/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/studies/dam/experts/seed{{seed}}/{{expert}}.log",
    params:
        world=STUDY_CASE.world,
        train=lambda wildcards: options(
            STUDY_CASE.experts[wildcards.expert].train.model_dump()
            | {"embedding_learning_rate": STUDY.embedding_learning_rate}
        ),
        code=code("bottle/training.py", f"bottle/{STUDY_CASE.world}.py"),


use rule teachers as study_dam_teachers with:
    input:
        data=study_data,
        base=study_base,
        experts=lambda wildcards: study_models(wildcards, trained=True).values(),
    output:
        f"{STUDY_OUT}/teachers/seed{{seed}}/manifest.json",
    log:
        f"{OUT}/logs/studies/dam/teachers/seed{{seed}}.log",
    params:
        parents=lambda wildcards, input: parents_given(
            input,
            STUDY_CASE.experts,
            calibration_rows(study_world(wildcards), STUDY_CASE.experts),
        ),
        how="",


rule study_dam_mixed:
    """All experts' calibration rows in one file, which does not say whose a row is."""
    input:
        study_data,
    output:
        f"{STUDY_OUT}/data/seed{{seed}}/mixed.jsonl",
    localrule: True
    params:
        files=lambda wildcards: list(
            calibration_rows(study_world(wildcards), STUDY_CASE.experts).values()
        ),
    shell:
        "cat {params.files} > {output}"


use rule tune as study_dam_tune with:
    input:
        unpack(study_inputs),
    output:
        f"{STUDY_OUT}/{{setting}}/seed{{seed}}/model/manifest.json",
    log:
        f"{OUT}/logs/studies/dam/{{setting}}/seed{{seed}}.log",
    priority: 60
    params:
        parents=study_parents,


use rule evaluate as study_dam_evaluate with:
    input:
        data=study_data,
        own=study_own,
        model=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/model/manifest.json",
    output:
        scores=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/{{split}}.json",
        manifest=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/{{split}}.manifest.json",
    log:
        f"{OUT}/logs/studies/dam/{{setting}}/seed{{seed}}.{{split}}.log",


rule study_dam:
    """The study's tables and figures."""
    input:
        scores=expand(
            f"{STUDY_OUT}/{{setting}}/seed{{seed}}/test.json",
            setting=STUDY.settings,
            seed=STUDY.seeds,
        ),
        config=f"{OUT}/config.json",
    output:
        f"{STUDY_OUT}/manifest.json",
    log:
        f"{OUT}/logs/studies/dam.log",
    localrule: True
    params:
        results=OUT,
        folder=output_folder,
        code=code("studies/dam/files.py", "studies/dam/load.py"),
    shell:
        "python -m studies dam --config {input.config} --results {params.results}"
        " --out {params.folder} 2>&1 | tee {log}"
