"""Whether DAM computes what the model's own class computes: compared before anything is learned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.errors import UserError, reason_of
from merges.dam.architecture import Architecture, body_name, skeleton
from merges.dam.data import Calibration
from merges.dam.network import Decoder, merged_layers
from merges.dam.packing import Packing

# Of the largest value; both sides compute in float32, in another order.
_TOLERANCE = 1e-4
_HEAD_TOKENS = 16
_KINDS = ("embedding", "norm")


def goes_packed(
    architecture: Architecture, tensors: Mapping[str, Tensor], data: Sequence[Calibration]
) -> bool:
    """Compare hidden states and logits with those of the class, and choose how samples go.

    The longest sample of the data, longer than a sliding window where any is, and the shortest go
    through the class one by one, and through ours in one row, with ordinary and with merged layers.

    Args:
        architecture: The base's class.
        tensors: The base's weights.
        data: The calibration data.

    Returns:
        Whether samples can go packed; if not, they go one by one (a state space or a convolution
        would mix them).

    Raises:
        UserError: Neither gives what the class gives.
    """
    # Where values are rounded to bfloat16, a cap left out would hide behind the rounding.
    wide = {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }
    samples = _samples(data)
    expected = _expected(architecture, wide, samples)
    _check_head(architecture, wide, expected)
    reasons: list[str] = []
    for packed in (True, False):
        reason = _differs(architecture, wide, samples, expected, packed)
        if reason is None:
            if not packed:
                print(
                    f"note: DAM reads the samples of a {architecture.config.get('model_type')!r} "
                    f"model one by one, which takes longer: packed in a row, {reasons[0]}",
                    file=sys.stderr,
                    flush=True,
                )
            return packed
        reasons.append(reason)
    raise UserError(
        f"DAM does not know the architecture {architecture.config.get('model_type')!r}: "
        f"{reasons[-1]}; merge it with a method without data"
    )


def _samples(data: Sequence[Calibration]) -> list[Tensor]:
    """Return the shortest and the longest sample, as token ids."""
    rows = [
        (own.length(row), index, row) for index, own in enumerate(data) for row in range(len(own))
    ]
    return [
        data[index].ids[data[index].starts[row] :][:length]
        for length, index, row in (min(rows), max(rows))
    ]


def _expected(
    architecture: Architecture, tensors: Mapping[str, Tensor], samples: Sequence[Tensor]
) -> Tensor:
    """Compute the class's own final hidden states of samples one by one, end to end."""
    reference = skeleton(architecture.config, "eager")
    top = body_name(reference)
    body = reference.get_submodule(top)
    architecture.fill(reference, tensors, [f"{top}.{name}" for name in body.state_dict()])
    device = next(iter(tensors.values())).device
    body.to(device)
    with torch.no_grad():
        each = [body(input_ids=own[None].to(device), use_cache=False) for own in samples]
    return torch.cat([output.last_hidden_state[0] for output in each])


def _far(actual: Tensor, expected: Tensor) -> bool:
    difference = (actual - expected).abs().max() / expected.abs().max().clamp_min(1)
    return not difference < _TOLERANCE  # NaN is far, too


def _check_head(architecture: Architecture, tensors: Mapping[str, Tensor], hidden: Tensor) -> None:
    """Refuse a head whose logits are not the class's, for small and for large hidden states."""
    hidden = hidden[-_HEAD_TOKENS:]
    with torch.no_grad():
        for factor in (0.1, 1.0, 30.0):
            actual = architecture.logits(factor * hidden, tensors)
            if _far(actual, architecture.class_logits(factor * hidden, tensors)):
                raise UserError(
                    f"DAM does not know the architecture {architecture.config.get('model_type')!r}:"
                    " its logits are not what its output head makes of the final hidden states; "
                    "merge it with a method without data"
                )


def _differs(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    samples: Sequence[Tensor],
    expected: Tensor,
    packed: bool,
) -> str | None:
    """Say in what a decoder differs from the class, None for nothing."""
    layers = merged_layers([tensors], architecture, merge_head=False, kinds=_KINDS)
    one = expected.new_ones(())
    for layer in layers.values():
        layer.coefficients = one.view(1, *[1] * layer.weights[0].dim())
        layer.bias_coefficients = one.view(1, 1)
    packing = Packing([len(own) for own in samples], expected.device)
    ids = torch.cat(list(samples)).to(expected.device)
    for merged in ({}, layers):
        what = "its merged layers" if merged else "its layers"
        try:
            decoder = Decoder(architecture, tensors, merged, packed=packed)
            with torch.no_grad():
                actual = decoder.hidden_states(ids, packing)
        except Exception as error:  # whatever a class makes of layers and masks that it never had
            return f"{what} fail ({reason_of(error)})"
        if _far(actual, expected):
            return f"{what} give other hidden states than its class"
    return None
