"""Memory that a pass and a regression hold, counted from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merges.engine.pieces import LARGE
from merges.statistics.collecting import TOKENS


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of a layer's linear layers."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    keys = head * config.get("num_key_value_heads", heads)
    return {
        "q": (heads * head, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, heads * head),
        "gate": (wide, hidden),
        "up": (wide, hidden),
        "down": (hidden, wide),
    }


def pass_bytes(config: Mapping[str, Any], kind: str, width: int, tokens: int = TOKENS) -> int:
    """Count the most that a pass over one model holds at once.

    It is a layer's weights, the sums, the bytes of the largest sum that is being written, and the
    activations of one forward (for a backward, those that autograd keeps). Nothing in it depends on
    the number of layers, rows or experts.

    Args:
        config: The checkpoint's config.json.
        kind: A key of `merges.statistics.kinds.KINDS`.
        width: Bytes of a stored weight.
        tokens: Of one forward.
    """
    shapes = _shapes(config)
    weights = sum(m * n for m, n in shapes.values())
    inputs = [shapes[name][1] ** 2 for name in ("q", "o", "up", "down")]
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    # What enters a distinct input stays until the layer ends; one of them is widened.
    seen = tokens * ((8 * hidden + 4 * wide) * width + 4 * wide)
    forward = weights * width + seen
    if kind == "channels":
        return forward
    grams = forward + 4 * (sum(inputs) + max(inputs))
    if kind == "gram":
        return grams
    kept = tokens * (14 * hidden + 8 * wide) * width
    if kind == "kronecker":
        outputs = [m * m for m, _ in shapes.values()]
        return max(grams, weights * width + kept + 4 * (sum(outputs) + max(outputs)))
    largest = max(m * n for m, n in shapes.values())
    layer = weights * (width + 4) + kept + largest * (4 + 4 + width)
    vocabulary = config["vocab_size"]
    head = vocabulary * hidden * width + 3 * 4 * 256 * vocabulary + 2 * tokens * hidden * 4
    return max(layer, head)


def regression_bytes(config: Mapping[str, Any], width: int) -> int:
    """Count the most that RegMean holds at once, whatever the number of experts.

    It is A in float64; of a piece of rows the centre, one expert as stored and widened, their
    product with a Gram matrix, and the right side in float64; and 1,024 rows of the Gram matrix.

    Args:
        config: The checkpoint's config.json.
        width: Bytes of a stored weight.
    """
    found = []
    for rows, inputs in [*_shapes(config).values(), (config["vocab_size"], config["hidden_size"])]:
        piece = min(rows * inputs, LARGE)
        found.append(8 * inputs**2 + piece * (4 + 4 + width + 4 + 4 + 8) + 2 * 4 * 1024 * inputs)
    return max(found)
