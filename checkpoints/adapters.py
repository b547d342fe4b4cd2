"""PEFT LoRA adapters as experts: folded into their base while it is read."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.adapter_names import OTHER_HEADS, is_turned, name_in, separate_head
from checkpoints.adapter_settings import CONFIG, Settings
from checkpoints.architecture import says_quantised
from checkpoints.dtypes import torch_type
from checkpoints.layout import REMADE, weight_file
from checkpoints.names import (
    has_row_per_token,
    is_embedding,
    is_head,
    text_part,
    with_vocabulary_size,
)
from checkpoints.reading import Checkpoint, Model, open_weights
from checkpoints.stored import TIE
from common.errors import UserError
from common.hashes import hash_files, hash_text
from common.manifest import check_recorded

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
_INDEX = "adapter_model.safetensors.index.json"
_PICKLE = "adapter_model.bin"
_PICKLE_INDEX = "adapter_model.bin.index.json"
PREFIX = "base_model.model."
_PARTNER = {"A.weight": "B.weight", "embedding_A": "embedding_B"}
_WHOLE = {b: a for a, b in _PARTNER.items()}
_TOKENS = ".token_adapter.trainable_tokens_delta"  # rows themselves, in spite of their name


@dataclass
class _Update:
    """What an adapter adds to one parameter: scale * left @ right, or scale * left to a vector.

    `left` and `right` are names in the adapter's file; `turned` says that they are stored the
    other way round, as [rank, rows] and [columns, rank].
    """

    scale: float
    left: str
    right: str = ""
    turned: bool = False


def is_adapter(path: Path | str) -> bool:
    """Return whether a folder holds an adapter rather than a model."""
    path = Path(path)
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def open_model(
    path: Path | str, base: Model | None = None, *, allow_pickle: bool = False
) -> Checkpoint | Adapter:
    """Open a model folder, or an adapter's folder to be folded into a base.

    Raises:
        UserError: As for `Checkpoint` and `Adapter`; or an adapter is given without a base.
    """
    if not is_adapter(path):
        return Checkpoint(path, allow_pickle=allow_pickle)
    if base is None:
        raise UserError(f"{path}: an adapter needs its base; name the model it was trained on")
    return Adapter(path, base, allow_pickle=allow_pickle)


class Adapter(Model):
    """A PEFT LoRA adapter over its base, read as the model that folding makes of the two.

    W = W_0 + s B A with s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (rslora), in
    float32 (float64 where the base is), never rounded in between. Only the rows asked for are
    made. Fully saved modules, trained biases and rows of trained tokens replace the base's. A tied
    base of which embedding or head were trained alone is untied, as PEFT does.

    Args:
        path: The folder, with adapter_config.json and adapter_model.safetensors.
        base: The model that the adapter was trained on.
        allow_pickle: Whether adapter_model.bin is accepted; see `Checkpoint`.

    Raises:
        UserError: The folder is damaged, the adapter does not fit the base, or it is of a kind
            that is not supported: DoRA and other variants, other PEFT types, a quantised base.

    Source:
        Hu et al. 2021, LoRA (arXiv 2106.09685), section 4.1; Kalajdzievski 2023, rsLoRA
        (arXiv 2312.03732), theorem 3.2.
    """

    def __init__(self, path: Path | str, base: Model, *, allow_pickle: bool = False) -> None:
        self.path = Path(path)
        self.config = base.config
        self._base = base
        self._names = set(base.names())
        check_recorded(self.path)
        self._settings = Settings(self.path)
        if says_quantised(base.config):
            raise UserError(f"{base.path}: a quantised base; name the one in full precision")
        safe = weight_file(self.path, WEIGHTS, _INDEX)
        pickled = None if safe else weight_file(self.path, _PICKLE, _PICKLE_INDEX)
        missing = f"{self.path}: no {WEIGHTS}"
        self._weights = open_weights(safe, pickled, missing, allow_pickle)
        self._updates: dict[str, list[_Update]] = {}
        self._replaced: dict[str, str] = {}  # names in the adapter's file
        self._rows: dict[str, tuple[str, list[int]]] = {}  # the name there, and its tokens
        self._tied = self._tied_embedding()  # None where the base has a head
        self._head: str | None = None  # a head that the base lacks
        self._settle_head()
        # What is replaced comes first: an embedding of more rows may be changed further.
        for key in sorted(self._weights.stored, key=lambda key: (".lora_" in key, key)):
            self._take(key)
        if not (self._updates or self._replaced or self._rows):
            raise UserError(f"{path}: the adapter's file holds no weights; {REMADE}")
        self._settle_tied_updates()
        self._check_rows()
        self.notes = tuple(self._settings.notes)
        self._factors = functools.lru_cache(maxsize=8)(self._read_factors)

    def _tied_embedding(self) -> str | None:
        if any(map(is_head, self._names)):
            return None
        return next((name for name in sorted(self._names) if is_embedding(name)), None)

    def _saved(self) -> dict[str, str]:
        """Return the names of modules that are saved whole, and where the adapter's file has them.

        PEFT may write such a module three times: by its name, and as two of its parts.
        """
        found = {}
        for key in self._weights.stored:
            inner = key.removeprefix(PREFIX)
            parts = (".lora_", ".base_layer.", ".token_adapter.", ".original_module.")
            if not any(part in inner for part in parts):
                name = name_in(self._names, inner.replace(".modules_to_save.", "."))
                if ".modules_to_save." not in inner or name not in found:
                    found[name] = key
        return found

    def _settle_head(self) -> None:
        """Find out whether a tied base gets a head that differs from its embedding.

        Where one of the two was trained and saved whole, PEFT unties them.
        """
        if self._tied is None:
            return
        saved = self._saved()
        heads = [name for name in saved if is_head(name) and name.endswith(".weight")]
        if not heads and self._tied not in saved:
            return
        if heads and self._tied in saved and self._are_equal(saved[heads[0]], saved[self._tied]):
            return  # written twice, and still one
        self._head = heads[0] if heads else separate_head(self._tied)
        self._names.add(self._head)
        text = text_part(self.config)
        nested = {"text_config": {**text, TIE: False}} if text else {}
        self.config = {**self.config, TIE: False, **nested}
        self._settings.notes.append(
            f"{self.path}: {self._head} and {self._tied} differ after the training, so that this "
            f"model is untied ({TIE} false), as PEFT makes it"
        )

    def _are_equal(self, one: str, other: str) -> bool:
        stored = self._weights.stored
        if stored[one].shape != stored[other].shape:
            return False
        count = math.prod(stored[one].shape)
        pair = [self._weights.read(key, 0, count) for key in (one, other)]
        return bool((pair[0] == pair[1]).all())

    def _settle_tied_updates(self) -> None:
        """Say what becomes of updates to a matrix that is embedding and head at once."""
        if self._tied is None or self._head is not None or self._tied not in self._updates:
            return
        updates = self._updates[self._tied]
        if len(updates) > 1 and self._settings.values.get("ensure_weight_tying"):
            # One update under two names, which PEFT 0.21 adds twice when it merges.
            del updates[1:]
            self._settings.notes.append(
                f"{self.path}: ensure_weight_tying: the update of {self._tied} is added once, as "
                "in the training; PEFT's merge_and_unload (0.21) adds it twice"
            )
            return
        self._settings.notes.append(
            f"{self.path}: the update of {self._tied} also changes the output head, which is tied "
            "to it, as in PEFT's merge_and_unload; in the training it changed one of the two"
        )

    def _place(self, name: str) -> str:
        if self._tied is not None and self._head is None and is_head(name):
            return self._tied if name.endswith(".weight") else name
        return name_in(self._names, name)

    def _origin(self, name: str) -> str:
        """Return the base's parameter that one starts from: an untied head from the embedding."""
        return self._tied if name == self._head and self._tied is not None else name

    def _take(self, key: str) -> None:
        """File one entry of the adapter's weights under the parameter that it changes."""
        if not key.startswith(PREFIX):
            raise self._settings.refuse(f"its tensor {key}")
        inner = key.removeprefix(PREFIX)
        module, found, what = inner.partition(".lora_")
        if inner.endswith(_TOKENS):
            self._take_rows(inner.removesuffix(_TOKENS), key)
        elif not found:
            for part in (".modules_to_save.", ".original_module."):
                if part in inner and key.replace(part, ".") in self._weights.stored:
                    return
            inner = inner.replace(".token_adapter.", ".").replace(".base_layer.", ".")
            self._replace(self._place(inner), key)
        elif what in ("A.weight", "embedding_A"):
            self._take_factors(module, key, key.replace(f".lora_{what}", f".lora_{_PARTNER[what]}"))
        elif what == "B.bias":
            self._take_bias(module, key)
        elif what in _PARTNER.values():
            if key.replace(f".lora_{what}", f".lora_{_WHOLE[what]}") not in self._weights.stored:
                raise UserError(f"{self.path}: {key} has no other half; {REMADE}")
        else:
            raise self._settings.refuse(f"its tensor {key}")

    def _take_bias(self, module: str, key: str) -> None:
        name = name_in(self._names, f"{module}.bias")
        if name not in self._names:
            raise UserError(
                f"{self.path}: lora_bias trains {name}, and the base ({self._base.path}) has no "
                "such bias, so that not even PEFT can fold it; train it again without lora_bias, "
                "or leave it out"
            )
        self._check_shape(name, self._weights.stored[key].shape, key)
        a = f"{PREFIX}{module}.lora_A.weight"
        rank = self._weights.stored[a].shape[0] if a in self._weights.stored else 0
        self._updates[name] = [_Update(self._settings.scale(module, rank), key)]

    def _take_rows(self, module: str, key: str) -> None:
        name, tokens = self._place(f"{module}.weight"), self._settings.token_rows(module)
        if name not in self._names:
            self._check_shape(name, (), key)
        rows, *rest = self.shape(name)
        shape = self._weights.stored[key].shape
        if shape != (len(tokens), *rest) or max(tokens, default=0) >= rows:
            raise UserError(
                f"{self.path}: {key} of shape {list(shape)} does not fit {len(tokens)} tokens of "
                f"{name}, {[rows, *rest]} in the base ({self._base.path}); name the base that the "
                "adapter was trained on"
            )
        self._rows[name] = (key, tokens)

    def _replace(self, name: str, key: str) -> None:
        shape = self._weights.stored[key].shape
        held = self._base.shape(self._origin(name)) if name in self._names else None
        if held and has_row_per_token(name) and shape[1:] == held[1:]:
            # The adapter was trained with tokens added: it has its own embedding and head.
            if shape[0] != held[0]:
                self.config = with_vocabulary_size(self.config, shape[0])
        else:
            self._check_shape(name, shape, key)
        self._replaced[name] = key

    def _take_factors(self, module: str, a: str, b: str) -> None:
        stored = self._weights.stored
        if b not in stored:
            raise UserError(f"{self.path}: {a} has no other half; {REMADE}")
        if len(stored[a].shape) != 2 or len(stored[b].shape) != 2:
            raise self._settings.refuse(f"{a} is no matrix")
        if stored[a].shape[0] != stored[b].shape[1]:
            raise UserError(f"{self.path}: {a} and its other half are of unlike ranks; {REMADE}")
        scale = self._settings.scale(module, stored[a].shape[0])
        shape = (stored[b].shape[0], stored[a].shape[1])
        turned = is_turned(self._base, self._settings, module, a, shape)
        name = self._place(f"{module}.weight")
        self._check_shape(name, shape[::-1] if turned else shape, a)
        left, right = (a, b) if turned else (b, a)
        self._updates.setdefault(name, []).append(_Update(scale, left, right, turned))

    def _check_shape(self, name: str, shape: tuple[int, ...], key: str) -> None:
        if name not in self._names:
            if name.rpartition(".")[0].rpartition(".")[2] in OTHER_HEADS:
                raise UserError(
                    f"{self.path}: {key} is the head of another task (task_type "
                    f"{self._settings.values.get('task_type')!a}), for which a merge of language "
                    "models has no place; leave the adapter out"
                )
            if ".experts." in name and any(".experts." in other for other in self._names):
                raise self._settings.refuse(f"its tensor {key}, a stack of experts")
            raise UserError(
                f"{self.path}: {key} changes {name}, which the base ({self._base.path}) lacks; "
                "name the base that the adapter was trained on"
            )
        if self.shape(name) != shape:
            raise UserError(
                f"{self.path}: {key} is for a parameter of shape {list(shape)}, the base's "
                f"({self._base.path}) has {list(self.shape(name))}; "
                "name the base that the adapter was trained on"
            )

    def _check_rows(self) -> None:
        rows = self.rows_per_token()
        if len(set(rows.values())) > 1:
            raise UserError(
                f"{self.path}: with this base ({self._base.path}) embedding and head have unlike "
                f"rows {sorted(rows.values())}; name the base that the adapter was trained on"
            )

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted: the base's, and a head that it lacks."""
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape: the base's, but where an embedding was given more rows."""
        replaced = self._replaced.get(name)
        if replaced:
            return self._weights.stored[replaced].shape
        return self._base.shape(self._origin(name))

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read: F32 or F64 where the adapter changes it."""
        replaced = self._replaced.get(name)
        stored = (
            self._weights.stored[replaced].dtype
            if replaced
            else self._base.dtype(self._origin(name))
        )
        if name in self._updates or name in self._rows:
            return "F64" if stored == "F64" else "F32"
        return stored

    def stored(self, name: str) -> str:
        """Return the type in which a parameter of a result is stored: the base's."""
        return self._base.stored(self._origin(name))

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if not (name in self._updates or name in self._rows):
            return self._read_origin(name, start, stop)
        dtype = torch_type(self.dtype(name))
        if len(self.shape(name)) == 1:
            values = self._read_origin(name, start, stop).to(dtype)
            for update in self._updates[name]:
                vector = self._weights.read(update.left, start, stop).to(dtype)
                values.add_(vector, alpha=update.scale)
            return values
        columns = self.shape(name)[1]
        first, last = start // columns, -(-stop // columns)
        rows = self._read_origin(name, first * columns, last * columns).to(dtype)
        rows = rows.reshape(-1, columns)
        for number, update in enumerate(self._updates.get(name, ())):
            left, right = self._factors(name, number)
            rows = rows.addmm_(left[first:last], right, alpha=update.scale)
        key, tokens = self._rows.get(name, ("", []))
        for place, token in enumerate(tokens):
            if first <= token < last:
                own = self._weights.read(key, place * columns, (place + 1) * columns)
                rows[token - first] = own
        return rows.flatten()[start - first * columns : stop - first * columns]

    def _read_origin(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self._replaced:
            return self._weights.read(self._replaced[name], start, stop)
        return self._base.read(self._origin(name), start, stop)

    def _read_factors(self, name: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        update, dtype = self._updates[name][number], torch_type(self.dtype(name))
        pair = []
        for key in (update.left, update.right):
            stored = self._weights.stored[key]
            values = self._weights.read(key, 0, math.prod(stored.shape)).to(dtype)
            matrix = values.reshape(stored.shape)
            pair.append(matrix.T.contiguous() if update.turned else matrix)
        return pair[0], pair[1]

    def ahead(self, name: str) -> None:
        """Ask the system to fetch the base's parameter from the disk."""
        if name not in self._replaced:
            self._base.ahead(self._origin(name))

    @property
    def folders(self) -> list[Path]:
        """The base's and the adapter's, which may have a tokenizer."""
        return [*self._base.folders, self.path]

    @property
    def shards(self) -> list[Path]:
        """The base's weight files and the adapter's."""
        return [*self._base.shards, *sorted(set(self._weights.files.values()))]

    def fingerprint_of(self, kind: str) -> str:
        """Hash the base's fingerprint and the adapter's configuration and weights."""
        files = [self.path / CONFIG, *sorted(set(self._weights.files.values()))]
        return hash_text(f"{self._base.fingerprint_of(kind)} {hash_files(files, kind)}", kind)
