# What the steps ask of a machine or a scheduler, and whether it can give that.
import time

from paper import budget, checks
from paper.estimate import AT_A_TIME
from workflow import capacity, resources


def asks(kind):
    """A rule's resources; the kinds of work are those of workflow.resources.WORK."""

    def resource(name):
        def value(wildcards, attempt):
            row, case = row_of(wildcards), case_of(wildcards)
            shared = {}
            if kind == "evaluate" and backend_of(wildcards) == "vllm":
                shared = CONFIG.evaluation.scoring("tensor_parallel", "data_parallel")
            trained = row is not None and row.learns
            return resources.ask(
                f"trained_{kind}" if trained and kind in ("merge", "search") else kind,
                case,
                experts=len(row.experts_of(case.experts) if row else case.experts),
                times=times_of(kind, row, wildcards),
                device=CONFIG.evaluation.device,
                attempt=attempt,
                **shared,
            )[name]

        return value

    return {name: resource(name) for name in ("gpu", "gpu_mem_mb", "mem_mb", "runtime")}


def times_of(kind, row, wildcards):
    """Models of a smoke check or an inspection, dev evaluations of a search."""
    if kind == "smoke":
        return len(smoke_models(wildcards))
    if kind == "inspect":
        return len(inspected_models(wildcards))
    if kind != "search":
        return 1
    return row.evaluations(len(case_of(wildcards).experts))


def asked_by(job):
    given = {name: job.resources.get(name) or 0 for name in capacity.COUNTS}
    for name in ("partition", "account"):
        given[name] = job.resources.get(f"slurm_{name}")
    return capacity.Ask(job.name, threads=job.threads, **given)


MAKING_MODELS = (
    *("fetch_model", "fetch_pickles", "fetch_row", "convert_pickles"),
    *("merge", "tune", "evolve", "greedy", "ablation_merge"),
)


def stored_by(job):
    """GB that a step on published models adds to the disk, and for a download its reference."""
    if "case" not in (wildcards := job.wildcards_dict) and job.rule.name != "ablation_merge":
        return None, 0.0
    case = wildcards.get("case", ABLATION and ABLATION.case)
    if case not in FETCHED:
        return None, 0.0
    if job.rule.name == "teachers":
        return None, budget.states_gigabytes(CONFIG, case)
    if job.rule.name not in MAKING_MODELS:
        return None, 0.0
    size = CASES[case].gigabytes
    reference = job.params.get("reference") if job.rule.name.startswith("fetch") else None
    return reference, max(0.0, size - checks.gigabytes_in(Path(job.output[0]).parent))


def check_start(jobs):
    """Refuse to begin where a licence's token or the disk's room is lacking."""
    stored = [(job.rule.name, *stored_by(job)) for job in jobs]
    if FETCHED:
        checks.check_places(CONFIG)
    checks.check_tokens(CONFIG, [name for _, name, _ in stored if name])
    runs = sorted(size for rule, _, size in stored if rule == "ablation_merge")
    dropped = 0.0 if KEPT else sum(runs) - sum(runs[-AT_A_TIME:])
    checks.check_disk(sum(size for *_, size in stored) - dropped, Path(OUT))


def check_evaluators(jobs):
    """Refuse to begin where vLLM or PostgreSQL will be lacking, when all models were made."""
    scoring = [job for job in jobs if job.rule.name in ("evaluate", "ablation_evaluate")]
    backends = {backend_of(job.wildcards) for job in scoring}
    tasks = [task for job in scoring for task in case_of(job.wildcards).tasks]
    capacity.check_evaluators(
        vllm="vllm" in backends and not CONFIG.evaluation.interpreter("vllm"),
        postgres=CONFIG.evaluation.engine == "postgres"
        and any(task.startswith("sql_eval") for task in tasks),
    )


STARTED = time.time()


onstart:
    if workflow.is_main_process:
        jobs = list(workflow.dag.needrun_jobs())
        limit = workflow.global_resources.get("gpu")
        try:
            check_start(jobs)
            if workflow.local_exec:
                capacity.check_local(map(asked_by, jobs), limit and limit.value)
                check_evaluators(jobs)
                # One machine needs no limit on how many jobs start in a second. With Snakemake's,
                # every job that ends leaves a timer that wakes the scheduler each second from then
                # on: 40 % of a core after 200 jobs.
                workflow.scheduler.job_rate_limiter = None
            elif workflow.executor_plugin.name == "slurm":
                capacity.check_slurm(
                    asked_by(job) for job in jobs if not workflow.is_local(job.rule)
                )
        except UserError as error:
            raise WorkflowError(f"error: {error}") from None


onerror:
    told = capacity.why_jobs_died(Path(".snakemake/slurm_logs"), STARTED, sys.executable)
    if told and workflow.is_main_process:
        print(f"error: {told}", file=sys.stderr)
