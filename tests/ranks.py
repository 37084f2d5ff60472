"""What two processes of one group find: each runs the function `work` of these test modules.

They are started once for all of the modules, as starting takes longer than all their work.
"""

from __future__ import annotations

import importlib
import os
import socket
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from repsim.distributed import start

MODULES = ("test_distributed", "test_live_ranks", "test_sync_norm", "test_train_ranks")
COUNT = 2


def found(module: str) -> list[Any]:
    """What `work` of this module returned on each rank: tensors in plain containers."""
    return [ranks[module] for ranks in _all()]


@cache
def _all() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(_rank, (port, folder), nprocs=COUNT)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(COUNT)]


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(COUNT),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    with start("cpu") as device:
        assert device == "cpu"
        results = {name: importlib.import_module(name).work() for name in MODULES}
        torch.save(results, Path(folder, f"{rank}.pt"))
    assert not torch.distributed.is_initialized()
