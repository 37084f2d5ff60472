"""Several processes that train one network: what they tell each other.

Without a process group there is one process, of rank 0, and every function here returns what it
was given. With one, all ranks have to make the same calls in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from repsim.errors import UserError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_NAMES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def start(device: str = "auto") -> Iterator[str]:
    """Join the other processes that torchrun has started; leave them at the end.

    Does nothing where torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT) is not there, or where the process is in a group already. CPUs talk through gloo,
    GPUs through NCCL; each process has the GPU of its local rank.

    Args:
        device: "auto", "cpu" or "cuda".

    Yields:
        The device of this process, e.g. "cuda:1"; what was given where nothing is done.

    Raises:
        UserError: only a part of the environment is there, a number in it is none, or there are
            fewer GPUs than processes.
    """
    if _grouped() or not any(name in os.environ for name in _NUMBERS):
        yield device
        return
    if missing := [name for name in _NAMES if not os.environ.get(name)]:
        raise UserError(
            f"several processes expect all of {', '.join(_NAMES)} in the environment; "
            f"{', '.join(missing)} not found; start with torchrun, or unset the others"
        )
    if wrong := [name for name in _NUMBERS if not os.environ[name].isdecimal()]:
        raise UserError(
            f"{wrong[0]} in the environment expects a number; got {os.environ[wrong[0]]!r}; start "
            "with torchrun"
        )
    mine, processes, local = (int(os.environ[name]) for name in _NUMBERS)
    if mine >= processes:
        raise UserError(
            f"RANK in the environment expects less than WORLD_SIZE, {processes}; got {mine}; start "
            "with torchrun"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device expects auto, cpu or cuda in several processes; got {device!r}; choose GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"each process expects its own GPU; process {local} of this machine found "
                f"{torch.cuda.device_count()}; lower --nproc-per-node or try --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl", rank=mine, world_size=processes, device_id=torch.device(device)
        )
    else:
        dist.init_process_group("gloo", rank=mine, world_size=processes)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if _grouped() else 0


def world() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints: the one of rank 0."""
    return rank() == 0


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in the order of the ranks, with gradient; x itself in one process.

    The gradient of a rank's x is Σ_r ∂L_r/∂x, the sum over the ranks r of what their losses L_r
    send back to its rows. Where every rank computes the same mean L over the gathered rows, that
    is n · ∂L/∂x for n ranks, and DistributedDataParallel, which divides the sum of the
    parameters' gradients by n, leaves exactly the gradient of L: the one of a single process with
    the whole batch. An attack's gradient of its own images is then n times as long, which a sign
    or a norm takes out again. Not to be differentiated twice.

    Args:
        x: (rows, ...), as many rows on every rank (not checked: it would cost a message).

    Returns:
        (n · rows, ...).
    """
    return _Gather.apply(x) if world() > 1 else x


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks in the order of `gather`, without gradient: labels (rows,) or ids."""
    return _all_rows(x) if world() > 1 else x


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Mean over the ranks of a floating-point tensor of any shape, without gradient."""
    if world() == 1:
        return x
    total = x.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return (total / world()).to(x.device)


def agree(flag: bool) -> bool:
    """Whether any rank says yes: one that has to stop stops them all."""
    if world() == 1:
        return flag
    found = torch.tensor(int(flag), device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return _all_rows(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world())[rank()]


def _all_rows(x: Tensor) -> Tensor:
    rows = x.new_empty((world() * len(x), *x.shape[1:]))
    dist.all_gather(list(rows.chunk(world())), x.contiguous())
    return rows


def _device() -> torch.device:
    """Where the group's messages have to lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: for work that ranks share by taking different parts.

    Attacks of images on one another would otherwise take other ranks' images, which are not of
    their batch, and wait for ranks that have nothing left to do.
    """
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def _grouped() -> bool:
    return not _ALONE.get() and dist.is_available() and dist.is_initialized()
