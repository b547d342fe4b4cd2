"""Devices of torch."""

from __future__ import annotations

from common.errors import UserError, reason_of


def check_device(device: str) -> None:
    """Refuse a device that this machine or this build of PyTorch does not have.

    Raises:
        UserError: A tensor cannot be put there.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second from a build without CUDA
        raise UserError(
            f"--device {device}: not usable here ({reason_of(error)}); give cpu, or cuda where "
            "PyTorch has it"
        ) from None
