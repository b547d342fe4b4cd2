"""A step that does nothing but import what an evaluation needs; see `benchmarks/workflow.py`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Import the evaluation's libraries."""
    import lm_eval.evaluator
    import lm_eval.models.huggingface  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401

    return 0
