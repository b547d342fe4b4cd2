# What matters at scale: parts of one seed and one size, then tables and figures of all.
from studies.scale.settings import code_of as scale_code

SCALE = CONFIG.studies.scale
SCALE_OUT = f"{OUT}/studies/scale"


# A rule for each size, for its priority: the longest parts first, so that none is waited for.
for scale_place, scale_size in enumerate(SCALE.sizes):

    rule:
        name:
            f"study_scale_{scale_size}"
        input:
            # What of it a part depends on is a parameter.
            config=ancient(f"{OUT}/config.json"),
        output:
            f"{SCALE_OUT}/parts/{scale_size}-seed{{seed}}.json",
        log:
            f"{OUT}/logs/studies/scale/{scale_size}-seed{{seed}}.log",
        priority: 1 + scale_place
        resources:
            mem_mb=3000,
            runtime=240,
        params:
            part=f"{scale_size}-seed{{seed}}",
            settings=json.dumps(SCALE.settings_of(scale_size), sort_keys=True),
            code=lambda wildcards: code(*scale_code(SCALE)),
        shell:
            "python -m studies part scale --config {input.config} --part {params.part}"
            " --out {output} --threads {threads} 2>&1 | tee {log}"


rule study_scale:
    """The study's tables, figures and claims."""
    input:
        parts=expand(
            f"{SCALE_OUT}/parts/{{size}}-seed{{seed}}.json", size=SCALE.sizes, seed=SCALE.seeds
        ),
        config=f"{OUT}/config.json",
    output:
        f"{SCALE_OUT}/manifest.json",
    log:
        f"{OUT}/logs/studies/scale.log",
    localrule: True
    params:
        results=OUT,
        folder=output_folder,
        code=lambda wildcards: code("studies/scale/files.py", "studies/scale/claims.yaml"),
    shell:
        "python -m studies scale --config {input.config} --results {params.results}"
        " --out {params.folder} 2>&1 | tee {log}"
