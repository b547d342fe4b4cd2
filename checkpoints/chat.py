"""How a model is spoken to and when it stops: chat templates, end tokens, generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.companions import Companions
from checkpoints.layout import read_object
from common.errors import UserError
from common.files import write_json, write_text

_IDLE = ("transformers_version", "_from_model_config")  # in every generation_config.json


@dataclass(frozen=True)
class Chat:
    """What transformers reads about turns and ends from a model's files.

    Attributes:
        templates: Chat templates by their names, ``default`` for the only one.
        end: The tokenizer's end token, None where it has none.
        generation: generation_config.json, None where there is none.
    """

    templates: Mapping[str, str]
    end: str | None
    generation: Mapping[str, Any] | None


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _templates(files: Mapping[str, Path], about: Mapping[str, Any]) -> dict[str, str]:
    """Read the templates as transformers does: separate files count before the others."""
    found = {
        Path(name).stem if "/" in name else "default": _text(path)
        for name, path in files.items()
        if name == "chat_template.jinja" or name.startswith("additional_chat_templates/")
    }
    held = about.get("chat_template")
    if not found and held is None and "chat_template.json" in files:
        held = read_object(files["chat_template.json"]).get("chat_template")
    if found or not held:
        return found
    if isinstance(held, list):  # of {name, template}
        held = {item.get("name"): item.get("template") for item in held if isinstance(item, dict)}
    named = held if isinstance(held, dict) else {"default": held}
    return {str(name): str(text) for name, text in named.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as UTF-8; fetch the file again") from None


def chat_of(companions: Companions) -> Chat:
    """Read what a result with these files would do in a chat.

    Raises:
        UserError: A file is damaged.
    """
    files = companions.files
    read = {
        name: read_object(files[f"{name}.json"]) if f"{name}.json" in files else {}
        for name in ("tokenizer_config", "special_tokens_map")
    }
    about = read["tokenizer_config"]
    end = _token(about.get("eos_token"))
    if "added_tokens_decoder" not in about:  # only then transformers reads the other file
        end = _token(read["special_tokens_map"].get("eos_token")) or end
    generation = files.get("generation_config.json")
    settings = None if generation is None else read_object(generation)
    return Chat(_templates(files, about), end, settings)


def _generation(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str | None:
    """Say in which settings one generation_config.json differs from the other."""
    one, other = theirs or {}, ours or {}
    keys = sorted(key for key in one.keys() | other.keys() if key not in _IDLE)
    differing = [key for key in keys if one.get(key) != other.get(key)]
    return ", ".join(f"{k} {one.get(k)!a} against {other.get(k)!a}" for k in differing[:4]) or None


def differences(expert: Chat, donor: Chat) -> list[str]:
    """Say what of an expert's chat a result with another donor does not have, a clause each."""
    found = []
    if expert.templates != donor.templates:
        if not donor.templates:
            found.append("has a chat template and the donor none")
        elif not expert.templates:
            found.append("has no chat template and the donor one")
        else:
            found.append("has another chat template")
    if expert.end != donor.end:
        found.append(f"ends with {expert.end!r} and the donor with {donor.end!r}")
    if about := _generation(expert.generation, donor.generation):
        found.append(f"has another generation_config.json ({about})")
    return found


def write_template(folder: Path, template: str) -> None:
    """Make a template the only one of a result's folder, which is staged by the caller."""
    for path in [*folder.glob("chat_template.*"), *folder.glob("additional_chat_templates/*")]:
        path.unlink()
    if (inner := folder / "additional_chat_templates").is_dir():
        inner.rmdir()
    about = folder / "tokenizer_config.json"
    if about.is_file() and "chat_template" in (content := read_object(about)):
        content.pop("chat_template")
        write_json(about, content)
    write_text(folder / "chat_template.jinja", template)
