# One checkpoint in, scores out; and the gate that every expert has to pass.


def model_manifest(wildcards):
    kind = "models" if wildcards.model in PARENTS[wildcards.case] else "merges"
    return f"{OUT}/{wildcards.case}/{kind}/{wildcards.model}/manifest.json"


def run_model(wildcards):
    """What a step needs of a run's merged model: its manifest, or the folder that will be dropped."""
    return f"{RUN_MODEL}/manifest.json" if KEPT else RUN_MODEL


def backend_of(wildcards):
    """A model's own backend; runs of the ablation and of studies have the experiment's."""
    if not wildcards.get("model"):
        return CONFIG.evaluation.backend
    return CONFIG.backend_of(CASES[wildcards.case], wildcards.model)


def python_of(wildcards):
    """The Python of a backend's environment; another than this one has no warm worker to ask."""
    python = CONFIG.evaluation.interpreter(backend_of(wildcards))
    return f"env -u {client.VARIABLE} {shlex.quote(str(python))}" if python else "python"


def gate_options(wildcards):
    scores = f"{OUT}/{wildcards.case}/scores/dev"
    return f"--base {scores}/base.json " + " ".join(
        f"--expert {expert}={scores}/{expert}.json:{','.join(entry.domain)}"
        for expert, entry in CASES[wildcards.case].experts.items()
    )


def one_gate_stops(world):
    """Whether the run ends with this world's gate; with several worlds, it does not."""
    return CONFIG.gate.stop and len(worlds_beside(world)) == 1


def gate_before(world):
    """What merges wait for: their world's gate, or that of all worlds, where one may fail."""
    if not CONFIG.gate.stop or one_gate_stops(world):
        return f"{OUT}/{world}/gate.json"
    return f"{OUT}/{CASES[world].of}/gates.json"


def own_entry(wildcards):
    entry = CONFIG.tasks[wildcards.own].model_dump(exclude_none=True)
    return shlex.quote(json.dumps({"tasks": {wildcards.own: entry}}))


def prompts_shown():
    """The prompts that the page shows; rows of the bottle hold theirs and need none."""
    found = []
    for world in sum((list(CONFIG.worlds_of(case)) for case in CONFIG.cases), []):
        asked = tasks_in(",".join(CASES[world].evaluated("test")))
        if any(task.maker != "bottle" for task in asked):
            found.append(f"{OUT}/{world}/prompts/manifest.json")
    return found


rule own_task:
    """A user's own task, checked and put with a case's data; a change reruns its evaluations."""
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        files=lambda wildcards: own_data.sources(wildcards.own, CONFIG.tasks[wildcards.own]),
    output:
        f"{OUT}/{{case}}/data/tasks/{{own}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/tasks/{{own}}.log",
    wildcard_constraints:
        own=any_of(CONFIG.tasks),
    priority: 100
    localrule: True
    params:
        data=lambda wildcards, input: folder_of(input.data),
        entry=own_entry,
        code=exact_code("evaluation/own_data.py"),
    shell:
        "printf %s {params.entry} | python -m evaluation tasks - --data {params.data} 2>&1"
        " | tee {log}"


rule prompts:
    """What models are asked, for the page: once a world, in which no model makes a difference."""
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        own=lambda wildcards: own_manifests(wildcards.case),
        base=f"{OUT}/{{case}}/models/base/manifest.json",
    output:
        f"{OUT}/{{case}}/prompts/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/prompts.log",
    localrule: True
    params:
        data=lambda wildcards, input: folder_of(input.data),
        tokenizer=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        suites=suites,
        limit=scoring("limit"),
        code=lambda wildcards: exact_code(
            "evaluation/asked.py", *evaluation_files(tasks_in(suites(wildcards)))
        ),
    shell:
        "python -m evaluation prompts --suites {params.suites} --data {params.data} {params.limit}"
        " --tokenizer {params.tokenizer} --out {params.folder} 2>&1 | tee {log}"


rule evaluate:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        own=lambda wildcards: own_manifests(wildcards.case),
        model=model_manifest,
    output:
        scores=f"{OUT}/{{case}}/scores/{{split}}/{{model}}.json",
        manifest=f"{OUT}/{{case}}/scores/{{split}}/{{model}}.manifest.json",
    log:
        f"{OUT}/logs/{{case}}/scores/{{split}}/{{model}}.log",
    priority: 30
    resources:
        **asks("evaluate"),
    params:
        data=lambda wildcards, input: folder_of(input.data),
        model=lambda wildcards, input: folder_of(input.model),
        suites=suites,
        split=lambda wildcards: wildcards.get("split", "test"),
        backend=backend_of,
        python=python_of,
        batch=CONFIG.evaluation.batch_size,
        how=scoring("dtype", "device", "engine", "limit"),
        seed=seed_of,
        failed=failed_file,
        code=lambda wildcards: scoring_code(suites(wildcards), backend_of(wildcards)),
    shell:
        "rm -f {params.failed}; "
        "{params.python} -m evaluation --model {params.model} --suites {params.suites}"
        " --data {params.data} --split {params.split} --backend {params.backend}"
        " $PARALLEL_{params.backend}"
        " --batch-size {params.batch} {params.how} --seed {params.seed} --out {output.scores}"
        " --threads {threads} $STORE > {log} 2> >(tee -a {log} >&2)"
        f"{TELL_FAILURE}"


rule gate:
    """No table is made from experts that learned nothing."""
    input:
        lambda wildcards: expand(
            f"{OUT}/{wildcards.case}/scores/dev/{{parent}}.json", parent=PARENTS[wildcards.case]
        ),
    output:
        f"{OUT}/{{case}}/gate.json",
    log:
        f"{OUT}/logs/{{case}}/gate.log",
    priority: 100
    localrule: True
    params:
        parents=gate_options,
        standard_errors=CONFIG.gate.standard_errors,
        go_on=lambda wildcards: "" if one_gate_stops(wildcards.case) else "--go-on",
        code=code("evaluation/gate.py"),
    shell:
        "python -m evaluation gate {params.parents} --standard-errors {params.standard_errors}"
        " {params.go_on} --out {output} 2>&1 | tee {log}"


rule gates:
    """With several worlds, one must pass; tables leave out those that did not."""
    input:
        lambda wildcards: [f"{OUT}/{w}/gate.json" for w in worlds_beside(wildcards.case)],
    output:
        f"{OUT}/{{case}}/gates.json",
    log:
        f"{OUT}/logs/{{case}}/gates.log",
    wildcard_constraints:
        case=any_of(CONFIG.cases),
    priority: 100
    localrule: True
    params:
        code=code("evaluation/gate.py"),
    shell:
        "python -m evaluation gate --worlds {input} --out {output} 2>&1 | tee {log}"


use rule evaluate as ablation_evaluate with:
    input:
        data=lambda wildcards: f"{OUT}/{ABLATION.case}/data/manifest.json",
        own=lambda wildcards: own_manifests(ABLATION.case),
        model=run_model,
    output:
        scores=f"{RUN}/scores.json",
        manifest=f"{RUN}/scores.manifest.json",
    log:
        f"{OUT}/logs/ablation/{{objective}}/seed{{seed}}.scores.log",
    # Models that are dropped afterwards are evaluated before the next is made.
    priority: 30 if KEPT else 65
    params:
        model=f"{{objective}}={RUN_MODEL}",
