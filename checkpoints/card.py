"""The model card of a merged model: what it was made from, how, and by which recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# How a reader compares the hashes of a card.
_BY_HAND = """\
`b3sum FILE` prints the digits behind `blake3:`. A model's hash is that of a text with a line
`FILE HASH` for each of its weight files.
"""


def public_name(path: Path | str) -> str:
    """Name a model folder for readers elsewhere, without what a path says about a machine.

    Returns:
        ``owner/model`` where the path is that of a Hugging Face cache, else the folder's name.
        Bytes that are no UTF-8 become question marks.
    """
    path = Path(os.path.abspath(path))
    name = path.name
    for part in (path, *path.parents):
        if part.name.startswith("models--"):
            name = part.name.removeprefix("models--").replace("--", "/")
            break
    return name.encode(errors="replace").decode()


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _fenced(text: str) -> str:
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _code(text: str) -> str:
    """Put text in a table's cell as it is, whatever it holds."""
    return f"`{_cell(text)}`" if "`" not in text else _cell(repr(text))


def _source(paper: str) -> str:
    """Link a paper that is given by its arXiv number."""
    number = re.fullmatch(r"(?:arXiv[: ])?(\d{4}\.\d{4,5})", paper.strip())
    return f"[arXiv {number[1]}](https://arxiv.org/abs/{number[1]})" if number else paper


def model_card(
    *,
    name: str,
    method: str,
    title: str,
    paper: str,
    base: str | None,
    experts: Mapping[str, str],
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> str:
    """Write the text of a merged model's README.md.

    Args:
        name: The merged model's name.
        method: The method's name in the recipe.
        title: The method's name in the literature.
        paper: Where it is described, such as ``2306.01708``.
        base: The base's name for readers, None for a merge without one; see `public_name`.
        experts: The experts' names for readers by their names in the recipe, in its order.
        recipe: The resolved recipe; plain numbers, texts, lists and mappings.
        inputs: Hashes of the inputs by name.
        outputs: Hashes of the weight files by name.
        notes: Sentences on what else should be known, such as the vocabulary policy.

    Returns:
        Markdown with the front matter that the Hugging Face Hub reads.
    """
    sources = [*([] if base is None else [base]), *experts.values()]
    front = {
        # One model given under two names is one source; a line break would end the front matter.
        "base_model": list(dict.fromkeys(" ".join(source.split()) for source in sources)),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge"],
    }
    lines = [
        f"---\n{_yaml(front)}---\n",
        f"# {' '.join(name.split())}\n",
        f"A merge of language models with {title} (`{method}`{paper and f'; {_source(paper)}'}).\n",
        "| role | model |\n|---|---|",
        *([] if base is None else [f"| base | {_code(base)} |"]),
        *(f"| {_cell(expert)} | {_code(model)} |" for expert, model in experts.items()),
        "\n## Recipe\n",
        _fenced(_yaml(dict(recipe))),
    ]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    for heading, hashes in (("Inputs", inputs), ("Weights", outputs)):
        lines += [f"## {heading}\n", "| | hash |\n|---|---|"]
        lines += [f"| {_code(key)} | `{digest}` |" for key, digest in hashes.items()] + [""]
    return "\n".join([*lines, _BY_HAND])
