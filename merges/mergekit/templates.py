"""The chat template that a mergekit configuration asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.errors import UserError
from merges.mergekit.settings import SOURCE

if TYPE_CHECKING:
    from checkpoints.reading import Model

_NAMED = ("alpaca", "chatml", "exaone", "llama3", "mistral")
_SHORTEST = 20  # characters; mergekit takes nothing shorter for a template


def check_template(setting: object) -> str | None:
    """Check what a configuration gives as `chat_template`.

    Raises:
        UserError: It is neither ``auto`` nor a template's text.
    """
    if setting is None or setting == "":
        return None
    if isinstance(setting, str) and setting in _NAMED:
        raise UserError(
            f"{SOURCE}: chat_template {setting} is a file of mergekit, "
            f"mergekit/_data/chat_templates/{setting}.jinja; give its text instead of its name"
        )
    if isinstance(setting, str) and (
        setting == "auto" or (len(setting) >= _SHORTEST and "{" in setting)
    ):
        return setting
    raise UserError(
        f"{SOURCE}: chat_template {setting!r} is no template; give its text, or auto for the most "
        "frequent one of the models"
    )


def chosen_template(
    setting: str | None, models: Mapping[str, Model]
) -> tuple[str | None, list[str]]:
    """Choose the chat template of a result as mergekit does.

    ``auto`` is the template that most models have, without blanks around it; of several, the
    first model's. mergekit counts them in the order of Python's hashes.

    Args:
        setting: ``auto`` or a template's text; None for the donor's.
        models: All models of the merge by name, the base among them.

    Returns:
        The template, None for the donor's; and notes.
    """
    if setting != "auto":
        return setting, []
    from checkpoints.chat import chat_of
    from checkpoints.companions import companions_of

    own = {
        # Of model+adapter mergekit asks the model alone.
        name: chat_of(companions_of(model.folders[:1])).templates.get("default", "").strip()
        for name, model in models.items()
    }
    counts = Counter(template for template in own.values() if template)
    if not counts:
        return None, [f"{SOURCE}: chat_template: no model has one, and the result has none"]
    template, most = counts.most_common(1)[0]
    holders = ", ".join(name for name, text in own.items() if text == template)
    notes = [f"{SOURCE}: chat_template: auto takes that of {holders}"]
    if list(counts.values()).count(most) > 1:
        notes.append(
            f"{SOURCE}: chat_template: {list(counts.values()).count(most)} templates are equally "
            "frequent; this is the first model's, mergekit's choice depends on PYTHONHASHSEED"
        )
    return template, notes
