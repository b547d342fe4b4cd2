"""Files next to the weights: what a result takes from its donor's folder, and what stays."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.layout import read_object
from common.errors import UserError
from common.files import read_json, write_json

LARGEST = 1 << 28  # bytes; a tokenizer of 260,000 tokens has 4 * 10**7
_CODE_LARGEST = 1 << 22  # bytes of a module that is searched for what it imports

# What a loader may read, by name; anything else is taken if a configuration or the code names it.
_TOKENIZER = re.compile(
    r"(?!.*\.(py|md|sh|gz|zip|tar)$)(tokenizer.*|.*(vocab|merges|special_tokens|added_tokens|normalizer|emoji|tekken).*\.(json|txt)"
    r"|chat_template\.\w+|.*\.(jinja|tiktoken|model|spm|bpe|codes|voc|vocab)|.*spiece\.\w+)",
    re.IGNORECASE,
)
_TEMPLATES = "additional_chat_templates"
_FOLDERS = {_TEMPLATES: ".jinja", "custom_generate": ".py"}
# Only these carry no vocabulary: a folder with nothing else has no tokenizer.
_ABOUT_TOKENS = re.compile(
    r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.\w+"
    rf"|{_TEMPLATES}/.*|.*\.py"
)
_TEMPLATE = re.compile(rf"chat_template\.\w+|{_TEMPLATES}/.*")
# Why the others stay behind; the first kind that matches a name counts.
_LEFT = (
    ("the weights", r"(model|pytorch_model)([.-].*)?\.(safetensors|bin)(\.index\.json)?"),
    ("an adapter's", r"adapter_.*"),
    (
        "of a training or a run",
        r"(trainer|training|optimizer|scheduler|rng|scaler|ds_|deepspeed|zero_|global_step|events"
        r"|wandb|train|eval|test|dev|all|dataset|metrics|scores|latest|manifest|cost|mergekit)"
        r"([_.-].*)?\.(json|pth?|bin|txt|yaml|yml|csv|log|md)|events\..*|.*\.(log|csv|jsonl|parquet)",
    ),
    (
        "other weights",
        r".*\.(safetensors|bin|pth?|ckpt|gguf|ggml|h5|msgpack|ot|onnx|tflite|pkl|np[yz]|distcp)"
        r"(\.index(\..*)?\.json)?",
    ),
    ("about the donor", r".*\.(md|pdf|png|jpe?g|svg|gif|ipynb|html)|LICEN[SC]E.*|NOTICE.*"),
    ("another format's", r"params\.json|quantize_config\.json"),
    ("code that nothing here imports", r".*\.(py|sh|cu|cpp|c|h)"),
)
_WEIGHTS = ("the weights", "other weights")  # not taken, whatever names them
_IMPORT = re.compile(r"^[ \t]*(?:from|import)[ \t]+\.([\w.]+)", re.MULTILINE)
_FROM_HERE = re.compile(
    r"^[ \t]*from[ \t]+\.[ \t]+import[ \t]+(\([\w\s,]*|[\w, \t]*)", re.MULTILINE
)
_TEXT = re.compile(r"""["']([\w.-]{3,100})["']""")


@dataclass(frozen=True)
class Companions:
    """What a result takes from the folders that its donor consists of.

    Attributes:
        files: The file to copy by its name in the result, such as ``config.json``.
        left: Why a file is not copied, by its path.
        tokenizer: The folder that the tokenizer is taken from whole; None where there is none.
    """

    files: Mapping[str, Path]
    left: Mapping[Path, str] = field(default_factory=dict)
    tokenizer: Path | None = None

    def copy(self, folder: Path, dtype: str | None = None) -> None:
        """Copy the files to a result's folder; nothing in them is run.

        Args:
            folder: The result's folder, staged by the caller.
            dtype: The type that the weights have now, for the configuration; None for the donor's.
        """
        for name, path in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
        if dtype is not None:
            config = read_json(folder / "config.json")
            config.pop("torch_dtype", None)  # the key's older name
            write_json(folder / "config.json", {**config, "dtype": dtype})

    def note(self) -> str:
        """Say in a line what is taken from which folder, and what is left out and why."""
        taken: dict[Path, list[str]] = {}
        for name, path in sorted(self.files.items()):
            home = path.parents[name.count("/")]
            taken.setdefault(home, []).append(name)
        parts = [f"{', '.join(names)} of {home}" for home, names in taken.items()]
        text = f"next to the weights the result has {' and '.join(parts) or 'no file'}"
        if any(name.endswith(".py") for name in self.files):
            text += " (custom code is copied and never run here)"
        why: dict[str, list[str]] = {}
        for path, reason in sorted(self.left.items()):
            if reason != "the weights":
                why.setdefault(reason, []).append(path.name)
        if why:
            left = (f"{_some(names)} ({reason})" for reason, names in sorted(why.items()))
            text += f"; left out: {', '.join(left)}"
        return text


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _ends_inside(donor: Path, path: Path) -> bool:
    """Say whether a file, if it is a link, ends in its folder or in the hub cache's `blobs`."""
    home = donor.resolve()
    hub = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    within = home.parent.parent / "blobs" if hub else home
    end = path.resolve()
    return end.is_relative_to(home) or end.is_relative_to(within)


def _texts_in(value: Any) -> Iterator[tuple[str, str]]:
    """Go through all texts of a JSON value, each with the key that it is under."""
    waiting = [("", value)]  # no recursion: a file may be nested deeply
    while waiting:
        key, item = waiting.pop()
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, list):
            waiting += [(key, part) for part in item]
        elif isinstance(item, dict):
            # A module is named under auto_map by the classes that it holds.
            waiting += [(key if key == "auto_map" else k, part) for k, part in item.items()]


def _module(folder: Path, dotted: str) -> list[str]:
    """Return the files that a module may be in, by their names in the folder."""
    path = dotted.strip(".").replace(".", "/")
    candidates = (f"{path}.py", f"{path}/__init__.py", f"{dotted.strip('.')}.py")
    return [name for name in candidates if path and (folder / name).is_file()]


def _named(folder: Path, configs: Sequence[str]) -> set[str]:
    """Return the files that configurations name: their code, what this imports, and data files."""
    waiting: list[str] = []
    found: set[str] = set()
    for config in configs:
        for key, text in _texts_in(read_object(folder / config)):
            if key == "auto_map":  # repo--module.Class is code of another repository
                waiting += [] if "--" in text else _module(folder, text.rpartition(".")[0])
            elif re.fullmatch(r"[\w.-]{3,100}", text) and (folder / text).is_file():
                found.add(text)
    waiting += [f"custom_generate/{p.name}" for p in folder.glob("custom_generate/*.py")]
    while waiting:
        name = waiting.pop()
        if name in found or (folder / name).stat().st_size > _CODE_LARGEST:
            continue
        found.add(name)
        if not _ends_inside(folder, folder / name):
            continue  # refused by whoever copies it; nothing elsewhere is read
        code = (folder / name).read_text(encoding="utf-8", errors="replace")
        modules = _IMPORT.findall(code)
        for names in _FROM_HERE.findall(code):
            modules += [part.split()[0] for part in names.strip("(").split(",") if part.strip()]
        package = name.rpartition("/")[0].replace("/", ".")
        for module in modules:
            waiting += _module(folder, f"{package}.{module}")
        found |= {text for text in _TEXT.findall(code) if (folder / text).is_file()}
    return found


def _left(name: str) -> str | None:
    return next((why for why, kind in _LEFT if re.fullmatch(kind, name, re.IGNORECASE)), None)


def _look(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """Sort a folder's files into those that a loader reads and the others, with the reason."""
    # Hidden files are about the folder itself.
    held = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in held if path.is_file()]
    for inner, ending in _FOLDERS.items():
        paths += sorted(path for path in folder.glob(f"{inner}/*{ending}") if path.is_file())
    configs = [
        path.name
        for path in paths
        if path.name.endswith("config.json")
        and _left(path.name) is None
        and path.stat().st_size <= _CODE_LARGEST
        and _ends_inside(folder, path)
    ]
    named = _named(folder, configs)
    paths += [folder / name for name in sorted(named) if folder / name not in paths]
    taken: dict[str, Path] = {}
    folders = {path for path in held if path.is_dir()} - {folder / name for name in _FOLDERS}
    folders -= {path.parent for path in paths}
    left = dict.fromkeys(folders, "a folder of no kind that a loader reads")
    for path in paths:
        name = str(path.relative_to(folder))
        why = _left(path.name)
        known = name in named or "/" in name or bool(_TOKENIZER.fullmatch(name))
        if why in _WEIGHTS or (why and not known):
            left[path] = why
        elif not (known or name.endswith(".json")):
            left[path] = "of no kind that a loader reads"
        elif path.stat().st_size > LARGEST:
            left[path] = f"over {LARGEST >> 20} MiB"
        elif _ends_inside(folder, path):
            taken[name] = path
        elif known or name.endswith("config.json"):
            # What the link names would be published with the merged model.
            raise UserError(
                f"{path}: a link that ends outside this folder; put a copy of the file there"
            )
        else:
            left[path] = "a link that ends outside its folder"
    return taken, left


def _about_tokens(folder: Path, files: Mapping[str, Path]) -> set[str]:
    """Return those of a folder's files that make its tokenizer."""
    own = {name for name in files if _TOKENIZER.fullmatch(name) or name.startswith(_TEMPLATES)}
    if "tokenizer_config.json" in files:
        named = _named(folder, ["tokenizer_config.json"])
        own |= {name for name in named & files.keys() if not name.startswith("custom_generate")}
    return own


def companions_of(donors: Sequence[Path]) -> Companions:
    """Choose the files that a result takes next to its weights.

    A model's folder gives all that a loader reads: configurations, the code that they name and
    what this imports, the tokenizer and its templates. An adapter's folder behind it gives its
    tokenizer, complete or not at all, and its generation configuration.

    Args:
        donors: The model's folder, and those of adapters on it.

    Raises:
        UserError: A file that is needed is a link to another place, or damaged.
    """
    files, left = _look(donors[0])
    about = _about_tokens(donors[0], files)
    tokenizer = donors[0] if _has_words(about) else None
    for donor in donors[1:]:
        taken, others = _look(donor)
        left |= others
        own = _about_tokens(donor, taken)
        if _has_words(own):
            stale, tokenizer = about, donor
        elif own and all(map(_TEMPLATE.fullmatch, own)):  # templates replace templates alone
            stale = {name for name in about if _TEMPLATE.fullmatch(name)}
        else:
            own, stale = set(), set()
        for name in stale:
            if not name.endswith(".py"):  # code that the model may need as well
                left[files.pop(name)] = f"{donor} has its own"
        about = (about & files.keys()) | own
        own |= {"generation_config.json"} & taken.keys()
        files |= {name: taken[name] for name in own}
        left |= {
            taken[name]: "an adapter's folder gives a complete tokenizer or none"
            for name in taken.keys() - own
        }
    return Companions(files, left, tokenizer)


def _has_words(names: Iterable[str]) -> bool:
    """Say whether a tokenizer's files hold a vocabulary, and not only what is around one."""
    return not all(map(_ABOUT_TOKENS.fullmatch, names))


def copy_companions(donors: Sequence[Path], folder: Path, dtype: str | None = None) -> None:
    """Copy what a result takes next to its weights; see `companions_of` and `Companions.copy`."""
    companions_of(donors).copy(folder, dtype)


def copy_tokenizer(donor: Path, folder: Path) -> None:
    """Copy the files of a folder that make its tokenizer."""
    taken, _ = _look(donor)
    Companions({name: taken[name] for name in _about_tokens(donor, taken)}).copy(folder)
