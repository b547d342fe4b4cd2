# N checkpoints in, one out: plain merges, tuned ones, searched ones, and DAM's shared teachers.
#
# Before it runs a step again, Snakemake takes the manifest away; the commands would then refuse a
# folder that looks like somebody else's, hence each rule removes its own first.


def experts_of(wildcards):
    """A merge's case and experts; of the ablation, the case is in the configuration."""
    case = wildcards.get("case", ABLATION and ABLATION.case)
    return case, row_of(wildcards).experts_of(CASES[case].experts)


def calibration_rows(case, experts):
    """The experts' files of calibration rows."""
    return {expert: f"{OUT}/{case}/data/calibration/{expert}.jsonl" for expert in experts}


def calibrations(case, experts):
    """The steps that write these files; in a case that is made here all data come together."""
    if case in MADE:
        return [f"{OUT}/{case}/data/manifest.json"]
    return list(calibration_rows(case, experts).values())


def needs_teachers(row):
    """Whether a row learns from the experts' cached predictions, and not from data alone.

    Aligned experts predict the same, but are other files than those whose predictions are cached.
    """
    return row.method == "dam" and not row.align


def statistics_of(wildcards):
    """The statistics that a merge wants, by the model's name."""
    case, experts = experts_of(wildcards)
    found = {}
    for whose, kind in row_of(wildcards).statistics.items():
        for model in experts if whose == "experts" else [whose]:
            found[model] = f"{OUT}/{case}/statistics/{kind}/{model}/manifest.json"
    return found


def merge_inputs(wildcards):
    case, experts = experts_of(wildcards)
    # A method that works on merged models has another row in the place of an expert.
    align = row_of(wildcards).align
    models = f"aligned/{align}" if align else "models"
    kinds = {expert: models if expert in PARENTS[case] else "merges" for expert in experts}
    inputs = {
        "base": f"{OUT}/{case}/{models}/base/manifest.json",
        "experts": [f"{OUT}/{case}/{kinds[name]}/{name}/manifest.json" for name in experts],
        "statistics": list(statistics_of(wildcards).values()),
    }
    if row_of(wildcards).learns:
        inputs["calibration"] = calibrations(case, experts)
    if case in MADE:
        # The gate comes first, but no number of a merge depends on what it wrote.
        inputs["gate"] = ancient(gate_before(case))
    if needs_teachers(row_of(wildcards)):
        inputs["teachers"] = f"{OUT}/{case}/teachers/manifest.json"
    return inputs


def search_inputs(wildcards):
    """A search also reads the dev items."""
    return merge_inputs(wildcards) | {
        "data": f"{OUT}/{wildcards.case}/data/manifest.json",
        "own": own_manifests(wildcards.case),
    }


def parents_given(input, experts, rows):
    """Options that name a merge's parents and, for a method that learns, their calibration rows."""
    folders = dict(zip(experts, map(folder_of, input.experts)))
    given = f"--base {folder_of(input.base)} --experts {pairs(folders)}"
    if rows:
        given += f" --calibration {pairs(rows)}"
    return given + (f" --teachers {folder_of(input.teachers)}" if input.get("teachers") else "")


def parent_options(wildcards, input):
    (case, experts), row = experts_of(wildcards), row_of(wildcards)
    given = {"vocabulary": CASES[case].vocabulary} if case in FETCHED else {}
    if row.learns and not row.search and CONFIG.evaluation.device != "cpu":
        given["device"] = CONFIG.evaluation.device  # searches have it among their own options
    rows = calibration_rows(case, experts) if row.learns else {}
    parents = parents_given(input, experts, rows)
    if seen := statistics_of(wildcards):
        parents += f" --statistics {pairs({name: folder_of(path) for name, path in seen.items()})}"
    return f"{parents} {options(given)}"


def method_of(wildcards):
    return row_of(wildcards).method


def row_options(wildcards):
    row = row_of(wildcards)
    given = row.set
    if wildcards.get("objective"):
        given = ABLATION.settings(row.set, wildcards.objective)
    return f"--embeddings-and-norms {row.embeddings_and_norms} {settings(given)}"


def row_code(wildcards):
    return code(*registry.sources(method_of(wildcards)))


def search_options(wildcards):
    """A search's command: how a row is chosen, and among what."""
    row = row_of(wildcards)
    if row.greedy:
        return row.search
    given = row.evolve.model_dump() if row.evolve else {"candidates": json.dumps(row.tune)}
    return f"{row.search} {options({'method': row.method} | given)}"


def search_code(wildcards):
    """Code of the search that a row is chosen by, with that of the tasks that guide it."""
    row, tasks = row_of(wildcards), tasks_in(searched_tasks(wildcards))
    space, algorithm = (row.evolve and row.evolve.space) or "parameter", None
    if row.evolve:
        algorithm = row.evolve.algorithm
    engine = CONFIG.evaluation.engine
    return code(*search_files(row.search, row.method, tasks, engine, space, algorithm))


def searched_tasks(wildcards):
    """The tasks that guide a search: those of the average, and none that is only shown."""
    columns = case_of(wildcards).searched_columns
    return ",".join(dict.fromkeys(task for tasks in columns for task in tasks))


def average_groups(wildcards):
    """The table's average, for a search on dev: the mean over columns of their tasks' means."""
    return shlex.quote(json.dumps(case_of(wildcards).searched_columns))


def teachers_options(wildcards):
    given = {}
    if wildcards.case in FETCHED:
        given["vocabulary"] = CASES[wildcards.case].vocabulary
    if CONFIG.evaluation.device != "cpu":
        given["device"] = CONFIG.evaluation.device
    return options(given)


rule teachers:
    """The experts' own predictions on their calibration data, shared by all runs of DAM."""
    input:
        base=f"{OUT}/{{case}}/models/base/manifest.json",
        experts=lambda wildcards: [
            f"{OUT}/{wildcards.case}/models/{expert}/manifest.json"
            for expert in CASES[wildcards.case].experts
        ],
        calibration=lambda wildcards: calibrations(wildcards.case, CASES[wildcards.case].experts),
    output:
        f"{OUT}/{{case}}/teachers/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/teachers.log",
    priority: 80
    resources:
        **asks("teachers"),
    params:
        folder=output_folder,
        parents=lambda wildcards, input: parents_given(
            input,
            CASES[wildcards.case].experts,
            calibration_rows(wildcards.case, CASES[wildcards.case].experts),
        ),
        how=teachers_options,
        code=code("merges/dam/states.py"),
    shell:
        "rm -rf {params.folder}; "
        "python -m merges teachers {params.parents} {params.how} --out {params.folder}"
        " --threads {threads} 2>&1 | tee {log}"


def statistics_rows(wildcards):
    """What a model is run on: an expert on its own rows, the base on those of all experts."""
    experts = CASES[wildcards.case].experts
    return list(experts) if wildcards.parent == "base" else [wildcards.parent]


def statistics_options():
    given = {}
    if CONFIG.calibration.statistics:
        given["rows"] = CONFIG.calibration.statistics
    if CONFIG.evaluation.device != "cpu":
        given["device"] = CONFIG.evaluation.device
    return options(given)


rule statistics:
    """What a model's layers see and learn on its rows, shared by all rows that want this kind."""
    input:
        model=f"{OUT}/{{case}}/models/{{parent}}/manifest.json",
        calibration=lambda wildcards: calibrations(wildcards.case, statistics_rows(wildcards)),
    output:
        f"{OUT}/{{case}}/statistics/{{kind}}/{{parent}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/statistics/{{kind}}/{{parent}}.log",
    wildcard_constraints:
        kind=any_of(KINDS),
    priority: 80
    resources:
        **asks("statistics"),
    params:
        folder=output_folder,
        model=lambda wildcards, input: folder_of(input.model),
        rows=lambda wildcards: " ".join(
            calibration_rows(wildcards.case, statistics_rows(wildcards)).values()
        ),
        how=statistics_options(),
        seed=seed_of,
        code=code("merges/statistics/files.py"),
    shell:
        "python -m merges statistics --model {params.model} --calibration {params.rows}"
        " --collect {wildcards.kind} --seed {params.seed} {params.how} --out {params.folder}"
        " --threads {threads} 2>&1 | tee {log}"


def aligning_rows(wildcards):
    """What both models read: the rows of all experts, where activations are compared."""
    if not wildcards.align.startswith("activation"):
        return {}
    return calibration_rows(wildcards.case, CASES[wildcards.case].experts)


rule align:
    """A model in the basis of the case's base; a base to itself, since rotations change its gains."""
    input:
        reference=f"{OUT}/{{case}}/models/base/manifest.json",
        model=f"{OUT}/{{case}}/models/{{parent}}/manifest.json",
        rows=lambda wildcards: calibrations(wildcards.case, aligning_rows(wildcards)),
    output:
        f"{OUT}/{{case}}/aligned/{{align}}/{{parent}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/aligned/{{align}}/{{parent}}.log",
    wildcard_constraints:
        align=any_of(row.align for row in CONFIG.methods.values() if row.align),
    priority: 80
    resources:
        **asks("statistics"),
    params:
        folder=output_folder,
        parents=lambda wildcards, input: f"--reference {folder_of(input.reference)}"
        f" --model {folder_of(input.model)}",
        rows=lambda wildcards: "".join(
            f" --align-rows {path}" for path in aligning_rows(wildcards).values()
        ),
        code=code("merges/alignment/aligning.py", "checkpoints/conversion.py"),
    shell:
        "python -m merges align {params.parents} --method {wildcards.align}{params.rows}"
        " --out {params.folder} 2>&1 | tee {log}"


rule merge:
    input:
        unpack(merge_inputs),
    output:
        f"{OUT}/{{case}}/merges/{{row}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/merges/{{row}}.log",
    wildcard_constraints:
        row=any_of(PLAIN),
    priority: 50
    resources:
        **asks("merge"),
    params:
        folder=output_folder,
        failed=failed_file,
        method=method_of,
        parents=parent_options,
        row=row_options,
        seed=seed_of,
        record="",
        keep_record="",
        code=row_code,
    shell:
        "rm -rf {params.failed} {params.folder} {params.record}; "
        "python -m merges --method {params.method} {params.parents} {params.row}"
        " --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        "{params.keep_record}"
        f"{TELL_FAILURE}"


rule tune:
    """A method with the best of K candidate settings, by the dev average."""
    input:
        unpack(search_inputs),
    output:
        f"{OUT}/{{case}}/merges/{{row}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/merges/{{row}}.log",
    wildcard_constraints:
        row=any_of(SEARCHED["tune"]),
    priority: 70
    resources:
        **asks("search"),
    params:
        folder=output_folder,
        failed=failed_file,
        data=lambda wildcards, input: folder_of(input.data),
        search=search_options,
        parents=parent_options,
        row=row_options,
        suites=searched_tasks,
        average=average_groups,
        seed=seed_of,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine"),
        code=search_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m search {params.search} {params.parents} {params.row} --data {params.data}"
        " --suites {params.suites} --average {params.average} --batch-size {params.batch}"
        " {params.how} --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{TELL_FAILURE}"


# A method whose coefficients an evolution strategy searches for, by the dev average.
use rule tune as evolve with:
    wildcard_constraints:
        row=any_of(SEARCHED["evolve"]),


# The best expert, averaged with each next one that does not lower the dev average.
use rule tune as greedy with:
    wildcard_constraints:
        row=any_of(SEARCHED["greedy"]),


def keep_record(wildcards, output):
    """A merged model that is dropped leaves its record: all but weights, the manifest last."""
    if KEPT:
        return ""
    merged, record = RUN_MODEL.format(**wildcards), folder_of(output[0])
    return (
        f" && mkdir -p {record} && find {merged} -mindepth 1 -maxdepth 1"
        f" ! -name '*.safetensors*' ! -name manifest.json -exec cp -r -t {record} {{}} +"
        f" && cp {merged}/manifest.json {record}"
    )


use rule merge as ablation_merge with:
    output:
        f"{RUN}/model/manifest.json",
        **({} if KEPT else {"merged": temp(directory(RUN_MODEL))}),
    log:
        f"{OUT}/logs/ablation/{{objective}}/seed{{seed}}.log",
    priority: 60
    params:
        folder=RUN_MODEL,
        record=output_folder,
        keep_record=keep_record,
