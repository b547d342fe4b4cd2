# What matters in DAM: settings compared over worlds.
from studies.dam.settings import world_of

STUDY = CONFIG.studies.dam
STUDY_OUT = f"{OUT}/studies/dam"
STUDY_CASE = CASES[STUDY.case]
SETTINGS |= {name: (STUDY_CASE, STUDY.row_of(name)) for name in STUDY.settings}


wildcard_constraints:
    setting=any_of(STUDY.settings),


def study_seed(wildcards):
    return int(wildcards.seed)


def study_world(wildcards):
    """The folder of a world: data, base, experts with frozen embeddings, their teachers."""
    return f"{OUT}/{world_of(STUDY.case, int(wildcards.seed), CONFIG.seed)}"


def study_data(wildcards):
    return f"{study_world(wildcards)}/data"


def study_own(wildcards):
    return own_manifests(world_of(STUDY.case, int(wildcards.seed), CONFIG.seed))


def study_base(wildcards):
    return f"{study_world(wildcards)}/models/base"


def study_setting(wildcards):
    return STUDY.settings[wildcards.setting]


def study_experts(wildcards):
    """A setting's experts and their folders."""
    entry = study_setting(wildcards)
    models = f"{study_world(wildcards)}/models"
    if entry.expert_embeddings == "trained":
        models = f"{STUDY_OUT}/experts/seed{wildcards.seed}"
    return {expert: f"{models}/{expert}" for expert in entry.experts or STUDY_CASE.experts}


def study_teachers(wildcards):
    """The shared teachers' folder; None where a setting's teachers see or are something else."""
    entry = study_setting(wildcards)
    if entry.method != "dam" or entry.data != "own" or entry.experts:
        return None
    if STUDY.set_of(wildcards.setting).get("teacher_embeddings") == "merged":
        return None
    if entry.expert_embeddings == "trained":
        return f"{STUDY_OUT}/teachers/seed{wildcards.seed}"
    return f"{study_world(wildcards)}/teachers"


def study_inputs(wildcards):
    inputs = {
        "gate": ancient(f"{study_world(wildcards)}/gate.json"),
        "data": f"{study_data(wildcards)}/manifest.json",
        "own": study_own(wildcards),
        "base": f"{study_base(wildcards)}/manifest.json",
        "experts": [f"{folder}/manifest.json" for folder in study_experts(wildcards).values()],
    }
    if teachers := study_teachers(wildcards):
        inputs["teachers"] = f"{teachers}/manifest.json"
    if study_setting(wildcards).data == "mixed":
        inputs["mixed"] = f"{STUDY_OUT}/data/seed{wildcards.seed}/mixed.jsonl"
    return inputs


def study_parents(wildcards):
    entry = study_setting(wildcards)
    experts = study_experts(wildcards)
    given = [f"--base {study_base(wildcards)} --experts"]
    given += [f"{expert}={folder}" for expert, folder in experts.items()]
    if not STUDY.row_of(wildcards.setting).learns:
        return " ".join(given)
    rows = {expert: f"{study_data(wildcards)}/calibration/{expert}.jsonl" for expert in experts}
    if entry.data == "mixed":
        rows = dict.fromkeys(rows, f"{STUDY_OUT}/data/seed{wildcards.seed}/mixed.jsonl")
    elif entry.data == "swapped":
        first, second, *_ = rows
        rows[first], rows[second] = rows[second], rows[first]
    given += ["--calibration", *(f"{expert}={path}" for expert, path in rows.items())]
    if teachers := study_teachers(wildcards):
        given.append(f"--teachers {teachers}")
    return " ".join(given)


def study_columns():
    return [column.tasks for column in STUDY_CASE.columns]


STUDY_SEARCHED = ",".join(dict.fromkeys(sum(study_columns(), [])))


use rule bottle_expert as study_dam_expert with:
    input:
        data=lambda wildcards: f"{study_data(wildcards)}/manifest.json",
        base=lambda wildcards: f"{study_base(wildcards)}/manifest.json",
    output:
        f"{STUDY_OUT}/experts/seed{{seed}}/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/studies/dam/experts/seed{{seed}}/{{expert}}.log",
    params:
        data=lambda wildcards, input: folder_of(input.data),
        base=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        world=STUDY_CASE.world,
        seed=study_seed,
        train=lambda wildcards: options(
            STUDY_CASE.experts[wildcards.expert].train.given()
            | {"embedding_learning_rate": STUDY.embedding_learning_rate}
        ),
        code=code("bottle/training.py", f"bottle/{STUDY_CASE.world}.py"),


use rule teachers as study_dam_teachers with:
    input:
        data=lambda wildcards: f"{study_data(wildcards)}/manifest.json",
        base=lambda wildcards: f"{study_base(wildcards)}/manifest.json",
        experts=lambda wildcards: [
            f"{STUDY_OUT}/experts/seed{wildcards.seed}/{expert}/manifest.json"
            for expert in STUDY_CASE.experts
        ],
    output:
        f"{STUDY_OUT}/teachers/seed{{seed}}/manifest.json",
    log:
        f"{OUT}/logs/studies/dam/teachers/seed{{seed}}.log",
    params:
        folder=output_folder,
        models=lambda wildcards: f"{study_world(wildcards)}/models",
        experts=lambda wildcards: " ".join(
            f"{expert}={STUDY_OUT}/experts/seed{wildcards.seed}/{expert}"
            for expert in STUDY_CASE.experts
        ),
        calibration=lambda wildcards: " ".join(
            f"{expert}={study_data(wildcards)}/calibration/{expert}.jsonl"
            for expert in STUDY_CASE.experts
        ),
        how="",
        code=code("merges/dam/states.py"),


rule study_dam_mixed:
    """All experts' calibration rows in one file, which does not say whose a row is."""
    input:
        lambda wildcards: f"{study_data(wildcards)}/manifest.json",
    output:
        f"{STUDY_OUT}/data/seed{{seed}}/mixed.jsonl",
    localrule: True
    params:
        files=lambda wildcards: [
            f"{study_data(wildcards)}/calibration/{expert}.jsonl" for expert in STUDY_CASE.experts
        ],
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
        folder=output_folder,
        failed=failed_file,
        data=study_data,
        method=lambda wildcards: study_setting(wildcards).method,
        parents=study_parents,
        row=lambda wildcards: (
            f"--embeddings-and-norms {study_setting(wildcards).embeddings_and_norms} "
            f"{settings(STUDY.set_of(wildcards.setting))}"
        ),
        candidates=lambda wildcards: shlex.quote(json.dumps(STUDY.candidates_of(wildcards.setting))),
        suites=STUDY_SEARCHED,
        average=shlex.quote(json.dumps(study_columns())),
        seed=study_seed,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine"),
        code=lambda wildcards: code(
            *search_files(
                "tune",
                study_setting(wildcards).method,
                tasks_in(STUDY_SEARCHED),
                CONFIG.evaluation.engine,
            )
        ),


use rule evaluate as study_dam_evaluate with:
    input:
        data=lambda wildcards: f"{study_data(wildcards)}/manifest.json",
        own=study_own,
        model=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/model/manifest.json",
    output:
        scores=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/{{split}}.json",
        manifest=f"{STUDY_OUT}/{{setting}}/seed{{seed}}/{{split}}.manifest.json",
    log:
        f"{OUT}/logs/studies/dam/{{setting}}/seed{{seed}}.{{split}}.log",
    params:
        data=study_data,
        model=lambda wildcards, input: folder_of(input.model),
        suites=",".join(STUDY_CASE.suites),
        backend=CONFIG.evaluation.backend,
        batch=CONFIG.evaluation.batch_size,
        seed=study_seed,
        failed=failed_file,
        code=scoring_code(",".join(STUDY_CASE.suites), CONFIG.evaluation.backend),


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
