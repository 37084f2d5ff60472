"""Every attack against another library's, image by image, at equal settings.

    python analyses/benchmark/strength.py                    # all; writes strength.md and .json
    python analyses/benchmark/strength.py --only autoattack  # one group; its rows are replaced

256 test images of CIFAR-10 (found as `repsim --data cifar10` finds them), the two networks of
checkpoints/. `only there` counts images that the other library fools and repsim does not; random
starts differ between libraries, so a few images at the edge go either way.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import foolbox
import torch
import torchattacks
from art.attacks.evasion import FeatureAdversariesPyTorch
from art.estimators.classification import PyTorchClassifier
from benchmark import hardware
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from repsim import attacks
from repsim.checkpoint import load_model
from repsim.data import draw, load_data, to_float
from repsim.hooks import capture
from repsim.losses import cross_entropy
from repsim.runtime import Runtime
from repsim.similarity import cka

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parent.parent / "checkpoints"
NETWORKS = {"st": "cifar10-resnet20s2-st.pt", "at": "cifar10-resnet20s2-at.pt"}
# For the standard network a size that leaves something to disagree about; AutoAttack has 8/255.
EPS = {
    "st": {"linf": 1 / 255, "l2": 0.2, "l1": 5.0},
    "at": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
}
OURS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LAYER = "avgpool"
# Shorter than published where the other side would take half an hour.
FAB_STEPS, QUERIES = 30, 500


@dataclass(frozen=True)
class Row:
    """One line of the table; a measure is robust accuracy, a median norm, a loss or a distance."""

    network: str
    attack: str
    reference: str
    measure: str
    ours: float
    theirs: float | None
    only_there: int | None
    note: str = ""


class Case:
    """A network, the images that it has right, and what is asked of both sides."""

    def __init__(self, name: str, samples: int) -> None:
        self.name, self.eps = name, EPS[name]
        self.model = load_model(CHECKPOINTS / NETWORKS[name]).model.eval()
        data = draw(load_data("cifar10", "test"), samples)
        self.samples = len(data)
        with torch.no_grad():
            right = self.model(to_float(data.images)).argmax(1) == data.labels
        data = data.take(torch.nonzero(right)[:, 0])
        self.x, self.y, self.ids = to_float(data.images), data.labels, data.keys

    def exact(self) -> Case:
        """In float64, where no rounding decides a gradient's sign."""
        case = copy.copy(self)
        case.model, case.x = copy.deepcopy(self.model).double(), self.x.double()
        return case

    def right(self, attacked: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(attacked).argmax(1) == self.y

    def loss(self, attacked: Tensor) -> float:
        with torch.no_grad():
            return float(cross_entropy(self.model(attacked), self.y).mean())

    def verdict(
        self, attack: str, reference: str, ours: Tensor, theirs: Tensor, note: str = ""
    ) -> Row:
        """Robust accuracy of both, over all images."""
        a, b = self.right(ours), self.right(theirs)
        return Row(
            self.name, attack, reference, "robust accuracy", int(a.sum()) / self.samples,
            int(b.sum()) / self.samples, int((a & ~b).sum()), note,
        )  # fmt: skip

    def same_loss(self, attack: str, reference: str, ours: Tensor, theirs: Tensor) -> Row:
        return Row(
            self.name, attack, reference, "mean loss", self.loss(ours), self.loss(theirs), None,
            f"in float64; largest difference of a pixel {float((ours - theirs).abs().max()):.1e}",
        )  # fmt: skip

    def norms(self, attack: str, reference: str, ours: Tensor, theirs: Tensor, norm: str) -> Row:
        """Median size of the smallest perturbations; of images that either fails on, none."""
        a = attacks.perturbation_norm(ours - self.x, norm)
        b = attacks.perturbation_norm(theirs - self.x, norm)
        won, lost = ~self.right(ours), ~self.right(theirs)
        both = won & lost
        ratio = (a[both] / b[both]).median()
        return Row(
            self.name, attack, reference, f"median {norm} norm", float(a[both].median()),
            float(b[both].median()), int((~won & lost).sum()),
            f"median of ratios {float(ratio):.3f}; fooled {int(won.sum())} and {int(lost.sum())}",
        )  # fmt: skip


def reseeded(work: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return work().detach()


def steps(case: Case) -> Iterator[Row]:
    """Single-step and iterative attacks."""
    m, x, y = case.model, case.x, case.y
    fm = foolbox.PyTorchModel(m, bounds=(0, 1))
    wrong = foolbox.criteria.Misclassification(y)
    exact, e = case.exact(), case.eps["linf"]
    yield case.verdict(
        "fgsm", "torchattacks", attacks.fgsm(m, x, y, eps=e), torchattacks.FGSM(m, eps=e)(x, y)
    )
    r = torchattacks.RFGSM(m, eps=e, alpha=e / 2, steps=1)
    yield case.verdict(
        "r-fgsm",
        "torchattacks",
        attacks.rfgsm(m, x, y, eps=e, ids=case.ids),
        reseeded(lambda: r(x, y)),
    )
    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    for norm, kind in kinds.items():
        eps = case.eps[norm]
        ours = attacks.pgd(
            exact.model,
            exact.x,
            y,
            eps=eps,
            norm=norm,
            step_size=eps / 8,
            start="clean",
            mode="last",
        )
        theirs = kind(abs_stepsize=eps / 8, steps=20, random_start=False)
        double = foolbox.PyTorchModel(exact.model, bounds=(0, 1))
        found = theirs.run(double, exact.x, wrong, epsilon=eps)
        yield exact.same_loss(f"pgd {norm}, clean start, last", "foolbox", ours, found)
    kinds["l1"] = foolbox.attacks.L1PGD
    for norm, kind in kinds.items():
        eps = case.eps[norm]
        theirs = kind(abs_stepsize=eps / 8, steps=20, random_start=True)
        found = reseeded(lambda: theirs.run(fm, x, wrong, epsilon=eps))  # noqa: B023
        ours = attacks.pgd(m, x, y, eps=eps, norm=norm, mode="evaluate", ids=case.ids)
        note = "foolbox steps along the rescaled gradient" if norm == "l1" else ""
        yield case.verdict(f"pgd-20 {norm}", "foolbox", ours, found, note)
    mi = torchattacks.MIFGSM(exact.model, eps=e, alpha=e / 10, steps=10, decay=1.0)
    ours = attacks.mim(exact.model, exact.x, y, eps=e, mode="last")
    yield exact.same_loss("mim, last", "torchattacks", ours, mi(exact.x, y))


def apgd(case: Case) -> Iterator[Row]:
    m, x, y = case.model, case.x, case.y
    for norm, eps in case.eps.items():
        for loss in ("ce", "dlr"):
            theirs = APGDAttack(
                m, norm=OURS[norm], eps=eps, loss=loss, seed=0, device="cpu",
                use_largereps=norm == "l1",
            )  # fmt: skip
            ours = attacks.apgd(
                m, x, y, eps=eps, norm=norm, loss=loss, mode="evaluate", ids=case.ids
            )
            yield case.verdict(f"apgd-{loss} {norm}", "pyautoattack", ours, theirs.perturb(x, y))
        targeted = APGDAttack_targeted(
            m, norm=OURS[norm], eps=eps, seed=0, device="cpu", use_largereps=norm == "l1",
            n_target_classes=3,
        )  # fmt: skip
        ours = attacks.apgd(
            m, x, y, eps=eps, norm=norm, loss="dlr-targeted", targets=3, mode="evaluate",
            ids=case.ids,
        )  # fmt: skip
        yield case.verdict(
            f"apgd-t {norm}, 3 targets", "pyautoattack", ours, targeted.perturb(x, y)
        )


def smallest(case: Case) -> Iterator[Row]:
    """Attacks of the smallest norm."""
    m, x, y = case.model, case.x, case.y
    fm = foolbox.PyTorchModel(m, bounds=(0, 1))
    wrong = foolbox.criteria.Misclassification(y)
    for norm, eps in case.eps.items():
        for targets in (0, 3):
            theirs = FABAttack_PT(
                m, norm=OURS[norm], n_restarts=1, n_iter=FAB_STEPS, eps=eps, seed=0,
                targeted=targets > 0, device="cpu", n_target_classes=max(targets, 1),
            )  # fmt: skip
            ours = attacks.fab(
                m, x, y, eps=eps, norm=norm, targets=targets, steps=FAB_STEPS, mode="evaluate",
                ids=case.ids,
            )  # fmt: skip
            name = f"fab-t {norm}, {targets} targets" if targets else f"fab {norm}"
            name += f", {FAB_STEPS} steps"
            yield case.verdict(name, "pyautoattack", ours, theirs.perturb(x, y))
    for norm, kind in (
        ("l2", foolbox.attacks.L2DeepFoolAttack), ("linf", foolbox.attacks.LinfDeepFoolAttack)
    ):  # fmt: skip
        _, found, _ = kind(loss="logits", candidates=10).__call__(fm, x, wrong, epsilons=None)
        yield case.norms(
            f"deepfool {norm}", "foolbox", attacks.deepfool(m, x, y, norm=norm), found, norm
        )
    few = slice(0, 32)
    part = copy.copy(case)
    part.x, part.y, part.ids = x[few], y[few], case.ids[few]
    settings = {"steps": 200, "initial_const": 1e-2}
    cw = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, stepsize=0.01, **settings)
    _, found, _ = cw(fm, part.x, foolbox.criteria.Misclassification(part.y), epsilons=None)
    ours = attacks.cw(m, part.x, part.y, binary_search=5, step_size=0.01, **settings)
    yield part.norms("cw-l2, 5 × 200 steps, 32 images", "foolbox", ours, found, "l2")


def square(case: Case) -> Iterator[Row]:
    m, x, y = case.model, case.x, case.y
    for norm, eps in case.eps.items():
        theirs = SquareAttack(
            m,
            norm=OURS[norm],
            n_queries=QUERIES,
            eps=eps,
            seed=0,
            device="cpu",
            resc_schedule=False,
        )
        ours = attacks.square(
            m, x, y, eps=eps, norm=norm, queries=QUERIES, mode="evaluate", ids=case.ids
        )
        with torch.no_grad():
            found = theirs.perturb(x, y)
        yield case.verdict(f"square {norm}, {QUERIES} queries", "pyautoattack", ours, found)


def autoattack(case: Case) -> Iterator[Row]:
    m, x, y = case.model, case.x, case.y
    runtime = Runtime.of("cpu")
    placed, images = runtime.place(copy.deepcopy(m)), runtime.images(x)
    began = time.perf_counter()
    ours = attacks.autoattack(placed, images, y, mode="evaluate", ids=case.ids)
    middle = time.perf_counter()
    theirs, _ = AutoAttack(m, eps=8 / 255, seed=0).run_standard_evaluation(x, y, batch_size=256)
    seconds = middle - began, time.perf_counter() - middle
    note = f"{seconds[0]:.0f} s and {seconds[1]:.0f} s, {seconds[1] / seconds[0]:.2f} times"
    yield case.verdict("autoattack standard linf", "pyautoattack", ours, theirs, note)
    with Runtime.of("cpu", "bf16").autocast():
        half = attacks.autoattack(placed, images, y, mode="evaluate", ids=case.ids)
    yield case.verdict("autoattack standard linf, bf16", "pyautoattack", half, theirs)


def bf16(case: Case) -> Iterator[Row]:
    """Steps in bfloat16 against the same attack in float32; judged in float32."""
    runtime = Runtime.of("cpu")
    m, x, y = runtime.place(copy.deepcopy(case.model)), runtime.images(case.x), case.y
    for norm, eps in case.eps.items():
        for name, attack, settings in (
            ("pgd-20", attacks.pgd, {}),
            ("apgd-ce", attacks.apgd, {}),
            ("apgd-t, 3 targets", attacks.apgd, {"loss": "dlr-targeted", "targets": 3}),
        ):
            for mode in ("evaluate", "represent"):

                def made(how: str, attack=attack, settings=settings, eps=eps, norm=norm, mode=mode):
                    with Runtime.of("cpu", how).autocast():
                        return attack(
                            m, x, y, eps=eps, norm=norm, mode=mode, ids=case.ids, **settings
                        )

                half, full = made("bf16"), made("float32")
                note = f"mean loss {case.loss(half):.4f} and {case.loss(full):.4f}; {mode} mode"
                yield case.verdict(f"{name} {norm}, bf16", "repsim in float32", half, full, note)


def representation(case: Case) -> Iterator[Row]:
    """Attacks that move an inner layer: CKA(clean, attacked) there, beside PGD's and noise's."""
    m, x, y, ids = case.model, case.x, case.y, case.ids

    def features(images: Tensor) -> Tensor:
        with capture(m, [LAYER]) as layers, torch.no_grad():
            m(images)
            return layers[LAYER].clone()

    clean = features(x)
    noise = cka(clean, features(attacks.noise(m, x, y, ids=ids)))
    pgd = cka(clean, features(attacks.pgd(m, x, y, ids=ids)))
    torch.manual_seed(0)
    flat = clean.flatten(1)
    head = nn.Linear(flat.shape[1], 10)
    fit = torch.optim.LBFGS(head.parameters(), max_iter=100)

    def closure() -> Tensor:
        fit.zero_grad()
        loss = nn.functional.cross_entropy(head(flat), y)
        loss.backward()
        return loss

    fit.step(closure)
    weights = {"weight": head.weight.detach(), "bias": head.bias.detach()}
    made = {
        "contrastive": attacks.contrastive(m, x, y, ids=ids),
        "contrastive, supervised": attacks.contrastive(m, x, y, ids=ids, supervised=True),
        "instance": attacks.instance(m, x, y, ids=ids),
        "feature, l2, away": attacks.feature(m, x, y, ids=ids),
        "feature, cosine, away": attacks.feature(m, x, y, ids=ids, distance="cosine"),
        "feature, towards another": attacks.feature(m, x, y, ids=ids, towards="other"),
        "probe": attacks.probe(m, x, y, ids=ids, layer=LAYER, **weights),
        "cka": attacks.cka_attack(m, x, y, ids=ids),
    }
    for name, attacked in made.items():
        yield Row(
            case.name, name, "none has it", f"CKA(clean, attacked), {LAYER}",
            cka(clean, features(attacked)), None, None,
            f"pgd {pgd:.3f}, noise {noise:.3f}; accuracy left "
            f"{int(case.right(attacked).sum()) / case.samples:.3f}",
        )  # fmt: skip
    yield _art(case, features)


def _art(case: Case, features: Callable[[Tensor], Tensor]) -> Row:
    """Feature adversaries: how near the features of 64 images come to those of another."""
    m, x, y = case.model, case.x[:64], case.y[:64]
    guide = x.roll(1, 0)
    # ART takes features from an nn.Sequential by the number of its layer.
    body = nn.Sequential(_Features(m), nn.Linear(64, 10))
    classifier = PyTorchClassifier(
        body, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu"
    )
    theirs = FeatureAdversariesPyTorch(
        classifier, delta=8 / 255, layer=0, max_iter=20, batch_size=64, step_size=1 / 255,
        random_start=False,
    )  # fmt: skip
    found = torch.from_numpy(theirs.generate(x.numpy(), guide.numpy()))
    ours = attacks.feature(m, x, y, towards="other", guides=guide, step_size=1 / 255, start="clean")
    wanted = features(guide).flatten(1)

    def left(images: Tensor) -> float:
        return float((features(images).flatten(1) - wanted).norm(dim=1).mean())

    return Row(
        case.name, "feature, towards a guide, 64 images", "adversarial-robustness-toolbox",
        "mean l2 distance left", left(ours), left(found), None, f"{left(x):.3f} before",
    )  # fmt: skip


class _Features(nn.Module):
    """The pooled features of one of the networks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.model.encoder.avgpool.register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        self.model(x)
        handle.remove()
        return kept[0].flatten(1)


GROUPS = {
    "steps": steps, "apgd": apgd, "smallest": smallest, "square": square,
    "representation": representation, "autoattack": autoattack, "bf16": bf16,
}  # fmt: skip


def markdown(rows: list[Row], where: str, samples: int) -> str:
    lines = [
        f"{samples} test images of CIFAR-10, networks of checkpoints/. eps for at: linf 8/255, l2 "
        "0.5, l1 12; for st: 1/255, 0.2, 5; AutoAttack and the attacks on representations: 8/255. "
        f"{where}, torch {torch.__version__}. Made by strength.py.",
        "",
        "| network | attack | against | measure | repsim | there | fooled only there | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        theirs = "" if r.theirs is None else f"{r.theirs:.4f}"
        only = "" if r.only_there is None else str(r.only_there)
        lines.append(
            f"| {r.network} | {r.attack} | {r.reference} | {r.measure} | {r.ours:.4f} | {theirs} "
            f"| {only} | {r.note} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(GROUPS), nargs="+", default=list(GROUPS))
    parser.add_argument("--network", choices=list(NETWORKS), nargs="+", default=list(NETWORKS))
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    stored = HERE / "strength.json"
    before = json.loads(stored.read_text())["rows"] if stored.exists() else []
    kept = {(r["network"], r["group"]): [] for r in before}
    for r in before:
        kept[r["network"], r["group"]].append({k: v for k, v in r.items() if k != "group"})
    for name in args.network:
        case = Case(name, args.samples)
        for group, make in GROUPS.items():
            if group not in args.only:
                continue
            rows = []
            for row in make(case):
                rows.append(asdict(row))
                print(json.dumps(rows[-1]), flush=True)
            kept[name, group] = rows
            order = [(n, g) for n in NETWORKS for g in GROUPS if (n, g) in kept]
            everything = [{"group": g, **r} for n, g in order for r in kept[n, g]]
            where = hardware(Runtime.of("cpu"))
            stored.write_text(
                json.dumps(
                    {"hardware": where, "samples": args.samples, "rows": everything}, indent=1
                )
            )
            table = [Row(**r) for key in order for r in kept[key]]
            (HERE / "strength.md").write_text(markdown(table, where, args.samples))


if __name__ == "__main__":
    main()
