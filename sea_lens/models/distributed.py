"""Work split over the processes of `torchrun` or `accelerate launch`, and put together in the order of their ranks.

A process belongs to a group once `torch.distributed` is initialised in it: by `torch.distributed.init_process_group("gloo")`
(or `"nccl"`), or by making an `accelerate.Accelerator`. Until then it is alone. All functions here that communicate must be
called by every process of the group, the same number of times and in the same order.

What is put together has a defined order, so that results do not depend on which process was quicker.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed
from jaxtyping import Shaped
from torch import Tensor

from sea_lens.errors import SeaLensWarning

T = TypeVar("T")
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def rank() -> int:
    """This process's number, from 0; 0 for a process that is alone."""
    return torch.distributed.get_rank() if _in_group() else 0


def n_processes() -> int:
    """How many processes share the work; 1 for a process that is alone.

    Warns:
        SeaLensWarning: If a launcher started several, but `torch.distributed` is not initialised: each does all the work.
    """
    if _in_group():
        return torch.distributed.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    if not _initialized() and launched != "1" and "LOCAL_RANK" in os.environ:
        warnings.warn(
            f"A launcher started {launched} processes, but torch.distributed is not initialised, so each of them does all of "
            'the work. Call torch.distributed.init_process_group("gloo") first, or make an accelerate.Accelerator.',
            SeaLensWarning,
            stacklevel=2,
        )
    return 1


def _in_group() -> bool:
    return not _ALONE.get() and _initialized()


def _initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process do all the work of a block, as if there were no others: for a share of split work."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def shows(progress: bool) -> bool:
    """Whether this process shows progress: the first one does."""
    return progress and not (_initialized() and torch.distributed.get_rank() > 0)


def share_of(rows: Sequence[T]) -> Sequence[T]:
    """This process's share: every n-th row from its rank on, so that rows sorted by length are split evenly."""
    return rows[rank() :: n_processes()]


def from_each(tensor: Shaped[Tensor, "*shape"]) -> Iterator[Shaped[Tensor, "*shape"]]:
    """Every process's tensor, on the CPU, in the order of ranks; one at a time is held.

    Every process must iterate to the end.

    Args:
        tensor: This process's. Sizes may differ between processes; dtype and number of dimensions may not.
    """
    if n_processes() == 1:
        yield tensor.cpu()
        return
    device = _device()
    for source in range(n_processes()):
        shape = torch.tensor(tensor.shape, dtype=torch.long, device=device)
        if tensor.ndim:
            torch.distributed.broadcast(shape, source)
        if source == rank():
            sent = tensor.detach().to(device).contiguous()
        else:
            sent = torch.empty(shape.tolist(), dtype=tensor.dtype, device=device)
        if sent.numel():
            torch.distributed.broadcast(sent, source)
        yield sent.cpu()


def every_process(is_so: bool) -> bool:
    """Whether something is so on every process."""
    answers = list(from_each(torch.tensor(int(is_so))))  # a list, for all of them have to be received
    return all(map(bool, answers))


@contextmanager
def together() -> Iterator[None]:
    """Ends a block on all processes with an error if it raises one on any of them, so that none waits for another.

    The block must not communicate. Processes that did their part meet the others at its end.

    Raises:
        RuntimeError: Where another process raised an error.
    """
    raised: BaseException | None = None
    try:
        yield
    except BaseException as error:
        raised = error
    failed = [process for process, is_so in enumerate(list(from_each(torch.tensor(int(raised is not None))))) if is_so]
    if raised is not None:
        raise raised
    if failed:
        raise RuntimeError(
            f"Process {failed[0]} of {n_processes()} stopped with an error. Read its message, above or below."
        )


@contextmanager
def in_turn() -> Iterator[None]:
    """Runs a block on one process after another, by rank; where it raises an error, the others stop with one too."""
    for turn in range(n_processes()):
        with together():
            if turn == rank():
                yield


def from_first(value: T) -> T:
    """The first process's value, which can be pickled, on all of them."""
    values = [value]
    if n_processes() > 1:
        torch.distributed.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def _device() -> torch.device:
    """Where tensors must lie to be sent: NCCL sends from GPUs only."""
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
