"""Notes below a case's tables: marks, gaps, and what a row's scores are not."""

from __future__ import annotations

from report.answers import ALIKE, CONSTANT, disguises, is_constant
from report.experiment import Case, Model


def _stand_ins(case: Case) -> list[str]:
    """Name the tasks whose rows are not their benchmark's, with the reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, roles in case.stand_ins().items():
        for role, why in sorted(roles.items(), key=lambda entry: entry[0] != "items"):
            found.setdefault((role, why), []).append(case.task_label(task))
    return [
        f"Not the benchmark's own {'examples' if role == 'fewshot' else role}, but "
        f"{why}: {', '.join(labels)}."
        for (role, why), labels in found.items()
    ]


def _backends(case: Case) -> list[str]:
    """Say which backend evaluated which models, unless it was the same for all."""
    by: dict[str, list[str]] = {}
    for model in case.models:
        if model.backend:
            by.setdefault(model.backend, []).append(model.label)
    if len(by) < 2:
        return []
    *few, (most, _) = sorted(by.items(), key=lambda entry: len(entry[1]))
    named = "; ".join(f"by {backend}: {', '.join(labels)}" for backend, labels in few)
    return [f"Evaluated {named}; the others by {most}."]


def _harnesses(case: Case) -> list[str]:
    """Say which rows another version of lm-eval evaluated, unless it was the same for all."""
    by: dict[str, list[str]] = {}
    for model in (each for row in case.models for each in row.each.values()):
        if version := model.evaluated.get("lm_eval"):
            by.setdefault(str(version), []).append(model.label)
    few = sorted(by.items(), key=lambda entry: len(entry[1]))[:-1]
    return [
        f"Evaluated with lm-eval {version}, unlike the others: {', '.join(dict.fromkeys(labels))}."
        for version, labels in few
    ]


def footnotes(case: Case) -> list[str]:
    """Explain the marks of a case's tables, and the rows without scores."""
    notes = [f"Errors are over {case.errors}."]
    notes += [f"Seed {s} is left out: {why}." for s, (_, why) in case.left_out.items()]
    if missed := case.not_learned():
        named = "; ".join(
            f"{case.task_label(task)} ({', '.join(experts)})" for task, experts in missed.items()
        )
        notes.append(
            f"† Not learned: its own expert does not clearly beat the base on dev items: {named}."
        )
    if held_out := case.held_out():
        named = ", ".join(map(case.task_label, held_out))
        notes.append(f"‡ In no expert's domain: {named}.")
    notes += [*case.notes, *_stand_ins(case), *_backends(case)]
    if any(model.kind == "merge" and not model.best_of for model in case.models):
        notes.append("° Takes no part in the marks for the best merge.")
    notes += [*_soups(case), *_disguised(case), *_constant(case), *_repeated(case)]
    if any(score.stderr == 0 for m in case.models for score in m.tasks.values()):
        notes.append(
            "±.000 stands where all items are right, or all wrong: the sample then says nothing "
            "about its error, which is not zero."
        )
    notes += [f"{m.label}: {m.status}." for m in case.models if m.status != "ok"]
    for model in case.models:
        notes += [f"{model.label}, {case.task_label(task)}: {why}."
                  for task, why in model.lacking.items() if task in case.tasks]  # fmt: skip
    notes += _harnesses(case)
    return notes + [edit for model in case.models for edit in edits_of(model)]


def edits_of(model: Model) -> list[str]:
    """Say that a model's scores are not those of an evaluation, if that is so."""
    if not model.edits:
        return []
    where = f" ({', '.join(model.edits)})" if model.worlds else ""
    return [f"{model.label}: its scores were edited by hand and accepted{where}."]


def _soups(case: Case) -> list[str]:
    """Say which experts a greedy soup took; one alone is that expert and no merge at all."""
    found: dict[str, list[str]] = {}
    for seed, model in ((s, m) for m in case.models for s, m in m.each.items()):
        search = model.manifest.get("parameters", {}).get("search", {})
        if joined := [case.experts[id]["label"] for id in search.get("joined", ())]:
            what = f"the average of {', '.join(joined)}" if joined[1:] else f"{joined[0]}, alone"
            where = [] if seed is None else [str(seed)]
            found.setdefault(f"{model.label}: {what}", []).extend(where)
    return [f"{what}{_of_seeds(seeds)}." for what, seeds in found.items()]


def _of_seeds(seeds: list[str]) -> str:
    return f" (seed{'s' if seeds[1:] else ''} {', '.join(seeds)})" if seeds else ""


def _disguised(case: Case) -> list[str]:
    """Name the merges that answer as one expert does, by expert and world."""
    found: dict[str, list[str]] = {}
    for model in case.models:
        for seed, expert in disguises(model).items():
            what = f"{model.label}: answers as {case.experts[expert]['label']} does"
            found.setdefault(what, []).extend([] if seed is None else [str(seed)])
    rule = f"at least {ALIKE:.0%} of all items; if so in most worlds, it is not marked as best"
    return [f"{what}{_of_seeds(seeds)} ({rule})." for what, seeds in found.items()]


def _constant(case: Case) -> list[str]:
    """Name the cells whose model gives nearly every item of a task the same answer."""
    found: dict[str, list[str]] = {}
    for model in case.models:
        for task in case.tasks:
            seeds = [
                seed
                for seed, one in model.each.items()
                if one.answers and is_constant(one.answers, task)
            ]
            if seeds:
                where = _of_seeds([str(seed) for seed in seeds if seed is not None])
                found.setdefault(model.label, []).append(f"{case.task_label(task)}{where}")
    if not found:
        return []
    named = "; ".join(f"{label}: {', '.join(tasks)}" for label, tasks in found.items())
    return [f"Constant answer, one and the same to at least {CONSTANT:.0%} of the items: {named}."]


def _repeated(case: Case) -> list[str]:
    """Say which tasks ask a fact in several items, so that fewer are independent."""
    world = next(iter(case.each.values()))
    known = next((model.answers for model in world.models if model.answers), None)
    named = [
        f"{case.task_label(task)} ({len(numbers)} items, {len(set(numbers))} answers)"
        for task, numbers in (known.facts if known else {}).items()
        if task in case.tasks and 2 * len(set(numbers)) <= len(numbers)
    ]
    if not named:
        return []
    return [
        "Several items of a task have the same right answer, so that fewer are independent than "
        f"the errors over items assume: {', '.join(named)}. Paired tests keep such items together."
    ]
