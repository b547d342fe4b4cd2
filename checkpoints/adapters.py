"""PEFT LoRA adapters as experts: folded into their base while it is read."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.dtypes import torch_type
from checkpoints.layout import REMADE, read_object
from checkpoints.names import has_row_per_token, is_embedding, is_head, with_vocabulary_size
from checkpoints.reading import Checkpoint, Model, hash_of_files, open_weights
from common.errors import UserError
from common.manifest import check_recorded

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
# Fields of a LoRA configuration that leave W + scale B A true, whatever they hold. Any other field
# must be empty: it belongs to a variant that changes the formula.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_dropout", "megatron_core", "modules_to_save", "peft_type"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    *("task_type", "bias", "lora_bias", "fan_in_fan_out", "init_lora_weights", "use_rslora"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern"),
}
# Initial values that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and others subtract their
# initial product from the base, so that the saved factors do not belong to the base on disk.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")

_MOST = 10**6  # for a rank or an alpha; published ones are below 10**4
_LONGEST = 200  # characters of a pattern; PEFT's are names of modules
_PATTERN = re.compile(r"(?:(?:\\[dDwW.-]|\[[\w.-]+\]|[\w.-])[*+?]?|[$^|)]|\((?:\?:)?)*", re.ASCII)

_PARTNER = {"A.weight": "B.weight", "embedding_A": "embedding_B"}
_WHOLE = {b: a for a, b in _PARTNER.items()}
# Layers that keep their weight as [in, out]; PEFT finds them by their class, whatever the
# configuration says.
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TURNED_LAYERS = ("c_attn", "q_attn", "c_proj", "c_fc")


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


class Adapter(Model):
    """A PEFT LoRA adapter over its base, read as the model that folding makes of the two.

    W = W_0 + s B A with s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (rslora), in
    float32 (float64 where the base is), never rounded in between. Only the rows asked for are
    made. Fully saved modules and trained biases replace the base's.

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
        self._names = frozenset(base.names())
        check_recorded(self.path)
        self._settings = read_object(self.path / CONFIG)
        self._check_settings()
        if base.config.get("quantization_config"):
            raise UserError(f"{base.path}: a quantised base; name the one in full precision")
        safe, pickled = (
            file if file.is_file() else None for file in (self.path / _WEIGHTS, self.path / _PICKLE)
        )
        missing = f"{self.path}: no {_WEIGHTS}"
        self._weights = open_weights(safe, pickled, missing, allow_pickle)
        self._updates: dict[str, _Update] = {}
        self._replaced: dict[str, str] = {}  # names in the adapter's file
        # What is replaced comes first: an embedding of more rows may be changed further.
        for key in sorted(self._weights.stored, key=lambda key: (".lora_" in key, key)):
            self._take(key)
        if not self._updates and not self._replaced:
            raise UserError(f"{path}: the adapter's file holds no weights; {REMADE}")
        for name in self._updates.keys() | self._replaced.keys():
            self._check_tying(name)
        self._check_rows()
        self._factors = functools.lru_cache(maxsize=8)(self._read_factors)

    def _refuse(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: {what}, which is not supported; fold the adapter with PEFT's "
            "merge_and_unload and give the model that results"
        )

    def _check_settings(self) -> None:
        settings = self._settings
        if settings.get("peft_type") != "LORA":
            raise self._refuse(f"an adapter of type {settings.get('peft_type')!a}")
        if settings.get("use_dora"):
            raise self._refuse("a DoRA adapter (use_dora)")
        for field in sorted(settings.keys() - _HARMLESS):
            if settings[field]:
                raise self._refuse(f"{field!a} is set in {CONFIG}")
        start = settings.get("init_lora_weights", True)
        if not any(start is known or start == known for known in _STARTS):
            raise self._refuse(f"init_lora_weights={start!a} changes the base")
        if settings.get("bias", "none") not in ("none", "all", "lora_only"):
            raise self._refuse(f"bias={settings['bias']!a}")
        for field, pattern, least in (("r", "rank_pattern", 1), ("lora_alpha", "alpha_pattern", 0)):
            own = settings.get(pattern) or {}
            values = [settings.get(field), *(own.values() if isinstance(own, dict) else [None])]
            if not all(_number(value, least) for value in values):
                raise UserError(
                    f"{self.path / CONFIG}: {field} or {pattern} is no number from {least} on, "
                    f"or one over {_MOST:,}; {REMADE}"
                )
            for key in own:
                if not _may_be_matched(key):
                    raise self._refuse(f"the {pattern} {reprlib.repr(key)}")

    def _setting(self, field: str, pattern: str, module: str) -> float:
        """Look a module's rank or alpha up: the first pattern that matches its end wins."""
        for key, value in (self._settings.get(pattern) or {}).items():
            try:
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            except re.error:
                raise UserError(
                    f"{self.path / CONFIG}: {pattern} holds {key!a}, no regular expression; "
                    f"{REMADE}"
                ) from None
        return self._settings[field]

    def _take(self, key: str) -> None:
        """File one entry of the adapter's weights under the parameter that it changes."""
        if not key.startswith(_PREFIX):
            raise self._refuse(f"its tensor {key}")
        inner = key.removeprefix(_PREFIX)
        module, found, what = inner.partition(".lora_")
        if not found:
            # PEFT may write a saved module three times: by its own name, and as two of its parts.
            for part in (".modules_to_save.", ".original_module."):
                if part in inner and key.replace(part, ".") in self._weights.stored:
                    return
            self._replace(inner.replace(".base_layer.", "."), key)
        elif what in ("A.weight", "embedding_A"):
            self._take_factors(module, key, key.replace(f".lora_{what}", f".lora_{_PARTNER[what]}"))
        elif what == "B.bias":
            self._check_shape(f"{module}.bias", self._weights.stored[key].shape, key)
            self._updates[f"{module}.bias"] = _Update(self._scale(module)[1], key)
        elif what in _PARTNER.values():
            if key.replace(f".lora_{what}", f".lora_{_WHOLE[what]}") not in self._weights.stored:
                raise UserError(f"{self.path}: {key} has no other half; {REMADE}")
        else:
            raise self._refuse(f"its tensor {key}")

    def _replace(self, name: str, key: str) -> None:
        shape = self._weights.stored[key].shape
        held = self._base.shape(name) if name in self._names else None
        if held and has_row_per_token(name) and shape[1:] == held[1:]:
            # The adapter was trained with tokens added: it has its own embedding and head.
            if shape[0] != held[0]:
                self.config = with_vocabulary_size(self.config, shape[0])
        else:
            self._check_shape(name, shape, key)
        self._replaced[name] = key

    def _scale(self, module: str) -> tuple[float, float]:
        rank = self._setting("r", "rank_pattern", module)
        alpha = self._setting("lora_alpha", "alpha_pattern", module)
        return rank, alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)

    def _take_factors(self, module: str, a: str, b: str) -> None:
        stored = self._weights.stored
        if b not in stored:
            raise UserError(f"{self.path}: {a} has no other half; {REMADE}")
        rank, scale = self._scale(module)
        if len(stored[a].shape) != 2 or len(stored[b].shape) != 2:
            raise self._refuse(f"{a} is no matrix")
        if stored[a].shape[0] != rank or stored[b].shape[1] != rank:
            raise UserError(f"{self.path}: {a} is not of rank {rank}, as {CONFIG} has it; {REMADE}")
        shape = (stored[b].shape[0], stored[a].shape[1])
        turned = self._is_turned(module, a, shape)
        self._check_shape(f"{module}.weight", shape[::-1] if turned else shape, a)
        left, right = (a, b) if turned else (b, a)
        self._updates[f"{module}.weight"] = _Update(scale, left, right, turned)

    def _is_turned(self, module: str, key: str, shape: tuple[int, int]) -> bool:
        """Return whether a weight is stored as [in, out], the other way round than B A."""
        if ".lora_embedding_" in key:
            return True
        if self._base.config.get("model_type") in _TURNED_MODELS:
            return module.rsplit(".", 1)[-1] in _TURNED_LAYERS
        if not self._settings.get("fan_in_fan_out"):
            return False
        if shape[0] == shape[1]:
            raise self._refuse("fan_in_fan_out is set and a square weight fits either way")
        name = f"{module}.weight"
        return name in self._names and self._base.shape(name) == shape[::-1]

    def _check_shape(self, name: str, shape: tuple[int, ...], key: str) -> None:
        if name not in self._names:
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

    def _check_tying(self, name: str) -> None:
        tied = not any(map(is_head, self._names))
        if tied and is_embedding(name):
            # Trained, it changed the embedding alone; folded, it would change the head as well.
            raise self._refuse(f"it changes {name}, which the base also uses as its output head")

    def names(self) -> list[str]:
        """Return the names of all parameters, sorted: the base's."""
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape: the base's, but where an embedding was given more rows."""
        replaced = self._replaced.get(name)
        return self._weights.stored[replaced].shape if replaced else self._base.shape(name)

    def dtype(self, name: str) -> str:
        """Return the type in which a parameter is read: F32 or F64 where the adapter changes it."""
        replaced = self._replaced.get(name)
        stored = self._weights.stored[replaced].dtype if replaced else self._base.dtype(name)
        if name in self._updates:
            return "F64" if stored == "F64" else "F32"
        return stored

    def stored(self, name: str) -> str:
        """Return the type in which a parameter of a result is stored: the base's."""
        return self._base.stored(name)

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        update = self._updates.get(name)
        if update is None:
            return self._read_origin(name, start, stop)
        dtype = torch_type(self.dtype(name))
        if not update.right:
            vector = self._weights.read(update.left, start, stop).to(dtype)
            return self._read_origin(name, start, stop).to(dtype).add_(vector, alpha=update.scale)
        columns = self.shape(name)[1]
        first, last = start // columns, -(-stop // columns)
        left, right = self._factors(name)
        rows = self._read_origin(name, first * columns, last * columns).to(dtype)
        rows = rows.reshape(-1, columns).addmm_(left[first:last], right, alpha=update.scale)
        return rows.flatten()[start - first * columns : stop - first * columns]

    def _read_origin(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self._replaced:
            return self._weights.read(self._replaced[name], start, stop)
        return self._base.read(name, start, stop)

    def _read_factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        update, dtype = self._updates[name], torch_type(self.dtype(name))
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
            self._base.ahead(name)

    @property
    def folders(self) -> list[Path]:
        """The base's and the adapter's, which may have a tokenizer."""
        return [*self._base.folders, self.path]

    @property
    def shards(self) -> list[Path]:
        """The base's weight files and the adapter's."""
        return [*self._base.shards, *sorted(set(self._weights.files.values()))]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sha256 over the base's fingerprint and the adapter's configuration and weights."""
        files = [self.path / CONFIG, *sorted(set(self._weights.files.values()))]
        text = f"{self._base.fingerprint} {hash_of_files(files)}"
        return hashlib.sha256(text.encode()).hexdigest()
