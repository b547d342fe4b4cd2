"""DAM on models in memory: the suite's own training, given weights and rows instead of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bottle.training import Text
from merges.dam.architecture import Architecture
from merges.dam.data import Calibration
from merges.dam.method import training_parameters
from merges.dam.sources import Sources
from merges.dam.training import Trainer
from merges.engine import registry
from merges.engine.requests import WholeModelRequest
from merges.engine.streaming import InMemory


def calibration(expert: str, texts: Sequence[Text]) -> Calibration:
    """Turn tokenised rows into what DAM reads; see `merges.dam.data.read_calibration`."""
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text.ids))
    ids = torch.tensor([token for text in texts for token in text.ids])
    # Nothing is cached across processes, so that a name serves as the data's hash.
    return Calibration(expert, Path(expert), ids, starts, [t.prompt_length for t in texts], expert)


def dam(
    config: Mapping[str, Any],
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    rows: Mapping[str, Sequence[Text]],
    given: Mapping[str, Any],
    seed: int,
) -> dict[str, Tensor]:
    """Merge with DAM.

    Args:
        config: The models' configuration, as config.json has it.
        base: Weights by parameter name, float32.
        experts: The same by expert.
        rows: Each expert's calibration rows.
        given: Parameters of the method.
        seed: Of the draw of rows.

    Returns:
        The merged weights by parameter name.

    Raises:
        UserError: The training's objective is not finite.

    Source: Gauthier-Caron et al., arXiv:2410.08371.
    """
    sources = Sources(
        base=dict(base),
        config=dict(config),
        experts={name: dict(weights) for name, weights in experts.items()},
        calibrations=[calibration(name, rows[name]) for name in experts],
        architecture=Architecture.of(dict(config), list(base)),
    )
    request = WholeModelRequest(
        base=InMemory(base, "base"),
        experts={name: InMemory(weights, name) for name, weights in experts.items()},
        calibration={},
        teachers=None,
        seed=seed,
        embeddings_and_norms="base",
        threads=1,
    )
    trainer = Trainer(request, training_parameters(**registry.validate("dam", given)), sources)
    for _ in range(trainer.steps):
        trainer.step()
    return trainer.result().tensors
