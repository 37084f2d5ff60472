"""A study on a machine: its folder, networks and data, as its stages see them."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

import repsim
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, channel_statistics, default_eps, draw, load_data
from repsim.errors import UserError
from repsim.files import replacing
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime
from repsim.study.networks import StudyNetwork
from repsim.study.settings import Settings

STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Machine:
    """What does not decide the numbers: nothing of it enters a stage's hash.

    Attributes:
        device: "auto", "cpu" or "cuda".
        data_root: where data sets lie.
        download: fetch the data set if it is not there.
        checkpoints: folders with trained networks that may be those of the study.
        processes: that share a data-parallel stage (torchrun).
    """

    device: str = "auto"
    data_root: Path | None = None
    download: bool = False
    checkpoints: tuple[Path, ...] = ()
    processes: int = 1


class Training(NamedTuple):
    """Training images, with the mean and the standard deviation of each channel."""

    images: ImageData
    mean: list[float]
    std: list[float]


@dataclass
class Study:
    """Everything that a stage's work needs.

    Attributes:
        folder: where all is kept.
        settings: what decides the numbers.
        networks: in their order.
        machine: where it runs.
        progress: told of the work.
        command: that makes all of it, to be typed in its folder.
    """

    folder: Path
    settings: Settings
    networks: list[StudyNetwork]
    machine: Machine = field(default_factory=Machine)
    progress: Progress = field(default_factory=Silent)
    command: str = "repsim reproduce universal --out ."
    _drawn: dict[int | None, Training] = field(default_factory=dict, repr=False)

    @cached_property
    def train_images(self) -> ImageData:
        """The training split."""
        return self._split("train")

    @cached_property
    def test_images(self) -> ImageData:
        """The test split."""
        return self._split("test")

    def _split(self, split: str) -> ImageData:
        machine = self.machine
        return load_data(
            self.settings.data, split, root=machine.data_root, download=machine.download
        )

    def test(self, samples: int) -> ImageData:
        """A class-balanced draw of the test split."""
        return draw(self.test_images, samples)

    def training(self, samples: int | None) -> Training:
        """A class-balanced draw of the training split, or all of it; each is made once."""
        if samples not in self._drawn:
            images = self.train_images
            if samples is not None and samples < len(images):
                images = draw(images, samples)
            self._drawn[samples] = Training(images, *channel_statistics(images.images))
        return self._drawn[samples]

    def network(self, name: str) -> StudyNetwork:
        """By its name."""
        return next(one for one in self.networks if one.name == name)

    def load(self, name: str) -> LoadedModel:
        """A network from the study's folder, under its name in the study."""
        return replace(load_model(self.folder / self.network(name).file), name=name)

    def own_file(self, network: StudyNetwork) -> Path:
        """A user's own checkpoint; the study's folder itself need not be there yet."""
        return Path(os.path.normpath(self.folder / network.checkpoint))

    def runtime(self, *, training: bool = False) -> Runtime:
        """Device, precision, layout."""
        return Runtime.of(self.machine.device, self.settings.precision, training=training)

    @property
    def eps(self) -> float:
        """The data set's test eps in units of pixels in [0, 1]."""
        return default_eps(self.settings.data_name)

    def path(self, name: str) -> Path:
        """An output's path; its folder is made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write an output to, which then takes its name."""
        with replacing(self.path(name)) as beside:
            yield beside

    def write_json(self, name: str, content: Any) -> None:
        """Plain values as a file."""
        with self.writing(name) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def hardware(device: str) -> dict[str, Any]:
    """What the study ran on, as plain values."""
    place = Runtime.of(device).device
    found = {
        "processor": _processor(),
        "cores": cores(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    if place.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(place)
        found["gpus"] = torch.cuda.device_count()
    return found


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    import numpy

    return {
        "repsim": repsim.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_study(folder: Path, file: str = STUDY_FILE) -> dict[str, Any]:
    """The content of `study.json`, or of another file of that form.

    Raises:
        UserError: none is there, or one that cannot be read.
    """
    path = folder / file
    if not path.is_file():
        raise UserError(f"{folder}: expected a study's folder; there is no {file} in it")
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected what repsim reproduce writes; {error}") from error
    return content


def study_of(
    folder: Path, machine: Machine, progress: Progress | None = None, *, file: str = STUDY_FILE
) -> Study:
    """The study whose settings stand in a file, for a process that runs one of its stages.

    Args:
        folder: the study's.
        machine: where it runs.
        progress: told of the work.
        file: the file, relative to the folder.

    Raises:
        UserError: none is there.
    """
    content = read_study(folder, file)
    networks = [StudyNetwork.from_json(one) for one in content["networks"]]
    settings = Settings.from_json(content["settings"])
    return Study(folder, settings, networks, machine, progress or Silent(), content["command"])
