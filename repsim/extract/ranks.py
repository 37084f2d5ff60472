"""The processes that share one extraction: what they tell each other.

They are no process group of torch: within one, attacks whose images are each other's negatives
would take those of the other processes too, and the store would depend on their number. The few
messages go through torchrun's key-value store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from repsim.errors import UserError

T = TypeVar("T")

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_NAMES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")
# One may have days of work before it while the others wait; torchrun ends them if it fails.
_PATIENCE = timedelta(days=20)  # milliseconds must fit 32 bits


@dataclass
class Ranks:
    """This process among those of an extraction; alone unless `join` made it.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        store: through which they talk; None for one process.
        calls: of `begin`; all ranks make the same.
    """

    rank: int = 0
    world: int = 1
    store: Store | None = None
    calls: int = 0

    @property
    def main(self) -> bool:
        """Whether this process prints, and writes what is written once."""
        return self.rank == 0

    def begin(self) -> None:
        """A new extraction: the names of messages may be used again."""
        self.calls += 1

    def first(self, what: str, work: Callable[[], T]) -> T:
        """What rank 0's `work` returns or refuses; the other ranks wait for it.

        Args:
            what: a name, used once in an extraction.
            work: is called on rank 0 only; returns what JSON can hold.

        Raises:
            UserError: rank 0's, on every rank.
        """
        if self.store is None:
            return work()
        if not self.main:
            said = json.loads(self._hear(what))
            if "error" in said:
                raise UserError(said["error"])
            found: T = said["found"]
            return found
        try:
            result = work()
        except UserError as error:
            self.store.set(self._key(what), json.dumps({"error": str(error)}))
            raise
        self.store.set(self._key(what), json.dumps({"found": result}))
        return result

    def meet(self, what: str) -> None:
        """Wait until every rank is here.

        Args:
            what: a name, used once in an extraction.
        """
        if self.store is not None:
            if self.store.add(self._key(what), 1) == self.world:
                self.store.set(self._key(f"{what}: all"), "yes")
            self._hear(f"{what}: all")

    def fail(self) -> None:
        """Tell the others that this rank gives up; torchrun ends them, sooner or later."""
        if self.store is not None:
            self.store.set(self._key("failed"), "yes")

    @property
    def failed(self) -> bool:
        """Whether some rank has given up."""
        return self.store is not None and self.store.check([self._key("failed")])

    def leave(self) -> None:
        """The last message: rank 0, which may be the one that keeps them, stays to the end."""
        if self.store is None:
            return
        if self.main:
            self.store.wait([f"left/{rank}" for rank in range(1, self.world)], _PATIENCE)
        else:
            self.store.set(f"left/{self.rank}", "yes")

    def _key(self, what: str) -> str:
        return f"extract/{self.calls}/{what}"

    def _hear(self, what: str) -> Any:
        assert self.store is not None
        self.store.wait([self._key(what)], _PATIENCE)
        return self.store.get(self._key(what))


@contextmanager
def join(device: str = "auto") -> Iterator[tuple[Ranks, str]]:
    """Join the other processes that torchrun has started, if it has.

    Args:
        device: "auto", "cpu", "cuda" or, in one process, "cuda:1".

    Yields:
        This process among them, and its device: with several, the GPU of its local rank.

    Raises:
        UserError: only a part of torchrun's environment is there, a number in it is none, or
            there are fewer GPUs than processes.
    """
    if not any(name in os.environ for name in _NUMBERS):
        yield Ranks(), device
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
    rank, world, local = (int(os.environ[name]) for name in _NUMBERS)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"--device expects auto, cpu or cuda in several processes; got {device!r}; choose GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            raise UserError(
                f"each process expects its own GPU; process {local} of this machine found "
                f"{torch.cuda.device_count()}; lower --nproc-per-node or try --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(), device
        return
    store, _, _ = next(rendezvous("env://"))
    ranks = Ranks(rank, world, store)
    yield ranks, device
    ranks.leave()
