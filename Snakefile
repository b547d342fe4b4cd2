from snakemake.utils import min_version

min_version("9.0")

# A configuration given with --configfile replaces the default one completely.
if not workflow.overwrite_configfiles:

    configfile: workflow.source_path("config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


if not SCORES_FROM:

    include: "workflow/rules/resources.smk"
    include: "workflow/rules/models.smk"

    if FETCHED:

        include: "paper/rules.smk"

    if CASKS:

        include: "cask/rules.smk"
    include: "workflow/rules/merges.smk"
    include: "workflow/rules/evaluation.smk"
    include: "workflow/rules/smoke.smk"
    include: "workflow/rules/inspection.smk"

    for study in CONFIG.studies.present:

        include: f"studies/{study}/rules.smk"


include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        f"{OUT}/report.html",
        f"{OUT}/items/manifest.json",
        f"{OUT}/tables/manifest.json",
        f"{OUT}/figures/manifest.json",
        # Named here too: Snakemake makes again what is gone only where a target asks for it.
        # But for the gate: the merges that waited for it would be made again with it.
        [path for path in all_scores() if not path.endswith("/gate.json")],
        all_manifests(),
    localrule: True
