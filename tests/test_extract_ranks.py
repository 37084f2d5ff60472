"""Several processes write the store that one would, whichever of them is killed on the way."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from test_extract import BATCH, Hidden, Overflowing, attack, bright_later, content, untrained, wrap

import repsim.extract.api
import repsim.extract.pipeline
import repsim.store.write
from repsim.checkpoint import LoadedModel
from repsim.cli import main
from repsim.data import ImageData, draw, load_data
from repsim.errors import UserError
from repsim.extract import extract, join
from repsim.extract.shares import settle
from repsim.store import Part, open_store

SAMPLES = 56  # three batches and a half
PGD, FGSM = "pgd,steps=2", "fgsm"
KILLED = -signal.SIGKILL
GRACE = 3.0  # seconds
OWNERS: dict[str, Any] = {"Part": Part, "write": repsim.store.write, "api": repsim.extract.api}


# Processes, forked by one that has loaded everything


def serve() -> None:
    """Does the jobs of stdin, a line each, and says how each rank of a job ended."""
    torch.set_num_threads(1)
    repsim.extract.pipeline.MARK_SECONDS = 0.0
    with tempfile.TemporaryDirectory() as folder:  # what is loaded at first use is so here
        extract(*_given(""), [attack(PGD)], Path(folder, "f.h5"))
    for line in sys.stdin:
        print(json.dumps(_job(**json.loads(line))), flush=True)


@functools.cache
def _given(bright: str) -> tuple[LoadedModel, ImageData]:
    if bright:
        torch.manual_seed(3)
        images = bright_later()
        if bright == "first":
            images = images.take(np.arange(len(images))[::-1].copy())
        return wrap(Hidden() if bright == "nan" else Overflowing()), images
    return untrained(0), draw(load_data("digits", "test"), SAMPLES)


def _job(world: int, **job: Any) -> list[int]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = {}
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            }  # fmt: skip
            os._exit(_rank(rank, **job))
        ranks[child] = rank
    ended: dict[int, int] = {}
    end = math.inf
    while ranks:
        if time.monotonic() > end:  # as torchrun does
            end = math.inf
            for other in ranks:
                os.kill(other, signal.SIGTERM)
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.01)
            continue
        code = ended[ranks.pop(child)] = os.waitstatus_to_exitcode(status)
        if code:  # what one refuses the others refuse too, and are given the time
            end = min(end, time.monotonic() + (GRACE if code > 0 else 0))
    return [ended[rank] for rank in range(world)]


def _rank(
    rank: int, out: str, attacks: list[str], kill: list[Any] | None = None, bright: str = "",
    arguments: list[str] | None = None, **options: Any,
) -> int:  # fmt: skip
    if kill is not None and kill[0] == rank:
        _die_at(*kill[1:])
    said = Path(f"{out}.{rank}")
    if arguments is not None:
        with open(said, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                main([*arguments, "--out", out])
            except SystemExit as ended:
                sys.stdout.flush()
                return int(ended.code or 0)
    options = {"batch_size": BATCH, **options}
    try:
        with join("cpu") as (ranks, device):
            assert device == "cpu"
            specs = [attack(text) for text in attacks]
            report = extract(*_given(bright), specs, out, ranks=ranks, **options)
        said.write_text(report.status)
    except UserError as error:
        said.write_text(str(error))
        return 2
    return 0


def _die_at(owner: str, name: str, times: int, after: bool = False) -> None:
    """At the n-th call of a function, before or after it."""
    real, left = getattr(OWNERS[owner], name), [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(OWNERS[owner], name, wrapped)


class Processes:
    def __init__(self) -> None:
        here = Path(__file__).parent
        paths = os.pathsep.join([str(here.parent), str(here)])
        self.server = subprocess.Popen(
            [sys.executable, "-c", "import test_extract_ranks as t; t.serve()"],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, world: int, out: Path, *attacks: str, **job: Any) -> list[int]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {"world": world, "out": str(out), "attacks": attacks, **job}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        ended: list[int] = json.loads(self.server.stdout.readline())
        return ended


@pytest.fixture(scope="module")
def together() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.server.communicate()


@pytest.fixture(scope="module")
def network() -> LoadedModel:
    return untrained(0)


@pytest.fixture(scope="module")
def images(digits_test: ImageData) -> ImageData:
    return draw(digits_test, SAMPLES)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, network: LoadedModel, images: ImageData
) -> dict[str, Path]:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {"one": [PGD], "two": [PGD, FGSM]}
    for name, attacks in made.items():
        specs = [attack(text) for text in attacks]
        extract(network, images, specs, folder / f"{name}.h5", batch_size=BATCH)
    torch.set_num_threads(threads)
    return {name: folder / f"{name}.h5" for name in made}


def said(out: Path, rank: int = 0) -> str:
    return Path(f"{out}.{rank}").read_text()


def parts(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_name(out.name + ".parts").iterdir())


# What they write


@pytest.mark.parametrize("world", [2, 5])
def test_they_write_what_one_process_writes(
    together: Processes, alone: dict[str, Path], tmp_path: Path, world: int
) -> None:
    out = tmp_path / "f%b.h5"  # a name that HDF5 would take for a format
    assert together(world, out, PGD) == [0] * world
    assert said(out) == said(out, 1) == "written"
    assert content(out) == content(alone["one"])
    count = min(world, 4)  # there are four batches
    assert parts(out) == [f"set1.part{i}-of-{count}.h5" for i in range(count)]
    with open_store(out) as store, open_store(alone["one"]) as expected:
        assert store.parts == [f"f%b.h5.parts/{name}" for name in parts(out)]
        assert expected.parts == []
        for name in store.conditions:
            assert store.attack(name) == expected.attack(name)
            assert store.kind(name) == expected.kind(name)
            assert store.accuracy(name) == expected.accuracy(name)
            assert store.norm(name) == expected.norm(name)
            for layer in store.layers:
                mine, theirs = (s.representation(name, layer) for s in (store, expected))
                assert mine.shape == theirs.shape
                order = np.random.default_rng(0).permutation(SAMPLES)
                mine, theirs = mine.reordered(order), theirs.reordered(order)
                assert np.array_equal(mine.rows(3, 50), theirs.rows(3, 50))
    assert together(world, out, PGD) == [0] * world
    assert said(out) == "already done"


def test_images_that_are_each_others_negatives_stay_so(
    together: Processes, network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    """In a process group these attacks would take the negatives of all ranks."""
    torch.set_num_threads(1)
    texts = ["contrastive,steps=2", "instance,steps=2"]
    specs = [attack(text) for text in texts]
    extract(network, images, specs, tmp_path / "one.h5", batch_size=BATCH)
    assert together(2, tmp_path / "two.h5", *texts) == [0, 0]
    assert content(tmp_path / "two.h5") == content(tmp_path / "one.h5")


def test_the_folder_can_be_moved(together: Processes, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    assert together(2, before / "f.h5", FGSM) == [0, 0]
    expected = content(before / "f.h5")
    before.rename(after)
    assert content(after / "f.h5") == expected
    (after / "f.h5").rename(after / "g.h5")
    (tmp_path / "link.h5").symlink_to(after / "g.h5")
    for path in (after / "g.h5", tmp_path / "link.h5"):
        open_store(path).close()
        assert content(path) == expected


def test_the_command_with_several_processes(
    together: Processes, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    two, one = tmp_path / "two.h5", tmp_path / "one.h5"
    arguments = [
        "extract", "--model", str(checkpoints["st"]), "--samples", "40", "--batch-size", "16",
        "--attack", "fgsm", "--device", "cpu",
    ]  # fmt: skip
    assert together(2, two, arguments=arguments) == [0, 0]
    assert together(1, one, arguments=arguments) == [0]
    assert content(two) == content(one)
    assert "repsim cka" in said(two)
    assert "has its rows in 2 files in two.h5.parts/: move both together" in said(two)
    assert said(two, 1) == ""
    ended = together(2, two, arguments=[*arguments, "--device", "cuda:1"])
    # The first that ends may end the other before it has refused too.
    assert 2 in ended
    assert set(ended) <= {2, -signal.SIGTERM}
    refusal = "--device expects auto, cpu or cuda in several processes"
    assert any(refusal in said(two, rank) for rank in range(2))


@pytest.mark.slow
def test_torchrun(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    arguments = [
        "--nproc-per-node", "2", "-m", "repsim", "extract", "--model", str(checkpoints["st"]),
        "--samples", "40", "--batch-size", "16", "--out", str(tmp_path / "f.h5"),
    ]  # fmt: skip
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments], check=True, cwd=root
    )
    with open_store(tmp_path / "f.h5") as store:
        assert len(store) == 40
        assert len(store.parts) == 2


# Life


MOMENTS: dict[str, list[Any]] = {
    "half-a-batch": [1, "Part", "write", 2, True],
    "before-mark": [1, "Part", "mark", 2],
    "finished": [1, "Part", "finish", 1, True],
    "before-joining": [0, "api", "publish", 1],
    "half-joined": [0, "write", "_create_virtual", 3],
    "before-the-last-rename": [0, "Part", "finish", 2],
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_killed_rank_ends_all_and_the_work_continues(
    together: Processes, alone: dict[str, Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "f.h5"
    ended = together(2, out, PGD, kill=MOMENTS[name])
    assert ended[MOMENTS[name][0]] == KILLED
    assert ended[1 - MOMENTS[name][0]] in (-signal.SIGTERM, KILLED, 0)
    assert not out.exists()
    # With more processes and with one.
    for world in (3, 1):
        again = tmp_path / str(world) / "f.h5"
        again.parent.mkdir()
        shutil.copytree(tmp_path / "f.h5.parts", again.parent / "f.h5.parts")
        assert together(world, again, PGD) == [0] * world
        assert said(again) == "continued"
        assert content(again) == content(alone["one"])
        assert parts(again) == ["set1.part0-of-2.h5", "set1.part1-of-2.h5"]
        left = {path.name for path in again.parent.iterdir()}
        assert left == {"f.h5", "f.h5.parts", *(f"f.h5.{rank}" for rank in range(world))}


def test_nothing_that_is_there_is_computed_again(
    together: Processes, network: LoadedModel, images: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    assert together(2, out, PGD, kill=[1, "Part", "mark", 1, True])[1] == KILLED
    seen: list[int] = []
    real = network.model.forward

    def counting(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return real(x)

    with h5py.File(tmp_path / "f.h5.parts" / "set1.part1-of-2.h5.part") as file:
        assert file["conditions/pgd/written"][0] == BATCH
    first = [path.name for path in (tmp_path / "f.h5.parts").iterdir() if "part0" in path.name]
    network.model.forward = counting  # type: ignore[method-assign]
    try:
        extract(network, images, [attack(PGD)], out, batch_size=BATCH)
    finally:
        del network.model.forward
    sizes = seen[1:]  # the first finds the layers
    if first == ["set1.part0-of-2.h5"]:
        assert set(sizes) == {SAMPLES - 3 * BATCH}


def test_a_condition_is_added_by_any_number(
    together: Processes, alone: dict[str, Path], network: LoadedModel, images: ImageData,
    tmp_path: Path,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    ranks, single = tmp_path / "ranks.h5", tmp_path / "single.h5"
    single.write_bytes(alone["one"].read_bytes())
    assert together(2, ranks, PGD) == [0, 0]
    (tmp_path / "both").mkdir()
    shutil.copy(ranks, tmp_path / "both" / "ranks.h5")
    shutil.copytree(tmp_path / "ranks.h5.parts", tmp_path / "both" / "ranks.h5.parts")
    # One process adds to a store of two, two to one of one, three to one of two.
    extract(network, images, [attack(PGD), attack(FGSM)], ranks, batch_size=BATCH)
    assert together(2, single, PGD, FGSM) == [0, 0]
    assert together(3, tmp_path / "both" / "ranks.h5", FGSM) == [0, 0, 0]
    assert said(single) == "condition added"
    for out in (ranks, single, tmp_path / "both" / "ranks.h5"):
        assert content(out) == content(alone["two"]), out
    assert parts(ranks) == [f"set1.part{i}-of-2.h5" for i in range(2)]
    assert parts(single) == [f"set1.part{i}-of-2.h5" for i in range(2)]
    three = [f"set2.part{i}-of-3.h5" for i in range(3)]
    assert parts(tmp_path / "both" / "ranks.h5") == [*parts(ranks), *three]


def test_a_kill_while_a_condition_is_added_leaves_the_store(
    together: Processes, alone: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    assert together(2, out, PGD) == [0, 0]
    for kill in ([1, "Part", "mark", 1], [0, "write", "_create_virtual", 2], [0, "api", "tidy", 1]):
        ended = together(2, out, FGSM, kill=kill)
        assert KILLED in ended
        added = kill[2] == "tidy"
        assert content(out) == content(alone["two" if added else "one"])
        open_store(out).close()
    assert together(2, out, FGSM) == [0, 0]
    assert said(out) == "already done"


def test_other_work_is_refused_and_can_be_overwritten(
    together: Processes, network: LoadedModel, images: ImageData, alone: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "f.h5"
    assert together(2, out, PGD, kill=[0, "api", "publish", 1])[0] == KILLED
    before = parts(out)
    assert together(2, out, PGD, seed=1) == [2, 2]
    assert "unfinished work of another request: seed 0 there, 1 asked" in said(out)
    assert said(out, 1) == said(out)
    assert "remove the folder" in said(out)
    with pytest.raises(UserError, match="conditions clean, noise, pgd there, clean, noise, fgsm"):
        extract(network, images, [attack(FGSM)], out, batch_size=BATCH)
    assert parts(out) == before
    assert together(2, out, PGD, seed=1, overwrite=True) == [0, 0]
    with open_store(out) as store:
        assert store.request["seed"] == 1
    # A finished store of other parts is replaced as a whole, and its parts go.
    assert together(2, out, PGD) == [2, 2]
    assert "seed 1 there, 0 asked" in said(out)
    assert together(2, out, PGD, overwrite=True) == [0, 0]
    assert content(out) == content(alone["one"])
    assert parts(out) == [f"set2.part{i}-of-2.h5" for i in range(2)]
    extract(network, images, [attack(FGSM)], out, overwrite=True)
    assert not (tmp_path / "f.h5.parts").exists()


def test_unfinished_work_of_one_process_is_not_for_several(
    together: Processes, alone: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "f.h5"
    assert together(1, out, PGD, kill=[0, "Part", "finish", 1]) == [KILLED]
    assert (tmp_path / "f.h5.part").exists()
    assert together(2, out, PGD) == [2, 2]
    assert "same command without torchrun" in said(out, 1)
    assert together(2, out, PGD, overwrite=True) == [0, 0]
    assert content(out) == content(alone["one"])
    assert not (tmp_path / "f.h5.part").exists()


def test_an_error_on_one_rank_leaves_nothing(together: Processes, tmp_path: Path) -> None:
    out = tmp_path / "f.h5"
    for batch_size in (10, 20):  # the sample is in the second rank's second batch, or its first
        ended = together(2, out, bright="later", batch_size=batch_size)
        assert 2 in ended
        assert "layer square, sample 21 (index 21 of the split)" in said(out, 1)
        assert "float16" in said(out, 1)
        assert {path.name for path in tmp_path.iterdir()} <= {"f.h5.0", "f.h5.1"}
    assert 2 in together(2, out, bright="nan", batch_size=20, layers="all")
    assert "layer second: expected finite numbers; got nan for sample 21" in said(out, 1)
    assert together(2, out, bright="later", batch_size=10, dtype="float32") == [0, 0]


def test_types_are_those_of_the_first_batch_of_all(together: Processes, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    report = extract(*_given("first"), [], tmp_path / "one.h5", batch_size=10)
    assert "65504" in report.float32["square"]
    assert together(3, tmp_path / "three.h5", bright="first", batch_size=10) == [0, 0, 0]
    assert content(tmp_path / "three.h5") == content(tmp_path / "one.h5")


def test_shares_are_whole_batches(tmp_path: Path) -> None:
    for samples, batch, processes in ((56, 16, 2), (1000, 128, 3), (7, 10, 2), (100, 1, 7)):
        work = settle(
            tmp_path / "f.h5", {}, {}, {"clean": None}, batch_size=batch, samples=samples,
            processes=processes, compressed_bytes=0, overwrite=False,
        )  # fmt: skip
        assert work.bounds[0] == 0
        assert work.bounds[-1] == samples
        assert len(work.bounds) == 1 + min(processes, -(-samples // batch))
        assert all(bound % batch == 0 for bound in work.bounds[:-1])
        sizes = np.diff(work.bounds)
        assert sizes.min() > 0
        assert sizes.max() - sizes.min() <= 2 * batch


# What can be wrong with the parts


@pytest.fixture(scope="module")
def spread(together: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    assert together(2, folder / "f.h5", FGSM) == [0, 0]
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_store(folder / "f.h5")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parts_that_are_not_right_are_noticed(
    together: Processes, spread: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(spread, folder)
    second = folder / "f.h5.parts" / "set1.part1-of-2.h5"
    whole = second.read_bytes()
    second.unlink()
    assert "expected its part f.h5.parts/set1.part1-of-2.h5 beside it; there is" in refusal(folder)
    second.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refusal(folder)
    second.write_bytes((folder / "f.h5.parts" / "set1.part0-of-2.h5").read_bytes())
    assert "is of another store" in refusal(folder)
    assert together(2, tmp_path / "g.h5", FGSM, seed=1) == [0, 0]
    shutil.copy(tmp_path / "g.h5.parts" / "set1.part1-of-2.h5", second)
    assert "is of another store" in refusal(folder)
    second.write_bytes(whole)
    open_store(folder / "f.h5").close()
    # The command says it too, and does not take it for work to be done.
    second.unlink()
    assert together(2, folder / "f.h5", FGSM) == [2, 2]
    assert "expected its part" in said(folder / "f.h5")


def test_a_part_is_a_store_of_its_rows(spread: Path, images: ImageData) -> None:
    with open_store(spread / "f.h5.parts" / "set1.part1-of-2.h5") as store:
        assert (store.ids == images.ids[2 * BATCH :]).all()


# The environment


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT not found; start with torchrun"),
        ({"LOCAL_RANK": "first"}, "LOCAL_RANK in the environment expects a number; got 'first'"),
    ],
)
def test_half_an_environment(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], said: str
) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    for name, value in {**dict.fromkeys(names, "1"), "MASTER_ADDR": "localhost", **changed}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said), join():
        pass
