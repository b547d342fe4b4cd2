# N checkpoints in, one out: plain merges, tuned ones, searched ones, and DAM's shared teachers.
#
# Before it runs a step again, Snakemake takes the manifest away; the commands would then refuse a
# folder that looks like somebody else's, hence each rule removes its own first.


def experts_of(wildcards):
    """A row's experts; the ablation's rows have their case and row in the configuration."""
    case = wildcards.get("case", ABLATION and ABLATION.case)
    return case, merge_row(wildcards).experts_of(CASES[case].experts)


def merge_row(wildcards):
    """The row that a merge belongs to."""
    return CONFIG.methods[wildcards.get("row", ABLATION and ABLATION.row)]


def needs_data(wildcards):
    return merge_row(wildcards).learns


def calibrations(case, experts):
    """The experts' calibration data; in a case that is made here they come with all others."""
    if case in MADE:
        return [f"{OUT}/{case}/data/manifest.json"]
    return [f"{OUT}/{case}/data/calibration/{expert}.jsonl" for expert in experts]


def needs_teachers(wildcards):
    """Whether a row learns from the experts' cached predictions, and not from data alone."""
    return merge_row(wildcards).method == "dam"


def merge_inputs(wildcards):
    case, experts = experts_of(wildcards)
    inputs = {
        "base": f"{OUT}/{case}/models/base/manifest.json",
        "experts": [f"{OUT}/{case}/models/{expert}/manifest.json" for expert in experts],
    }
    if needs_data(wildcards):
        inputs["calibration"] = calibrations(case, experts)
    if case in MADE:
        # The gate comes first, but no number of a merge depends on what it wrote.
        inputs["gate"] = ancient(f"{OUT}/{case}/gate.json")
    if needs_teachers(wildcards):
        inputs["teachers"] = f"{OUT}/{case}/teachers/manifest.json"
    return inputs


def search_inputs(wildcards):
    """A search also reads the dev items."""
    return merge_inputs(wildcards) | {
        "data": f"{OUT}/{wildcards.case}/data/manifest.json",
        "own": own_manifests(wildcards.case),
    }


def parent_options(wildcards):
    case, experts = experts_of(wildcards)
    models = f"{OUT}/{case}/models"
    given = [f"--base {models}/base --experts"]
    given += [f"{expert}={models}/{expert}" for expert in experts]
    if needs_data(wildcards):
        given.append("--calibration")
        given += [f"{expert}={OUT}/{case}/data/calibration/{expert}.jsonl" for expert in experts]
    if needs_teachers(wildcards):
        given.append(f"--teachers {OUT}/{case}/teachers")
    if case in FETCHED:
        given.append(f"--vocabulary {CASES[case].vocabulary}")
    learns = needs_data(wildcards) and wildcards.get("row") in [None, *PLAIN]
    if learns and CONFIG.evaluation.device != "cpu":  # searches have it among their own
        given.append(f"--device {CONFIG.evaluation.device}")
    return " ".join(given)


def method_of(wildcards):
    return CONFIG.methods[wildcards.row].method


def row_options(wildcards):
    row = CONFIG.methods[wildcards.row]
    return f"--embeddings-and-norms {row.embeddings_and_norms} {settings(row.set)}"


def row_code(wildcards):
    return code(*registry.sources(method_of(wildcards)))


def row_search_code(wildcards):
    return search_code(CONFIG.methods[wildcards.row], searched_tasks(wildcards))


def searched_tasks(wildcards):
    """The tasks that guide a search: those of the average, and none that is only shown."""
    columns = CASES[wildcards.case].searched_columns
    return ",".join(dict.fromkeys(task for tasks in columns for task in tasks))


def average_groups(wildcards):
    """The table's average, for a search on dev: the mean over columns of their tasks' means."""
    return shlex.quote(json.dumps(CASES[wildcards.case].searched_columns))


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
        models=lambda wildcards: f"{OUT}/{wildcards.case}/models",
        experts=lambda wildcards: " ".join(
            f"{expert}={OUT}/{wildcards.case}/models/{expert}"
            for expert in CASES[wildcards.case].experts
        ),
        calibration=lambda wildcards: " ".join(
            f"{expert}={OUT}/{wildcards.case}/data/calibration/{expert}.jsonl"
            for expert in CASES[wildcards.case].experts
        ),
        how=teachers_options,
        code=code("merges/dam/states.py"),
    shell:
        "rm -rf {params.folder}; "
        "python -m merges teachers --base {params.models}/base --experts {params.experts}"
        " --calibration {params.calibration} {params.how} --out {params.folder}"
        " --threads {threads} 2>&1 | tee {log}"


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
        method=lambda wildcards: method_of(wildcards),
        parents=parent_options,
        row=row_options,
        seed=seed_of,
        code=row_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m merges --method {params.method} {params.parents} {params.row}"
        " --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
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
        method=lambda wildcards: method_of(wildcards),
        parents=parent_options,
        row=row_options,
        candidates=lambda wildcards: shlex.quote(json.dumps(CONFIG.methods[wildcards.row].tune)),
        suites=searched_tasks,
        average=average_groups,
        seed=seed_of,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine"),
        code=row_search_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m search tune --method {params.method} {params.parents} {params.row}"
        " --candidates {params.candidates} --data {params.data} --suites {params.suites}"
        " --average {params.average} --batch-size {params.batch} {params.how}"
        " --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{TELL_FAILURE}"


rule evolve:
    """A method whose coefficients an evolution strategy searches for, by the dev average."""
    input:
        unpack(search_inputs),
    output:
        f"{OUT}/{{case}}/merges/{{row}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/merges/{{row}}.log",
    wildcard_constraints:
        row=any_of(SEARCHED["evolve"]),
    priority: 70
    resources:
        **asks("search"),
    params:
        folder=output_folder,
        failed=failed_file,
        data=lambda wildcards, input: folder_of(input.data),
        method=lambda wildcards: method_of(wildcards),
        parents=parent_options,
        row=row_options,
        search=lambda wildcards: options(CONFIG.methods[wildcards.row].evolve.given()),
        suites=searched_tasks,
        average=average_groups,
        seed=seed_of,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine"),
        code=row_search_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m search evolve --method {params.method} {params.parents} {params.row}"
        " {params.search} --data {params.data} --suites {params.suites}"
        " --average {params.average} --batch-size {params.batch} {params.how}"
        " --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{TELL_FAILURE}"


rule greedy:
    """The best expert, averaged with each next one that does not lower the dev average."""
    input:
        unpack(search_inputs),
    output:
        f"{OUT}/{{case}}/merges/{{row}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/merges/{{row}}.log",
    wildcard_constraints:
        row=any_of(SEARCHED["greedy"]),
    priority: 70
    resources:
        **asks("search"),
    params:
        folder=output_folder,
        failed=failed_file,
        data=lambda wildcards, input: folder_of(input.data),
        parents=parent_options,
        row=row_options,
        suites=searched_tasks,
        average=average_groups,
        seed=seed_of,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine"),
        code=row_search_code,
    shell:
        "rm -rf {params.failed} {params.folder}; "
        "python -m search greedy {params.parents} {params.row} --data {params.data}"
        " --suites {params.suites} --average {params.average} --batch-size {params.batch}"
        " {params.how} --seed {params.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{TELL_FAILURE}"


# A merged model that is dropped leaves its record: all but weights, the manifest last.
RECORD = (
    ""
    if KEPT
    else " && mkdir -p {params.record} && find {params.folder} -mindepth 1 -maxdepth 1"
    " ! -name '*.safetensors*' ! -name manifest.json -exec cp -r -t {params.record} {{}} +"
    " && cp {params.folder}/manifest.json {params.record}"
)


rule ablation_merge:
    input:
        unpack(merge_inputs),
    output:
        f"{RUN}/model/manifest.json",
        **({} if KEPT else {"merged": temp(directory(RUN_MODEL))}),
    log:
        f"{OUT}/logs/ablation/{{objective}}/seed{{seed}}.log",
    priority: 60
    resources:
        **asks("merge"),
    params:
        folder=RUN_MODEL,
        record=output_folder,
        failed=failed_file,
        method=lambda wildcards: merge_row(wildcards).method,
        parents=parent_options,
        policy=lambda wildcards: merge_row(wildcards).embeddings_and_norms,
        settings=lambda wildcards: settings(
            ABLATION.settings(merge_row(wildcards).set, wildcards.objective)
        ),
        code=lambda wildcards: code(*registry.sources(merge_row(wildcards).method)),
    shell:
        "rm -rf {params.failed} {params.folder} {params.record}; "
        "python -m merges --method {params.method} {params.parents}"
        " --embeddings-and-norms {params.policy} {params.settings}"
        " --seed {wildcards.seed} --out {params.folder} --threads {threads} 2>&1 | tee {log}"
        f"{RECORD}{TELL_FAILURE}"
