"""Accuracy image by image: who is attacked, who is lost, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from repsim.attack_files import bind
from repsim.attacks import AttackSpec, noise, parse_attack, perturbation_norm, pgd
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.evaluate import accuracy_interval, evaluate
from repsim.models import Normalized, build_model
from repsim.progress import Silent, Task
from repsim.runtime import Runtime

EPS = 0.15


def as_loaded(encoder: nn.Module, name: str = "net", head: bool = True) -> LoadedModel:
    model = Normalized(encoder, [0.0], [1.0]).eval()
    meta = {"head": ["linear"] if head else [], "scheme": "cl"}
    return LoadedModel(model, meta, "0" * 64, name)


@pytest.fixture(scope="session")
def linear(digits_train: ImageData) -> LoadedModel:
    """Least squares on digits: right on nine in ten, and a real gradient, at once."""
    x = to_float(digits_train.images).flatten(1)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    y = nn.functional.one_hot(digits_train.labels, 10).float()
    solution = torch.linalg.solve(x.T @ x + torch.eye(65), x.T @ y).T * 10
    head = nn.Linear(64, 10)
    with torch.no_grad():
        head.weight.copy_(solution[:, :-1])
        head.bias.copy_(solution[:, -1])
    return as_loaded(nn.Sequential(nn.Flatten(), head), "linear")


@pytest.fixture(scope="session")
def drawn(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 300)


def specs(*texts: str) -> list[AttackSpec]:
    return [parse_attack(text, eps=EPS) for text in texts]


def predict(loaded: LoadedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return loaded.model(images).argmax(1)


def plugin(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(model, inputs, labels):\n    {body}\n")
    return f"{path}:mine"


def test_accuracies_are_those_of_a_plain_loop(linear: LoadedModel, drawn: ImageData) -> None:
    """All at once, every image attacked at full strength, nothing left out."""
    found = evaluate(linear, drawn, specs("pgd,eps=0.05,steps=5", "fgsm,eps=0.05", "noise"))
    x, y = to_float(drawn.images), drawn.labels
    clean = predict(linear, x) == y
    assert 0.85 < clean.double().mean() < 0.99  # both kinds are there
    record: dict[str, Tensor] = {}
    pgd(linear.model, x, y, eps=0.05, steps=5, ids=drawn.keys, record=record)
    survived = {
        "pgd": clean & (record["first_success"] < 0),
        "noise": clean & (predict(linear, noise(linear.model, x, y, eps=EPS, ids=drawn.keys)) == y),
    }
    summary = found.summary()
    assert summary["clean_accuracy"] == pytest.approx(clean.double().mean().item())
    for name, right in survived.items():
        assert summary["robust_accuracy"][name] == pytest.approx(right.double().mean().item())
        assert (found.found[name].lost == ~right.numpy()).all()
    robust = summary["robust_accuracy"]
    assert robust["pgd"] < robust["fgsm"] < robust["noise"] < summary["clean_accuracy"] + 1e-9
    assert robust["pgd"] > 0


def test_misclassified_images_are_lost_and_not_attacked(
    linear: LoadedModel, drawn: ImageData
) -> None:
    seen: list[Tensor] = []

    def spy(model: nn.Module, inputs: Tensor, labels: Tensor, *, ids: Tensor) -> Tensor:
        seen.append(ids)
        return (inputs + 0.01).clamp(0, 1)

    spec = AttackSpec("mine.py:spy", "spy", {}, spy)
    found = evaluate(linear, drawn, [spec], batch_size=64)
    wrong = found.clean != drawn.labels.numpy()
    assert wrong.sum() > 3
    assert torch.equal(torch.cat(seen), drawn.keys[torch.from_numpy(~wrong)])
    assert [len(ids) for ids in seen[:-1]] == [64] * (len(seen) - 1)  # in full batches
    assert found.found["spy"].lost[wrong].all()
    assert (found.found["spy"].norm[wrong] == 0).all()
    assert found.found["spy"].norm[~wrong] == pytest.approx(0.01, rel=1e-4)
    assert (found.found["spy"].prediction[wrong] == found.clean[wrong]).all()


def test_worst_is_over_the_attacks_and_leaves_the_control_out(
    linear: LoadedModel, drawn: ImageData
) -> None:
    attacks = specs("noise,eps=0.9", "fgsm,eps=0.03", "pgd,norm=l2,eps=0.3,as=l2")
    found = evaluate(linear, drawn, attacks)
    worst = found.summary()["robust_accuracy"]
    assert worst["noise"] < worst["worst"]
    assert worst["worst"] == pytest.approx(
        1 - (found.found["fgsm"].lost | found.found["l2"].lost).mean()
    )
    assert worst["worst"] <= min(worst["fgsm"], worst["l2"])
    assert found.found["fgsm"].lost.sum() != found.found["l2"].lost.sum()
    assert "worst" not in evaluate(linear, drawn, specs("noise")).summary()["robust_accuracy"]


def test_a_row_an_image(linear: LoadedModel, drawn: ImageData) -> None:
    found = evaluate(linear, drawn, specs("pgd,norm=l2,eps=0.4,steps=4,as=l2", "noise"))
    table = found.table()
    assert list(table.columns) == [
        "index", "label", "clean",
        "l2_prediction", "l2_norm", "l2_moved", "l2_lost", "l2_loss", "l2_first_success",
        "noise_prediction", "noise_norm", "noise_moved", "noise_lost", "noise_loss",
        "noise_first_success",
    ]  # fmt: skip
    assert (table["index"] == drawn.index.numpy()).all()
    assert (table["label"] == drawn.labels.numpy()).all()
    assert (table["clean"] == predict(linear, to_float(drawn.images)).numpy()).all()
    lost = (table["clean"] != table["label"]) | (table["l2_prediction"] != table["label"])
    assert (table["l2_lost"] == lost).all()  # a fooled image stays where it was fooled
    assert table["l2_lost"].mean() == pytest.approx(1 - found.summary()["robust_accuracy"]["l2"])
    attacked = table["clean"] == table["label"]
    assert table["l2_norm"].max() <= 0.4 + 1e-5
    assert (table["l2_norm"][attacked] > 0).all()
    assert (table["noise_norm"][attacked] <= EPS + 1e-6).all()
    assert (table["noise_norm"][attacked] > EPS - 1e-6).all()


class Valley(nn.Module):
    """Two classes; misclassified only at mean intensities near .53: an attack runs through."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        margin = (mean - 0.53).abs() * 10 - 0.1  # class 0 is right where this is above 0
        return torch.stack([margin - mean, -mean], 1)


def test_any_iterate_counts_unless_only_the_last_is_asked_for() -> None:
    images = torch.full((6, 1, 4, 4), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] += torch.arange(6, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 0, 0, 0])
    data = ImageData(images, labels, ("a", "b"), "x", "test", torch.arange(6))
    attack = specs("pgd,start=clean,steps=2,eps=0.06,step_size=0.03")  # into it and out again
    any_, last = (
        evaluate(as_loaded(Valley()), data, attack, verdict=verdict) for verdict in ("any", "last")
    )
    assert any_.clean.tolist() == [0] * 6
    assert any_.lost["pgd"].all()
    assert any_.summary()["verdict"] == "any"
    assert last.summary()["verdict"] == "last"
    assert not last.lost["pgd"].any()


@pytest.mark.parametrize("attack", ["pgd,steps=3", "pgd,steps=3,restarts=2", "fgsm", "noise"])
@pytest.mark.parametrize("eps", [0.03, 0.06])
def test_any_is_at_or_below_last(
    attack: str, eps: float, linear: LoadedModel, drawn: ImageData
) -> None:
    spec = specs(f"{attack},eps={eps}")
    any_, last = (
        evaluate(linear, drawn, spec, verdict=verdict).lost[spec[0].condition]
        for verdict in ("any", "last")
    )
    assert (last <= any_).all()


def test_the_last_verdict_is_of_the_last_iterate(linear: LoadedModel, drawn: ImageData) -> None:
    found = evaluate(linear, drawn, specs("pgd,steps=3,eps=0.05"), verdict="last")
    x, y = to_float(drawn.images), drawn.labels
    attacked = pgd(linear.model, x, y, steps=3, eps=0.05, ids=drawn.keys, mode="last")
    right = torch.from_numpy(found.clean) == y
    prediction = predict(linear, attacked)
    assert (found.found["pgd"].prediction[right] == prediction[right].numpy()).all()
    assert (found.found["pgd"].lost == ((prediction != y) | ~right).numpy()).all()
    size = perturbation_norm(attacked - x, "linf")
    assert found.found["pgd"].norm[right] == pytest.approx(size[right].numpy(), abs=1e-6)


def test_batch_size_order_and_layout_change_nothing(digits_test: ImageData) -> None:
    torch.manual_seed(0)
    loaded = as_loaded(build_model("resnet8", classes=10, channels=1, image_size=8))
    data = draw(digits_test, 60)
    data = replace(data, labels=predict(loaded, to_float(data.images)))  # all right, untrained
    attacks = specs("pgd,steps=4,eps=0.01,restarts=2", "noise")
    wanted = evaluate(loaded, data, attacks)
    assert 0 < wanted.found["pgd"].lost.mean() < 1
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    runtime = Runtime("cpu", "float32", channels_last=True)
    for found, rows in (
        (evaluate(loaded, data, attacks, batch_size=7), np.arange(60)),
        (evaluate(loaded, data.take(order), attacks, batch_size=32), order.numpy()),
        (evaluate(loaded, data, attacks, batch_size=32, runtime=runtime), np.arange(60)),
    ):
        assert (found.clean == wanted.clean[rows]).all()
        for name in ("pgd", "noise"):
            assert (found.found[name].lost == wanted.found[name].lost[rows]).all()
            assert found.found[name].norm == pytest.approx(wanted.found[name].norm[rows], abs=1e-6)


def test_the_seed_reaches_the_draws(linear: LoadedModel, drawn: ImageData) -> None:
    attack = specs("pgd,steps=1,step_size=1e-6,eps=0.1")  # nearly the random start alone
    norms = [evaluate(linear, drawn, attack, seed=seed).found["pgd"].norm for seed in (0, 0, 1)]
    assert (norms[0] == norms[1]).all()
    assert (norms[0] != norms[2]).any()


def test_a_plugin_that_returns_inputs_only(
    linear: LoadedModel, drawn: ImageData, tmp_path: Path
) -> None:
    attack = specs(plugin(tmp_path, "return 1 - inputs"))
    found = evaluate(linear, drawn, attack)
    x, y = to_float(drawn.images), drawn.labels
    wanted = (predict(linear, 1 - x) != y) | (predict(linear, x) != y)
    assert (found.found["mine"].lost == wanted.numpy()).all()
    assert "worst" in found.summary()["robust_accuracy"]


def test_summary_is_plain_json(linear: LoadedModel, drawn: ImageData) -> None:
    summary = evaluate(linear, drawn, specs("pgd,steps=2,eps=0.05", "noise"), seed=3).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["model"] == "linear"
    assert (summary["data"], summary["split"], summary["samples"]) == ("digits", "test", 300)
    assert summary["seed"] == 3
    assert [a["condition"] for a in summary["attacks"]] == ["pgd", "noise"]
    assert set(summary["robust_accuracy"]) == {"pgd", "noise", "worst"}
    for name, accuracy in summary["robust_accuracy"].items():
        low, high = summary["robust_accuracy_ci"][name]
        assert low <= accuracy <= high
    low, high = summary["clean_accuracy_ci"]
    assert low < summary["clean_accuracy"] < high


@pytest.mark.parametrize(
    ("successes", "samples"),
    [(0, 10), (10, 10), (1, 10), (7, 23), (500, 1000), (999, 1000), (0, 1)],
)
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_is_clopper_and_pearsons(successes: int, samples: int, level: float) -> None:
    wanted = stats.binomtest(successes, samples).proportion_ci(level, method="exact")
    found = accuracy_interval(successes, samples, level)
    assert found == pytest.approx([wanted.low, wanted.high], abs=1e-9)


class Kills(nn.Module):
    """Right on everything until an image is brighter than `above`; then NaN."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).amax(1)
        logits = torch.stack([bright * 0 + 2, bright * 0], 1)
        return torch.where(bright[:, None] > self.above, torch.nan, logits)


def dark_images() -> ImageData:
    images = torch.full((8, 1, 4, 4), 100, dtype=torch.uint8)
    return ImageData(
        images, torch.zeros(8, dtype=torch.int64), ("a", "b"), "dark", "test", torch.arange(8)
    )


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="net: expected finite logits"):
        evaluate(as_loaded(Kills(0.1)), dark_images(), [])
    attack = specs(plugin(tmp_path, "return inputs + 0.5"))
    with pytest.raises(UserError, match="net under mine: expected finite logits"):
        evaluate(as_loaded(Kills(0.8)), dark_images(), attack)
    with pytest.raises(UserError, match="finite loss"):
        evaluate(as_loaded(Kills(0.401)), dark_images(), specs("pgd"))


def test_outputs_that_are_no_logits() -> None:
    for encoder, message in (
        (nn.Flatten(), r"logits of shape \(8, 2\); got \(8, 16\)"),
        (nn.Identity(), r"logits of shape \(8, 2\); got \(8, 1, 4, 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(as_loaded(encoder), dark_images(), specs("pgd"))


def test_requests_that_cannot_be_meant(linear: LoadedModel, drawn: ImageData) -> None:
    with pytest.raises(UserError, match="a name each; got pgd, pgd; name them apart with as=NAME"):
        evaluate(linear, drawn, specs("pgd", "pgd,steps=5"))
    with pytest.raises(UserError, match="--verdict expects one of any, last; got 'first'"):
        evaluate(linear, drawn, [], verdict="first")
    with pytest.raises(UserError, match="linear head"):
        evaluate(as_loaded(nn.Flatten(), head=False), drawn, [])


def test_a_network_that_is_always_wrong_is_not_attacked() -> None:
    data = dark_images()
    wrong = ImageData(
        data.images, torch.ones(8, dtype=torch.int64), data.classes, "dark", "test", data.index
    )
    found = evaluate(as_loaded(Kills(2.0)), wrong, specs("pgd", "noise"))
    summary = found.summary()
    assert summary["clean_accuracy"] == 0
    assert summary["robust_accuracy"] == {"pgd": 0, "noise": 0, "worst": 0}
    assert len(found.table()) == 8


def test_progress_is_told_of_every_image(linear: LoadedModel, drawn: ImageData) -> None:
    told: dict[str, list[int]] = {}

    class Spy(Silent):
        @contextmanager
        def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Task]:
            told[what] = [total, 0]

            def advance(n: int) -> None:
                told[what][1] += n

            yield Task(advance)

    found = evaluate(linear, drawn, specs("fgsm"), batch_size=64, progress=Spy())
    right = int((found.clean == drawn.labels.numpy()).sum())
    assert told == {"clean": [300, 300], "fgsm": [right, right]}
    assert set(found.summary()["images_per_second"]) == {"clean", "fgsm"}


# --- networks that draw, attacks without a bound, attacks on layers ------------------------------


class Noisy(nn.Module):
    """A network behind noise of its own."""

    def __init__(self, net: nn.Module, spread: float) -> None:
        super().__init__()
        self.net, self.spread = net, spread

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.spread * torch.randn_like(x))


class Louder(nn.Module):
    """The same network with logits a thousand times as large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 1000


class Heard(Silent):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_random_network_is_not_robust_by_luck(linear: LoadedModel, drawn: ImageData) -> None:
    """No image leaves at a draw that happened to fool the network."""
    torch.manual_seed(0)
    noisy = replace(linear, model=Noisy(linear.model, 0.2))  # type: ignore[arg-type]
    attack, heard = specs("pgd,eps=0.05,steps=10")[0], Heard()
    found = evaluate(noisy, drawn, [attack], progress=heard)
    assert found.random
    assert "autoattack,version=rand" in "".join(heard.lines)
    x = to_float(drawn.images)
    strong = pgd(linear.model, x, drawn.labels, eps=0.05, steps=10, ids=drawn.keys)
    plain = float((predict(linear, strong) == drawn.labels).float().mean())
    assert found.summary()["robust_accuracy"]["pgd"] < plain + 0.1
    # So confident that the probabilities of the other classes are 0 to the last bit.
    sure = replace(linear, model=Noisy(Louder(linear.model), 0.01))  # type: ignore[arg-type]
    assert evaluate(sure, drawn, [attack]).random
    quiet = Heard()
    assert not evaluate(linear, drawn, [], progress=quiet).random
    assert quiet.lines == []


def test_attacks_without_a_bound_say_how_far_and_are_not_the_worst(
    linear: LoadedModel, drawn: ImageData
) -> None:
    found = evaluate(linear, drawn, specs("fgsm,eps=0.01", "deepfool", "fab,eps=none,norm=l2"))
    summary = found.summary()
    robust = summary["robust_accuracy"]
    assert robust["deepfool"] == robust["fab"] == 0
    assert robust["worst"] == robust["fgsm"] > 0
    # The smallest, not the first found: on a linear network both are the distance to the boundary.
    assert summary["median_norm"]["deepfool"] == pytest.approx(
        summary["median_norm"]["fab"], rel=0.05
    )
    bounded = evaluate(linear, drawn, specs("deepfool,eps=0.1"))
    within = found.found["deepfool"].norm <= 0.1
    assert (bounded.found["deepfool"].lost == (within | ~found.right)).mean() > 0.99


def test_a_transferred_smallest_perturbation_counts_within_eps_only(
    checkpoints: dict[str, Path], drawn: ImageData
) -> None:
    network = load_model(checkpoints["st"])
    text = f"fab,steps=5,eps=0.05,surrogate={checkpoints['at']}"
    spec = bind(parse_attack(text, eps=EPS), network, Runtime.of("cpu"))
    found = evaluate(network, drawn, [spec]).found["fab"]
    assert found.norm.max() <= 0.05 * 1.001
    assert (found.norm == 0).any()


def test_the_verdict_is_in_float32(linear: LoadedModel, drawn: ImageData) -> None:
    found = evaluate(linear, drawn, specs("pgd,eps=0.05"), runtime=Runtime.of("cpu", "bf16"))
    assert (found.clean == predict(linear, to_float(drawn.images)).numpy()).all()


@pytest.mark.parametrize("text", ["cka,steps=2,layer=avgpool", "feature,steps=2,towards=other"])
def test_a_small_rest_joins_the_batch_before(
    text: str, checkpoints: dict[str, Path], drawn: ImageData
) -> None:
    network = load_model(checkpoints["at"])
    right = int(evaluate(network, drawn, []).right.sum())
    for batch_size in (right - 1, right - 3):  # one and three images would be left over
        found = evaluate(network, drawn, specs(text), batch_size=batch_size)
        assert (next(iter(found.found.values())).norm[found.right] > 0).all()


def test_a_users_attack_that_fails_is_named(
    linear: LoadedModel, drawn: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="mine failed with ValueError: too dark; --debug"):
        evaluate(linear, drawn, specs(plugin(tmp_path, "raise ValueError('too dark')")))
