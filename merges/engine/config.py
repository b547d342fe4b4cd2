"""What to merge and how: the one object that every entrance of the engine takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.writing import SHARD_BYTES
from merges.engine import registry
from merges.engine.requests import EmbeddingsAndNorms, Resuming, Statistic

if TYPE_CHECKING:
    from checkpoints.reading import Model
    from merges.engine.layer_rules import LayerRules
    from merges.engine.slices import Slices


@dataclass(frozen=True)
class MergeConfig:
    """A merge: the method, the models, and all options.

    Attributes:
        method: Name of any method of the registry.
        base: The common ancestor; None where the method needs none.
        experts: The models to merge, by name, in the order given.
        parameters: The method's parameters; those left out have their defaults.
        seed: Seed of random masks, or of a whole-model method's data draw and order.
        embeddings_and_norms: ``merged``, or ``base`` to take them from the base.
        parameters_for: Parameters that differ between tensors; not for whole-model methods.
        calibration: Files of JSON lines by expert name, for methods that need data.
        teachers: Folder of precomputed teacher signals, for methods that use them.
        statistics: Statistics by the model's name (``base`` or an expert's), for methods that ask
            for them.
        compute_dtype: ``float32`` or ``float64``; where an input is stored in float64, its
            arithmetic is in float64 always.
        dtype: Type in which floating parameters are stored, by torch's name; None for the
            base's (without a base, the first expert's).
        device: Torch device on which values are merged, or a whole-model method computes.
        threads: Number of CPU threads: parameters that are merged at a time.
        resuming: Where a whole-model method records its state; None for nowhere.
        donor: The model that configuration, tokenizer and chat template come from: an expert's
            name or ``base``; None for the base, or the first expert where there is no base.
        vocabulary: What to do where tokenizers differ; see `checkpoints.vocabulary.align`.
        shard_bytes: Most bytes of values in a weight file.
        chat_template: The result's only chat template, a text; None for the donor's.
        slices: Which layers of which models are merged into each layer, for models that
            `merges.engine.slices.arrange` has prepared; None for complete models.
        align: How experts are brought to the basis of the base (without one, of the first expert)
            before the merge, a key of `merges.alignment.aligning.METHODS`; None for not at all.
    """

    method: str
    base: Model | None
    experts: Mapping[str, Model]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    embeddings_and_norms: EmbeddingsAndNorms = "merged"
    parameters_for: LayerRules | None = None
    calibration: Mapping[str, Path] = field(default_factory=dict)
    teachers: Path | None = None
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    compute_dtype: str = "float32"
    dtype: str | None = None
    device: str = "cpu"
    threads: int = 1
    resuming: Resuming | None = None
    donor: str | None = None
    vocabulary: str = "refuse"
    shard_bytes: int = SHARD_BYTES
    chat_template: str | None = None
    slices: Slices | None = None
    align: str | None = None

    @functools.cached_property
    def info(self) -> registry.MethodInfo:
        """The method's description; a UserError where the method is unknown."""
        return registry.info(self.method)

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """Every parameter of the method, checked.

        Raises:
            UserError: A parameter is unknown, or a value is out of its range.
        """
        return registry.validate(self.method, self.parameters)

    @property
    def models(self) -> dict[str, Model]:
        """The base, if any, as ``base``, then the experts."""
        return {**({} if self.base is None else {"base": self.base}), **self.experts}

    @property
    def merged_names(self) -> list[str]:
        """The names of the models that the method gets: the experts, or the columns of slices."""
        return list(self.experts if self.slices is None else self.slices.columns)

    @property
    def reference(self) -> Model:
        """The model whose names, shapes and types the result has: the base, or the first expert."""
        return next(iter(self.models.values()))
