"""The vocabulary of a model folder, read from its tokenizer's files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.layout import REMADE, read_object
from common.errors import UserError, reason_of
from common.files import sha256_file

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_OTHERS = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's vocabulary.

    Attributes:
        ids: Token ids by the tokens' text, those added later included.
        content: All of tokenizer.json.
        added: Tokens that are found in the text before it is cut, by their text, as tokenizer.json
            describes them.
    """

    ids: dict[str, int]
    content: dict[str, Any]
    added: dict[str, dict[str, Any]]

    def by_id(self) -> dict[int, str]:
        """Return the tokens by their ids; of two with one id, the one added later."""
        ordered = sorted(self.ids, key=lambda token: token in self.added)
        return {self.ids[token]: token for token in ordered}


def kind_of(content: dict[str, Any]) -> str:
    """Return how a tokenizer cuts words: BPE, Unigram, WordPiece or WordLevel."""
    model = content["model"]
    return model.get("type") or ("BPE" if "merges" in model else "WordLevel")


def merges_of(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the merges of a tokenizer's model of words as pairs; older files join them."""
    merges = model.get("merges") or []
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in merges]


def _converted(folder: Path) -> dict[str, Any] | None:
    """Have transformers make a tokenizer.json of an older form, where there is one."""
    if not any((folder / name).is_file() for name in _OTHERS):
        return None
    import json

    from checkpoints.loading import load_tokenizer

    try:
        return json.loads(load_tokenizer(folder).backend_tokenizer.to_str())
    except UserError:
        raise
    except Exception as error:  # whatever a missing library or a damaged file makes of it
        raise UserError(
            f"{folder}: no {TOKENIZER}, and transformers cannot make one ({reason_of(error)}); "
            "save the tokenizer in the fast form first"
        ) from None


def read_tokens(folder: Path) -> Tokens | None:
    """Read a model folder's vocabulary, only once while its files stay; None where it has none.

    Raises:
        UserError: The tokenizer's files are damaged or of an unknown form.
    """
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return _read_tokens(folder, tuple((n, s.st_ino, s.st_size, s.st_mtime_ns) for n, s in stats))


@functools.lru_cache(maxsize=4)  # a base and three experts; a large vocabulary takes 50 MB
def _read_tokens(folder: Path, stamp: tuple[tuple[str | int, ...], ...]) -> Tokens | None:
    path = folder / TOKENIZER
    content = read_object(path) if path.is_file() else _converted(folder)
    if content is None:
        return None
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):
            ids = {token: place for place, (token, _) in enumerate(vocabulary)}
        else:
            ids = dict(vocabulary)
        added = {item["content"]: item for item in content.get("added_tokens") or []}
        ids |= {token: item["id"] for token, item in added.items()}
        if not all(isinstance(t, str) and type(i) is int and i >= 0 for t, i in ids.items()):
            raise ValueError
        if not all(len(pair) == 2 for pair in merges_of(content["model"])):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not a tokenizer that is known here; {REMADE}") from None
    for token, item in _later(folder).items():
        if token not in ids:
            added[token] = item
            ids[token] = item["id"]
    return Tokens(ids, content, added)


def _later(folder: Path) -> dict[str, dict[str, Any]]:
    """Read tokens that only the files around tokenizer.json know, as transformers adds them."""
    found: dict[str, dict[str, Any]] = {}
    simple, settings = folder / "added_tokens.json", folder / CONFIG
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    if simple.is_file():
        for token, number in read_object(simple).items():
            found[token] = {"id": number, "content": token, **plain}
    if settings.is_file():
        decoder = read_object(settings).get("added_tokens_decoder") or {}
        try:
            found |= {v["content"]: {**plain, **v, "id": int(k)} for k, v in decoder.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{settings}: its added_tokens_decoder is malformed; {REMADE}"
            ) from None
    for token, item in found.items():
        if not isinstance(token, str) or type(item["id"]) is not int or item["id"] < 0:
            raise UserError(f"{folder}: token {token!a} was added with no proper id; {REMADE}")
    return found


def _plain(value: Any) -> Any:
    """Leave out what is unset: libraries of different age write more or fewer such fields."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None and v is not False}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def difference(base: Tokens, other: Tokens) -> str | None:
    """Say in a few words how a tokenizer reads text otherwise than the base's; None if it does not.

    Padding and truncation, which training leaves in the files, do not count.
    """
    if base.ids != other.ids:
        ours, theirs = base.by_id(), other.by_id()
        place = min(
            (n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)), default=None
        )
        count = f"{len(other.ids)} tokens against {len(base.ids)}"
        if place is None:  # all ids are read alike: only a second token of an id differs
            return f"{count}, several of one id"
        texts = (repr(found[place]) if place in found else "none" for found in (theirs, ours))
        return f"{count}, the first difference at id {place}: {' against '.join(texts)}"
    for section in _SECTIONS:
        if _plain(base.content.get(section)) != _plain(other.content.get(section)):
            return f"the same tokens, but another {section}"
    ours, theirs = base.content["model"], other.content["model"]
    if merges_of(ours) != merges_of(theirs):
        return "the same tokens, but other merges"
    rest = ({k: v for k, v in m.items() if k not in ("vocab", "merges")} for m in (ours, theirs))
    first, second = (_plain(model) for model in rest)
    return None if first == second else "the same tokens, but another model of words"


def compare_folders(base: Path, other: Path) -> str | None:
    """Compare the tokenizers of two folders as `difference`; None also where a folder has none."""
    forms = [
        {name: folder / name for name in (TOKENIZER, *_OTHERS) if (folder / name).is_file()}
        for folder in (base, other)
    ]
    ours, theirs = ({TOKENIZER: f[TOKENIZER]} if TOKENIZER in f else f for f in forms)
    if not (ours and theirs):
        return None
    alike = ours.keys() == theirs.keys()
    same = alike and all(sha256_file(path) == sha256_file(theirs[n]) for n, path in ours.items())
    if same and _later(base) == _later(other):
        return None
    first, second = read_tokens(base), read_tokens(other)
    if first is None or second is None or (not alike and first.ids == second.ids):
        return None  # two forms of one tokenizer differ in how they spell the rest
    return difference(first, second)
