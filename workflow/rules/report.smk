# Tables, figures and the page, from scores.

import hashlib

RESULTS = SCORES_FROM or OUT
TEMPLATES = sorted(
    f"report/templates/{path.name}" for path in (ROOT / "report/templates").iterdir()
)
# What the paper's claims came to in other experiments, where the documents are there.
OTHERS = [name for name in ("docs/results/claims.json",) if (ROOT / name).is_file()]
# Commands read the configuration from the environment: Snakemake prints commands, not variables.
os.environ["EXPERIMENT"] = json.dumps(CONFIG.model_dump(), indent=1, ensure_ascii=False)


def scores_of(case):
    """Every score of a case's table, in all worlds."""
    scores = []
    for world in CONFIG.worlds_of(case):
        scores += [f"{OUT}/{world}/smoke.json"]
        # At the published scale, reading every merge again takes hours.
        checks = ("gate", "inspection") if world in MADE else ()
        scores += [f"{OUT}/{world}/{name}.json" for name in checks]
        models = PARENTS[world] + ROWS[world]
        scores += [f"{OUT}/{world}/scores/test/{model}.json" for model in models]
    return scores


def all_scores():
    """Every score that the tables hold; what there is in a folder that was dropped in."""
    if SCORES_FROM:
        folder = Path(SCORES_FROM)
        found = {
            path for where in ("scores", "ablation") for path in folder.rglob(f"{where}/**/*.json")
        }
        beside = {
            path
            for name in ("gate", "smoke", "inspection")
            for path in folder.glob(f"*/{name}.json")
        }
        return sorted(map(str, found | beside))
    scores = sum(map(scores_of, CONFIG.cases), [])
    if ABLATION:
        scores += [f"{RUN}/scores.json".format(**run) for run in RUNS]
        if KEPT:
            scores.append(f"{OUT}/ablation/smoke.json")
        else:
            scores += [f"{RUN}/smoke.json".format(**run) for run in RUNS]
    return scores


def all_manifests():
    """The manifests of the scores in the tables, and of the models that were scored."""
    if SCORES_FROM:
        return []
    found = []
    for world in sum((list(CONFIG.worlds_of(case)) for case in CONFIG.cases), []):
        for kind, models in (("models", PARENTS[world]), ("merges", ROWS[world])):
            for model in models:
                found.append(f"{OUT}/{world}/{kind}/{model}/manifest.json")
                found.append(f"{OUT}/{world}/scores/test/{model}.manifest.json")
    for run in RUNS:
        found += [f"{RUN}/{name}manifest.json".format(**run) for name in ("model/", "scores.")]
    return found


rule resolved_config:
    """The configuration with every default filled in, as the report reads it."""
    output:
        f"{OUT}/config.json",
    localrule: True
    params:
        version=hashlib.sha256(os.environ["EXPERIMENT"].encode()).hexdigest(),
    shell:
        "printenv EXPERIMENT > {output}"


# `--go-on`: a damaged file costs its row and is named in the tables; without it, Snakemake would
# remove what was made.
rule make_tables:
    input:
        scores=all_scores(),
        config=f"{OUT}/config.json",
    output:
        f"{OUT}/tables/manifest.json",
    log:
        f"{OUT}/logs/tables.log",
    localrule: True
    params:
        what="tables",
        results=RESULTS,
        folder=output_folder,
        code=code("report/tables.py", "report/cost.py"),
    shell:
        "python -m report {params.what} --config {input.config} --results {params.results}"
        " --out {params.folder} --go-on 2>&1 | tee {log}"


use rule make_tables as make_figures with:
    output:
        f"{OUT}/figures/manifest.json",
    log:
        f"{OUT}/logs/figures.log",
    params:
        what="figures",
        code=code("report/figures.py"),


rule make_page:
    input:
        tables=f"{OUT}/tables/manifest.json",
        figures=f"{OUT}/figures/manifest.json",
        config=f"{OUT}/config.json",
        prompts=[] if SCORES_FROM else prompts_shown(),
    output:
        page=f"{OUT}/report.html",
        answers=f"{OUT}/items/manifest.json",
    log:
        f"{OUT}/logs/page.log",
    localrule: True
    params:
        results=RESULTS,
        tables=lambda wildcards, input: folder_of(input.tables),
        figures=lambda wildcards, input: folder_of(input.figures),
        answers=lambda wildcards, output: folder_of(output.answers),
        code=code(
            "report/page.py", "report/published/merging-in-a-bottle.yaml", *TEMPLATES, *OTHERS
        ),
    shell:
        "python -m report page --config {input.config} --results {params.results}"
        " --tables {params.tables} --figures {params.figures} --items {params.answers}"
        " --out {output.page} --go-on"
        " 2>&1 | tee {log}"


if not SCORES_FROM:
    for case, entry in CONFIG.cases.items():

        # All that one table needs; `snakemake tables` then makes it.
        rule:
            name:
                entry.table
            input:
                scores_of(case),
            localrule: True


rule tables:
    """Tables from the scores that exist. Without inputs, so that nothing is ever run for them."""
    localrule: True
    params:
        what="tables",
        results=RESULTS,
        out=OUT,
    shell:
        "mkdir -p {params.out} && printenv EXPERIMENT > {params.out}/.{params.what}.json"
        " && python -m report {params.what} --config {params.out}/.{params.what}.json"
        " --results {params.results} --out {params.out}/{params.what}"


# Figures from the scores that exist, in the same way.
use rule tables as figures with:
    params:
        what="figures",
