"""Where a fit is computed."""

from __future__ import annotations

import torch

from sea_lens.errors import InputError


def fitting_device(device: str | torch.device | None) -> torch.device | None:
    """A device by its name; None, for where activations lie, stays None.

    Raises:
        InputError: If there is no such device here, or it has no float64.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        works = found.type != "meta" and torch.zeros(1, device=found).numel() == 1
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"There is no device {str(device)!r} here. Leave device out, or give one that torch can use, such as 'cpu' or "
            f"'cuda'. ({str(error).splitlines()[0]:.120})"
        ) from error
    if not works or found.type == "mps":
        raise InputError(
            f"Fits are computed in float64, which {str(device)!r} does not have. Leave device out: the CPU has it."
        )
    return found
