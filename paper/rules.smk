# Published checkpoints and data sets: fetched once, at a recorded revision, proved by hash.

# These steps use the network; the warm worker was started without it.
ONLINE = f"env -u {client.VARIABLE} -u TRANSFORMERS_OFFLINE HF_HUB_OFFLINE=0 python -m"
FETCH = (
    f"{ONLINE} paper fetch {{params.reference}} {{params.options}} --out {{params.folder}}"
    " > {log} 2> >(tee -a {log} >&2)"
)


def reference_of(wildcards):
    return CASES[wildcards.case].parents[wildcards.parent].hub


def calibration_of(wildcards):
    return CASES[wildcards.case].experts[wildcards.expert].calibration


# Parents that exist only as pickles are written as safetensors once, which all other steps read.
PICKLED = CONFIG.pickled()


rule fetch_model:
    output:
        f"{OUT}/{{case}}/models/{{parent}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/{{parent}}.log",
    wildcard_constraints:
        case=any_of(FETCHED),
        parent=any_of({name for case in FETCHED for name in PARENTS[case]} - PICKLED),
    priority: 100
    resources:
        **asks("fetch"),
        hub=1,
    params:
        reference=reference_of,
        folder=output_folder,
        options=options(CONFIG.fetch_options()),
    shell:
        FETCH


use rule fetch_model as fetch_pickles with:
    output:
        f"{OUT}/{{case}}/pickles/{{parent}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/pickles/{{parent}}.log",
    wildcard_constraints:
        case=any_of(FETCHED),
        parent=any_of(PICKLED),


rule convert_pickles:
    input:
        f"{OUT}/{{case}}/pickles/{{parent}}/manifest.json",
    output:
        f"{OUT}/{{case}}/models/{{parent}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/{{parent}}.log",
    wildcard_constraints:
        case=any_of(FETCHED),
        parent=any_of(PICKLED),
    priority: 100
    resources:
        **asks("merge"),
    params:
        model=lambda wildcards, input: folder_of(input[0]),
        folder=output_folder,
        code=exact_code("checkpoints/conversion.py"),
    shell:
        "rm -rf {params.folder}; "
        "python -m checkpoints convert --model {params.model} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


use rule fetch_model as fetch_row with:
    output:
        f"{OUT}/{{case}}/merges/{{row}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/merges/{{row}}.log",
    wildcard_constraints:
        case=any_of(FETCHED),
        row=any_of(HUB_ROWS),
    params:
        reference=lambda wildcards: CONFIG.methods[wildcards.row].hub,
        folder=output_folder,
        options=options(CONFIG.fetch_options()),


use rule fetch_model as fetch_dataset with:
    output:
        f"{OUT}/datasets/{{reference}}/manifest.json",
    log:
        f"{OUT}/logs/datasets/{{reference}}.log",
    wildcard_constraints:
        reference=r"[a-z][a-z0-9_]*",
    params:
        reference=lambda wildcards: wildcards.reference,
        folder=output_folder,
        options=options(CONFIG.fetch_options()),


rule calibrate:
    """An expert's calibration rows, from its published data set."""
    input:
        source=lambda wildcards: (f"{OUT}/datasets/{calibration_of(wildcards).hub}/manifest.json"),
        base=f"{OUT}/{{case}}/models/base/manifest.json",
    output:
        f"{OUT}/{{case}}/data/calibration/{{expert}}.jsonl",
        f"{OUT}/{{case}}/data/calibration/{{expert}}.manifest.json",
    log:
        f"{OUT}/logs/{{case}}/calibration/{{expert}}.log",
    wildcard_constraints:
        case=any_of(FETCHED),
    priority: 90
    resources:
        **asks("data"),
    params:
        source=lambda wildcards, input: folder_of(input.source),
        base=lambda wildcards, input: folder_of(input.base),
        columns=lambda wildcards: options(calibration_of(wildcards).options()),
        eos=lambda wildcards: "" if calibration_of(wildcards).eos else "--no-eos",
        rows=CONFIG.calibration.rows,
        length=CONFIG.calibration.max_length,
        seed=seed_of,
        code=exact_code("paper/calibration/convert.py"),
    shell:
        "python -m paper calibration --source {params.source} {params.columns} {params.eos}"
        " --rows {params.rows} --seed {params.seed} --tokenizer {params.base}"
        " --max-length {params.length} --task {wildcards.expert} --out {output[0]}"
        " 2>&1 | tee {log}"


rule benchmarks:
    """A case's benchmarks as JSON lines, from pinned revisions or local copies."""
    output:
        f"{OUT}/{{case}}/data/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/data.log",
    wildcard_constraints:
        case=any_of(FETCHED),
    priority: 100
    resources:
        **asks("data"),
        hub=1,
    params:
        folder=output_folder,
        tasks=lambda wildcards: ",".join(
            dict.fromkeys(
                hub.without_variant(task)
                for task in CASES[wildcards.case].tasks
                if task not in CONFIG.tasks
            )
        ),
        source=options(CONFIG.hub.benchmark_options()),
        dev=lambda wildcards: options(CONFIG.dev_options(wildcards.case)),
        code=lambda wildcards: exact_code(
            *data_files(
                task.partition("/")[0].partition(":")[0] for task in CASES[wildcards.case].tasks
            )
        ),
    shell:
        f"{ONLINE} evaluation data --suite {{params.tasks}} {{params.source}} {{params.dev}}"
        " --out {params.folder} 2>&1 | tee {log}"
