"""What matters in DAM: the worlds that the study adds, and the settings it compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError, nearest
from merges.engine import registry

ABOUT = "what matters in DAM, over several worlds"
DATA = ("own", "swapped", "mixed")  # whose calibration rows a setting's teachers see


def world_of(config: Mapping[str, Any], case: str, seed: int) -> str:
    """Name the world of a case that is made from a seed; the experiment's own is the case."""
    return case if seed == config["seed"] else f"studies/dam/{case}_seed{seed}"


def worlds_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the case from the study's other seeds; see `studies.rooms.worlds_of`."""
    study = config["studies"]["dam"]
    case = study["case"]
    return {
        world_of(config, case, seed): config["cases"][case] | {"seed": seed, "of": case}
        for seed in study["seeds"]
        if seed != config["seed"]
    }


def candidates_of(study: Mapping[str, Any], setting: str) -> list[dict[str, Any]]:
    """List what a setting is tuned over: its learning rates, or nothing but itself."""
    entry = study["settings"][setting]
    rates = entry.get("learning_rates", study["learning_rates"] if entry["method"] == "dam" else [])
    return [{"learning_rate": rate} for rate in rates] or [{}]


def set_of(study: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Return a setting's fixed parameters: the study's with its own over them.

    A setting that names a preset takes nothing from the study, since what is given beside a
    preset overrides it.
    """
    entry = study["settings"][setting]
    shared = {} if entry["method"] != "dam" or "preset" in entry["set"] else study["set"]
    return {**shared, **entry["set"]}


def check(config: Mapping[str, Any]) -> None:
    """Refuse a study that names what does not exist or compares unequal efforts.

    Args:
        config: The configuration with the schema's defaults filled in.

    Raises:
        UserError: One line with the place and, where there is one, the nearest valid name.
    """
    study = config["studies"]["dam"]
    if study["case"] not in config["cases"]:
        raise UserError(
            f"studies.dam.case: unknown case {study['case']!r}"
            f"{nearest(study['case'], config['cases'])}"
        )
    for name in study["settings"]:
        _check_setting(config, study, name)
    for name, comparison in study["comparisons"].items():
        for setting in (comparison["reference"], *comparison["settings"]):
            if setting not in study["settings"]:
                raise UserError(
                    f"studies.dam.comparisons.{name}: no setting {setting!r}"
                    f"{nearest(setting, study['settings'])}"
                )
        if comparison["reference"] in comparison["settings"]:
            raise UserError(
                f"studies.dam.comparisons.{name}: the reference {comparison['reference']!r} is "
                "compared with itself; name it once"
            )


def _check_setting(config: Mapping[str, Any], study: Mapping[str, Any], name: str) -> None:
    entry, where = study["settings"][name], f"studies.dam.settings.{name}"
    if entry["method"] not in registry.describe():
        raise UserError(
            f"{where}: unknown method {entry['method']!r}"
            f"{nearest(entry['method'], registry.describe())}"
        )
    experts = config["cases"][study["case"]]["experts"]
    for expert in entry.get("experts", []):
        if expert not in experts:
            raise UserError(
                f"{where}: {study['case']} has no expert {expert!r}{nearest(expert, experts)}"
            )
    candidates, shared = candidates_of(study, name), len(study["learning_rates"])
    if len(candidates) not in (1, shared):
        raise UserError(
            f"{where}: {len(candidates)} learning rates; give one, or {shared} as in "
            "studies.dam.learning_rates, so that all are tuned alike"
        )
    for candidate in candidates:
        try:
            resolved = registry.validate(entry["method"], {**set_of(study, name), **candidate})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    rows, samples = config["calibration"]["rows"], resolved.get("samples", 0)
    if "data" in registry.describe()[entry["method"]].needs and samples > rows:
        raise UserError(
            f"{where}: {samples} samples per expert, but calibration.rows makes only {rows}"
        )
