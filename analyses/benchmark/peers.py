"""Other tools for similarity of layers, each called as its documentation says.

They are no dependency of repsim's. In an environment beside the one that has repsim:

    python -m venv peers
    echo "import site; site.addsitedir('SITE-PACKAGES OF THAT ONE')" \
        > peers/lib/python3.11/site-packages/link.pth
    peers/bin/pip install --no-deps torch_cka==0.21 pytorch-cka==1.1.3 cka-pytorch==1.1.3 \
        lightning pytorch-lightning lightning-utilities torchmetrics \
        thingsvision==2.7.3 torchtyping typeguard

What is not installed is left out of the table, which says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

# Tools of the issue that can't be measured here, and why.
MISSING = {
    "numpee/CKA.pytorch": "has no package, and calls .cuda() whatever the device; its method is "
    "that of cka-pytorch, which descends from it",
    "ReSi (mklabunde/resi)": "in no registry, and its package is itself called repsim; a pair at a "
    "time from features in memory, biased CKA over all samples",
}


def batches(images: Tensor, size: int) -> DataLoader:
    """(images, label) of whole batches, cut out at once: no time is lost on single samples."""
    data = TensorDataset(images, torch.zeros(len(images), dtype=torch.int64))
    sampler = BatchSampler(SequentialSampler(data), size, drop_last=False)
    return DataLoader(data, sampler=sampler, batch_size=None)


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        name: as it is installed.
        needs: the module that has to be there.
        run: (first network, second network, loader, names of modules) -> matrix. The networks are
            left with hooks on them by some, so they are copies for one call.
        takes: which of the names it can compare.
        note: how it computes.
    """

    name: str
    needs: str
    run: Callable[[nn.Module, nn.Module, DataLoader, Sequence[str]], Tensor]
    note: str
    containers: bool = True

    @property
    def installed(self) -> bool:
        """Whether its module can be found; it is not imported."""
        return importlib.util.find_spec(self.needs) is not None

    def takes(self, model: nn.Module, names: Sequence[str]) -> list[int]:
        """Places in `names` of the layers that it can compare."""
        modules = dict(model.named_modules())
        return [
            i
            for i, name in enumerate(names)
            if self.containers or not isinstance(modules[name], nn.Sequential | nn.ModuleList)
        ]


def pytorch_cka(
    first: nn.Module, second: nn.Module, loader: DataLoader, names: Sequence[str]
) -> Tensor:
    from cka import compute_cka

    (found,) = compute_cka(
        first, second, loader, layers=list(names), device="cpu", progress=False
    )  # fmt: skip
    return found


def torch_cka(
    first: nn.Module, second: nn.Module, loader: DataLoader, names: Sequence[str]
) -> Tensor:
    from torch_cka import CKA

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        cka = CKA(
            first, second, model1_name="first", model2_name="second", model1_layers=list(names),
            model2_layers=list(names), device="cpu",
        )  # fmt: skip
        cka.compare(loader)
        return cka.export()["CKA"].detach()


def cka_pytorch(
    first: nn.Module, second: nn.Module, loader: DataLoader, names: Sequence[str]
) -> Tensor:
    from cka_pytorch.cka import CKACalculator

    calculator = CKACalculator(
        first, second, model1_layers=list(names), model2_layers=list(names), verbose=False
    )
    return calculator.calculate_cka_matrix(loader, num_epochs=1)


def thingsvision() -> Callable[[Tensor, Tensor], float]:
    """Debiased CKA of two layers' features, (samples, features) each.

    Its top level imports tensorflow for the extractors, which are not used here: the package of
    its similarities alone is loaded.
    """
    for place in map(Path, sys.path):
        if (place / "thingsvision" / "core").is_dir():
            for name, folder in (("thingsvision", ""), ("thingsvision.core", "core")):
                package = types.ModuleType(name)
                package.__path__ = [str(place / "thingsvision" / folder)]
                sys.modules.setdefault(name, package)
            break
    from thingsvision.core.cka import get_cka

    def compare(x: Tensor, y: Tensor) -> float:
        cka = get_cka(backend="torch", m=len(x), kernel="linear", unbiased=True, device="cpu")
        return float(cka.compare(X=x, Y=y))

    return compare


PEERS = [
    Peer(
        "pytorch-cka", "cka", pytorch_cka,
        "minibatch (Nguyen et al.), full products of uncentred features in float32, one product "
        "for all pairs; keeps all activations of a batch; values are clamped to [0, 1], no "
        "intervals; activations are kept by reference, so an in-place operation after a layer "
        "changes them",
    ),
    Peer(
        "cka-pytorch", "cka_pytorch", cka_pytorch,
        "the method of numpee/CKA.pytorch: minibatch, Gram matrices in the hooks, then a batched "
        "product K·L for each pair; Sequential containers can't be compared beside their "
        "children; 1e-4 is added under the root; one epoch here (its default of 10 repeats it)",
        containers=False,
    ),
    Peer(
        "torch_cka", "torch_cka", torch_cka,
        "minibatch, a loop over pairs that makes Y·Yᵀ anew for each, and the forward's graph is "
        "kept; rows are in the order in which modules ran, names in that of named_modules; "
        "activations are kept by reference; its hooks stay on the networks",
    ),
]  # fmt: skip
