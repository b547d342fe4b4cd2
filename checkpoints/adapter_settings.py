"""What an adapter's configuration says: its kind, and the rank and scale of each module."""

from __future__ import annotations

import math
import re
import reprlib
from pathlib import Path
from typing import Any

from checkpoints.layout import REMADE, read_object
from common.errors import UserError

CONFIG = "adapter_config.json"
# Fields of a LoRA configuration that leave W + scale B A true, whatever they hold. Any other field
# must be empty: it belongs to a variant that changes the formula.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_dropout", "megatron_core", "modules_to_save", "peft_type"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    *("task_type", "bias", "lora_bias", "fan_in_fan_out", "init_lora_weights", "use_rslora"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "trainable_token_indices"),
    "lora_ga_config",
}
# Initial values that leave the base as it is. PiSSA, OLoRA, CorDA, LoRA-GA and others subtract
# their initial product from the base, so that the saved factors do not belong to the base on disk.
_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Of the others, those that PEFT draws or computes from data: loading the adapter subtracts another
# product, or none, or fails, and so does folding what was loaded.
_NOT_AGAIN = re.compile(r"pissa_niter_.*|corda|lora_ga", re.IGNORECASE)

_MOST = 10**6  # for a rank or an alpha; published ones are below 10**4
_LONGEST = 200  # characters of a pattern; PEFT's are names of modules
_PATTERN = re.compile(r"(?:(?:\\[dDwW.-]|\[[\w.-]+\]|[\w.-])[*+?]?|[$^|)]|\((?:\?:)?)*", re.ASCII)
# Kinds that put trained vectors in front of a text and change no weight.
_PROMPTS = (
    *("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT"),
    *("CPT", "CARTRIDGE"),
)
# Kinds whose effect depends on the text or on other adapters; PEFT cannot fold them.
_UNFOLDABLE = ("LILY", "POLY", "SHADOW", "XLORA")


def _number(value: object, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value <= _MOST


def _may_be_matched(pattern: str) -> bool:
    """Say whether a pattern from a file is sure to be matched in bounded time.

    Names, alternatives and groups as PEFT writes them, with at most two repeats of a single
    character and four optional ones, and nothing repeated that holds a repeat.
    """
    if len(pattern) > _LONGEST or not _PATTERN.fullmatch(pattern):
        return False
    plain = re.sub(r"\\.|\[[^]]*\]|\(\?:", "x", pattern)
    return len(re.findall(r"[*+]", plain)) <= 2 and plain.count("?") <= 4


class Settings:
    """A LoRA adapter's configuration, checked.

    Args:
        folder: The adapter's folder.

    Attributes:
        values: The configuration as it is in the file.
        notes: What should be known of how it is read.

    Raises:
        UserError: It is malformed, or of a kind that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.values: dict[str, Any] = read_object(folder / CONFIG)
        self.notes: list[str] = []
        self._check()

    def refuse(self, what: str, unless: str = "") -> UserError:
        """Make the error on something that only PEFT can fold."""
        return UserError(
            f"{self._folder}: {what}, which is not supported; fold the adapter with PEFT's "
            f"merge_and_unload{unless} and give the model that results"
        )

    def _without_remedy(self, what: str) -> UserError:
        return UserError(
            f"{self._folder}: {what} and changes no weight for good, so that it cannot be merged; "
            "leave it out"
        )

    def _relative(self, start: object) -> UserError:
        """Make the error on an adapter that is relative to a base which its start changed."""
        about = f"{self._folder}: init_lora_weights={start!a} changes the base, and the adapter is "
        saving = "save it with PEFT's path_initial_model_for_weight_conversion"
        if _NOT_AGAIN.fullmatch(str(start)):
            return UserError(
                f"{about}relative to the changed one, which PEFT does not make again when it loads "
                f"the adapter; where it was trained, {saving}, or fold it there with "
                "merge_and_unload"
            )
        return UserError(
            f"{about}relative to the changed one; {saving}, or fold it with merge_and_unload and "
            "give the model that results"
        )

    def _check(self) -> None:  # one line for each kind
        settings = self.values
        if (kind := str(settings.get("peft_type"))) in _PROMPTS:
            raise self._without_remedy(f"an adapter of type {kind} puts vectors before a text")
        if kind in _UNFOLDABLE or settings.get("arrow_config"):
            raise self._without_remedy(f"an adapter of type {kind} acts on what a layer reads")
        if settings.get("alora_invocation_tokens"):
            raise self._without_remedy("an activated LoRA (alora_invocation_tokens) acts on tokens")
        if settings.get("layer_replication"):
            raise UserError(
                f"{self._folder}: layer_replication makes a model of more layers than its base, "
                "which has no place in a merge with it; leave the adapter out"
            )
        if kind == "BEFT":
            raise self.refuse("an adapter of biases (BEFT)", " (the base must have such biases)")
        if kind != "LORA":
            raise self.refuse(f"an adapter of type {settings.get('peft_type')!a}")
        if settings.get("use_dora"):
            raise self.refuse("a DoRA adapter (use_dora)")
        for field in sorted(settings.keys() - _HARMLESS):
            if settings[field]:
                raise self.refuse(f"{field!a} is set in {CONFIG}")
        start = settings.get("init_lora_weights", True)
        if not any(start is known or start == known for known in _STARTS):
            raise self._relative(start)
        if settings.get("bias", "none") not in ("none", "all", "lora_only"):
            raise self.refuse(f"bias={settings['bias']!a}")
        for field, pattern, least in (("r", "rank_pattern", 1), ("lora_alpha", "alpha_pattern", 0)):
            own = settings.get(pattern) or {}
            values = [settings.get(field), *(own.values() if isinstance(own, dict) else [None])]
            if not all(_number(value, least) for value in values):
                raise UserError(
                    f"{self._folder / CONFIG}: {field} or {pattern} is no number from {least} on, "
                    f"or one over {_MOST:,}; {REMADE}"
                )
            for key in own:
                if not _may_be_matched(key):
                    raise self.refuse(f"the {pattern} {reprlib.repr(key)}")

    def _matching(self, pattern: str, module: str) -> list[float]:
        """Return a module's values by the patterns that match its end, in the file's order."""
        found = []
        for key, value in (self.values.get(pattern) or {}).items():
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    found.append(value)
            except re.error:
                raise UserError(
                    f"{self._folder / CONFIG}: {pattern} holds {key!a}, no regular expression; "
                    f"{REMADE}"
                ) from None
        return found

    def scale(self, module: str, stored: int) -> float:
        """Return the factor of a module's update.

        The first pattern in the file counts, as it does for PEFT when it loads the adapter. PEFT
        sorts the patterns when it saves, so that another may have counted in the training.

        Args:
            module: The module's name in the base.
            stored: The rank that its factors have.

        Raises:
            UserError: The configuration says another rank.
        """
        ranks = self._matching("rank_pattern", module)
        rank = [*ranks, self.values["r"]][0]
        if stored != rank:
            remedy = REMADE
            if stored in ranks:
                remedy = "put the pattern that is meant first in rank_pattern: the first one counts"
            raise UserError(
                f"{self._folder}: the factors of {module} are of rank {stored}, not {rank}, as "
                f"{CONFIG} has it; {remedy}"
            )
        alphas = self._matching("alpha_pattern", module)
        if len(set(alphas)) > 1:
            self.notes.append(
                f"{self._folder}: several of alpha_pattern match {module}; the first in the file "
                f"counts ({alphas[0]}), as for PEFT, which sorts them when it saves"
            )
        alpha = [*alphas, self.values["lora_alpha"]][0]
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def token_rows(self, module: str) -> list[int]:
        """Return the tokens whose rows a module's token adapter holds, in their order.

        Raises:
            UserError: The configuration names none for it.
        """
        named = self.values.get("trainable_token_indices")
        if isinstance(named, dict):
            ends = (key for key in named if module == key or module.endswith(f".{key}"))
            named = named.get(next(ends, ""))
        if not isinstance(named, list) or not all(type(n) is int and n >= 0 for n in named):
            raise UserError(
                f"{self._folder / CONFIG}: trainable_token_indices lists no tokens for {module}; "
                f"{REMADE}"
            )
        return named
