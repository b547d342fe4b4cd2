# What the steps ask of a machine or a scheduler, and whether it can give that.
import time

from workflow import machine, resources


def asks(kind):
    """A rule's resources; the kinds of work are those of workflow.resources.WORK."""

    def resource(name):
        def value(wildcards, attempt):
            row, case = row_of(wildcards), case_of(wildcards)
            shared = {}
            if kind == "evaluate" and backend_of(wildcards) == "vllm":
                names = ("tensor_parallel", "data_parallel")
                shared = {name: CONFIG["evaluation"][name] for name in names}
            trained = "method" in row and "data" in registry.describe()[row["method"]].needs
            return resources.ask(
                f"trained_{kind}" if trained and kind in ("merge", "search") else kind,
                case,
                experts=len(row.get("experts", case["experts"])),
                times=times_of(kind, row, wildcards),
                device=CONFIG["evaluation"]["device"],
                attempt=attempt,
                **shared,
            )[name]

        return value

    return {name: resource(name) for name in ("gpu", "gpu_mem_mb", "mem_mb", "runtime")}


def case_of(wildcards):
    """A step's case; the steps of the ablation and of the study have it in the configuration."""
    if wildcards.get("case"):
        return CASES[wildcards.case]
    if wildcards.get("setting"):
        return CASES[CONFIG["dam_study"]["case"]]
    return CASES[ABLATION["case"]] if ABLATION else next(iter(CASES.values()))


def row_of(wildcards):
    """The method row that a step belongs to; empty where it belongs to none."""
    if wildcards.get("setting"):
        study = CONFIG["dam_study"]
        tried = studies.candidates_of(study, wildcards.setting)
        return study["settings"][wildcards.setting] | {"tune": tried}
    row = ABLATION["row"] if wildcards.get("objective") else wildcards.get("row")
    return CONFIG["methods"].get(row, {})


def times_of(kind, row, wildcards):
    """Models of a smoke check, dev evaluations of a search."""
    if kind == "smoke":
        return len(smoke_models(wildcards))
    if kind != "search":
        return 1
    if "evolve" in row:
        return row["evolve"]["budget"]
    return len(row.get("tune", [])) or 2 * len(case_of(wildcards)["experts"])


def asked_by(job):
    given = {name: job.resources.get(name) or 0 for name in machine.COUNTS}
    partition = job.resources.get("slurm_partition")
    return machine.Ask(job.name, threads=job.threads, partition=partition, **given)


STARTED = time.time()


onstart:
    if workflow.is_main_process:
        jobs = list(workflow.dag.needrun_jobs())
        limit = workflow.global_resources.get("gpu")
        try:
            if workflow.local_exec:
                machine.check_local(map(asked_by, jobs), limit and limit.value)
            elif workflow.executor_plugin.name == "slurm":
                machine.check_slurm(
                    asked_by(job) for job in jobs if not workflow.is_local(job.rule)
                )
        except UserError as error:
            raise WorkflowError(f"error: {error}") from None


onerror:
    told = machine.why_jobs_died(Path(".snakemake/slurm_logs"), STARTED, sys.executable)
    if told and workflow.is_main_process:
        print(f"error: {told}", file=sys.stderr)
