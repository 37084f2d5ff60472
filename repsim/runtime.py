"""Where and how networks run: device, precision, memory layout."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from repsim.errors import UserError

Module = TypeVar("Module", bound=nn.Module)

PRECISIONS = ("auto", "float32", "bf16")


@dataclass(frozen=True)
class Runtime:
    """The choices that every stage makes alike; `Runtime.of` makes them.

    Attributes:
        device: "cpu" or "cuda".
        precision: "float32" or "bf16" (autocast; weights and inputs stay float32).
        channels_last: convolutions on NHWC memory.
    """

    device: str
    precision: str
    channels_last: bool

    @classmethod
    def of(
        cls,
        device: str = "auto",
        precision: str = "auto",
        *,
        channels_last: bool = True,
        training: bool = False,
    ) -> Runtime:
        """Defaults that were measured to pay.

        channels_last: a training step of a resnet20 takes about 0.8 of the time at 32×32 and at
        8×8 on two cores (analyses/benchmark). bf16 for training on a GPU only: on CPUs without
        matrix units it is slower, and measurements are made in float32 unless asked otherwise.

        Raises:
            UserError: a device that is not there, or an unknown precision.
        """
        if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
            raise UserError(f"--device expects auto, cpu or cuda; got {device!r}")
        if device.startswith("cuda"):
            there = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
            if not torch.cuda.is_available():
                raise UserError(f"--device {device}: this torch sees no GPU; try --device cpu")
            if device not in there:
                raise UserError(f"--device expects one of {', '.join(there)}; got {device!r}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise UserError(f"--precision expects one of {known}; got {precision!r}")
        if precision == "auto":
            precision = "bf16" if training and device.startswith("cuda") else "float32"
        return cls(device, precision, channels_last)

    def place(self, model: Module) -> Module:
        """The model on the device in the chosen layout (in place)."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]

    def images(self, images: Tensor) -> Tensor:
        """Images (batch, c, h, w) on the device in the chosen layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True).contiguous(memory_format=layout)

    def autocast(self) -> AbstractContextManager[None]:
        """Context for forwards and backwards in the chosen precision."""
        return torch.autocast(
            self.device.partition(":")[0], dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )
