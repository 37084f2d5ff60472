"""The report: what stands in it, what it is made of, what is said where something is missing."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_folder import EPS, LAYERS, NETWORKS, make_folder

from repsim.compare import AllPairs
from repsim.errors import UserError
from repsim.findings import Finding, Network, Number, findings_from_json
from repsim.report import write_report
from repsim.report.curves import by_distance, same_layer
from repsim.report.explorer import _library
from repsim.report.marks import domain, mark
from repsim.report.pack import NO_INTERVAL, NOT_DEFINED, pack
from repsim.report.read import read_study
from repsim.report.words import interval, number, pretty, seconds, size
from repsim.similarity import Pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report."""
    where = tmp_path_factory.mktemp("study")
    make_folder(where)
    write_report(where)
    return where


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Finding]:
    return findings_from_json((folder / "findings.json").read_text())


class Reader(HTMLParser):
    """Elements, their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


# What stands in the page


def test_every_number_stands_beside_its_command(html: str, found: list[Finding]) -> None:
    text = " ".join(" ".join(read(html).text).split())
    rows = re.findall(r"<tr><td>.*?</tr>", html, re.S)
    assert len(found) == 8
    for one in found:
        assert pretty(one.claim) in text
        assert pretty(one.reason) in text
        for n in (*one.differences, *one.numbers, *one.controls):
            value = number(n.value, sign=n.signed or n.outcome is not None)
            ends = interval(n.lower, n.upper, sign=n.signed or n.outcome is not None)
            mine = [row for row in rows if f"<strong>{value}</strong>" in row and ends in row]
            assert mine, (n.label, value)
            # One of the rows with that value links to a list item that holds that command.
            links = {link for row in mine for link in re.findall(r'href="#(c\d-\d+)"', row)}
            said = {
                re.sub(r"<.*?>", "", re.search(rf'<li id="{x}"[^>]*>(.*?)</li>', html, re.S)[1])
                for x in links
            }
            command = n.command.replace("&", "&amp;").replace('"', "&#34;").replace(">", "&gt;")
            assert command in said


def test_verdicts_are_told_apart_without_colour(html: str, found: list[Finding]) -> None:
    signs = {
        "holds": "✓",
        "does not hold": "✗",
        "not resolved": "?",
        "not run": "–",
    }
    pills = re.findall(
        r'<span class="pill \w+"><span aria-hidden="true">(.)</span> (.*?)</span>', html
    )
    assert pills[: len(found)] == [(signs[one.verdict], one.verdict) for one in found]
    assert pills == pills[: len(found)] * 2  # in the table, and at each finding


def test_papers_values_and_outcomes_stand_beside(html: str, found: list[Finding]) -> None:
    papers = [n for one in found for n in one.differences if n.paper is not None]
    assert papers
    for n in papers:
        assert re.search(rf'data-label="paper">{re.escape(number(n.paper, sign=True))}', html)
    for n in (n for one in found for n in one.differences):
        assert f">{n.outcome}</span>" in html


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    for tag, attributes in read(html).tags:
        for name in ("src", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        if tag == "a":
            assert re.match(r"#|figures/", attributes["href"] or "")
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for t, a in read(html).tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert len(html.encode()) < 5e6


def test_headings_step_by_one_and_ids_are_unique(html: str) -> None:
    tags = read(html).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for t, a in tags if t == "a" and (a["href"] or "").startswith("#")}
    assert links <= set(ids)
    labels = [a for t, a in tags if t == "img" and not (a.get("alt") or "").strip()]
    assert not labels


def test_text_has_contrast(html: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", html))
    pairs = [(colors[name], "#ffffff") for name in ("ink", "soft", "accent")]
    pairs += [(colors[k], colors[f"{k}-wash"]) for k in ("holds", "fails", "open", "missing")]
    pairs += [(colors["holds"], "#ffffff"), (colors["fails"], "#ffffff")]
    for one, other in pairs:
        assert contrast(one, other) >= 4.5, (one, other)


def contrast(one: str, other: str) -> float:
    def light(color: str) -> float:
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    a, b = sorted([light(one), light(other)])
    return (b + 0.05) / (a + 0.05)


def test_colour_maps_rise_steadily_in_lightness() -> None:
    """Ordered by lightness, so for every colour vision and in grey; CIE L*."""
    from repsim.report.explorer import _palette

    light = []
    for color in _palette():
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        y = float(linear @ [0.2126, 0.7152, 0.0722])
        light.append(116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y)
    steps = np.diff(light)
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.mean()


def test_accuracies_settings_and_stages(html: str) -> None:
    text = " ".join(" ".join(read(html).text).split())
    for words in (
        "90.0%", "[85.0%, 95.0%]", "digits", "resnet8", "pgd,steps=3", "a test's",
        "supervised, adversarial training (16/255), seed 0", "abababababab", "1 min 01 s",
        "36 min 36 s in all; 1 network was trained before", "checkpoints: ready.pt",
        "clean (n = 200)", "pgd (n = 200)", "as each recipe says",
        "train, compare cuda, float32, a large one, torch 2.1",
        "pgd,steps=3 (eps 8/255, step size 2.5·eps/steps, steps 3)",
        "repsim evaluate --model checkpoints/sl-st-0.pt --attack pgd,steps=3 --samples 200",
         "repsim reproduce universal --stop-after train-sl-st-0",
        "arXiv:2302.02502", "@software{repsim", "2026-01-02",
    ):  # fmt: skip
        assert words in text, words


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>&\"'"
    networks = [Network(f"{one.name}{bad}", one.scheme, one.scenario, one.seed, one.eps)
                for one in NETWORKS[:4]]  # fmt: skip
    make_folder(tmp_path, networks)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert bad not in html
    assert not [a for t, a in read(html).tags if t == "img" and "onerror" in a]
    assert all((a.get("src") or "").startswith("data:") for t, a in read(html).tags if t == "img")
    data = json.loads(re.search(r'id="matrices">(.*?)</script>', html, re.S)[1])
    assert data["sides"][0][0] == networks[0].name
    assert f"| {networks[0].name.replace('|', chr(92) + '|')} |" in (
        tmp_path / "summary.md"
    ).read_text(encoding="utf-8")


# What is beside it


def test_tables_hold_every_number(folder: Path, found: list[Finding]) -> None:
    with open(folder / "tables" / "numbers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [n for one in found for n in (*one.differences, *one.numbers, *one.controls)]
    assert [row["label"] for row in rows] == [n.label for n in numbers]
    for row, n in zip(rows, numbers, strict=True):
        assert row["value"] == ("" if n.value != n.value else repr(n.value))
        assert row["networks"] == "; ".join(n.networks)
    with open(folder / "tables" / "verdicts.csv", encoding="utf-8", newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [one.verdict for one in found]
    assert len((folder / "tables" / "networks.csv").read_text().splitlines()) == 1 + len(NETWORKS)


def test_summary_has_verdicts_and_deciding_numbers(folder: Path, found: list[Finding]) -> None:
    text = (folder / "summary.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    for one in found:
        assert any(line.startswith(f"| {one.key} |") and f"**{one.verdict}**" in line
                   for line in lines)  # fmt: skip
        for n in one.differences:
            assert f"{number(n.value, sign=True)} {interval(n.lower, n.upper, sign=True)}" in text
            assert n.command.replace("|", "\\|") in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("| sl-")]
    assert set(widths) == {4}


def test_figures_are_there_twice(folder: Path, html: str) -> None:
    names = re.findall(r'<figure id="figure-([\w-]+)">', html)
    wanted = {f"finding-{k}" for k in ("1", "2", "3", "4-clean", "4-own", "4-shared", "5-sl", "6",
                                       "7", "8-predictions", "8-probes")}  # fmt: skip
    wanted |= {"accuracy", "decisions", "heatmaps-attacked", "heatmaps-clean", "probes-sl-st-0"}
    assert wanted <= set(names)
    for name in names:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_in_the_page_are_whole(html: str) -> None:
    """XML that parses, with words that can be read, and nothing from elsewhere."""
    pictures = re.findall(r'<img src="data:image/svg\+xml,([^"]*)"', html)
    assert len(pictures) > 10
    for text in pictures:
        svg = unquote(text)
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 5
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith(("#", "data:image/png")) for link in links)


# What is missing is said


def test_study_alone_gives_a_page(tmp_path: Path, folder: Path) -> None:
    shutil.copy(folder / "study.json", tmp_path)
    text = " ".join(read(write_report(tmp_path).read_text(encoding="utf-8")).text)
    for words in ("No findings: that stage has not run", "there is no similarity.h5",
                  "there is no accuracy.csv", "No probes: that stage has not run"):  # fmt: skip
        assert words in text
    assert "bokeh" not in text.lower()


@pytest.mark.parametrize("leave", ["probes.csv", "agreement.csv", "accuracy.csv", "findings.json"])
def test_any_one_file_may_be_missing(tmp_path: Path, folder: Path, leave: str) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.name != leave:
            shutil.copy(path, tmp_path)
    study = read_study(tmp_path)
    assert study.own == "pgd"
    assert study.shared == "shared"
    assert study.robust == (None if leave == "accuracy.csv" else "pgd")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("study.json", None, "expected the folder of a study"),
        ("study.json", "{", "expected JSON"),
        ("study.json", "[]", "expected a study's settings"),
        ("study.json", '{"networks": [{"name": "a"}]}', "every network expects name, scheme"),
        ("findings.json", '[{"key": "1"}]', "expected findings with key"),
        ("findings.json", '{"other": 1}', "expected findings with key"),
        ("accuracy.csv", "network,accuracy\na,1\n", "missing: condition"),
        ("similarity.h5", "no", "similarity.h5: expected"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, folder: Path, name: str, content: str | None, words: str
) -> None:
    shutil.copy(folder / "study.json", tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_networks_of_other_architectures_go_in(tmp_path: Path) -> None:
    """A network with other layers is left out of the curves over layers, and is in the panels."""
    from report_folder import similarities, study_json

    from repsim.result.pairs import save_pairs

    few = [NETWORKS[0], NETWORKS[1]]
    other = Network("wide", "scl", "st", 0)
    a, b = similarities(few), similarities([other], ("conv", "block.0", "block.1"))
    keys = [*a.keys, *b.keys]
    value = np.full((len(keys), len(keys)), 0.25)
    value[: len(a.keys), : len(a.keys)] = a.pairs.value
    value[len(a.keys) :, len(a.keys) :] = b.pairs.value
    pairs = Pairs(value, None, np.array([], dtype=np.int64), {"estimator": "debiased"}, [])
    save_pairs(tmp_path / "similarity.h5", AllPairs(keys, a.samples, "cka", pairs))
    (tmp_path / "study.json").write_text(json.dumps(study_json([*few, other])))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert write_report(tmp_path).read_text(encoding="utf-8") == html  # the same every time
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    data = json.loads(re.search(r'id="matrices">(.*?)</script>', html, re.S)[1])
    assert [one["names"] for one in data["layers"]] == [
        list(LAYERS),
        ["conv", "block.0", "block.1"],
    ]


def test_seeds_of_one_recipe_may_differ_in_layers(tmp_path: Path) -> None:
    """Every finding's figure is of networks with the same layers; the others are left out."""
    from report_folder import similarities, study_json

    from repsim.findings import Evidence
    from repsim.findings.api import findings
    from repsim.result.pairs import save_pairs

    a = similarities(NETWORKS[:4])
    others = [
        Network(f"wide-{one.scheme}-{one.scenario}", one.scheme, one.scenario, 5, one.eps, "wide")
        for one in [*NETWORKS[:4], Network("x", "sl", "full-at", 0, EPS)]
    ]
    b = similarities(others, ("conv", "block.0", "block.1"))
    keys = [*a.keys, *b.keys]
    value = np.full((len(keys), len(keys)), 0.25)
    value[: len(a.keys), : len(a.keys)] = a.pairs.value
    value[len(a.keys) :, len(a.keys) :] = b.pairs.value
    pairs = Pairs(value, None, np.array([], dtype=np.int64), {"estimator": "debiased"}, [])
    everything = AllPairs(keys, a.samples, "cka", pairs)
    networks = [*NETWORKS[:4], *others]
    save_pairs(tmp_path / "similarity.h5", everything)
    (tmp_path / "study.json").write_text(json.dumps(study_json(networks)))
    found = findings(Evidence(networks, everything, own="pgd", shared="shared"))
    (tmp_path / "findings.json").write_text(json.dumps([one.to_json() for one in found]))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    names = re.findall(r'<figure id="figure-(finding-[\w-]+)">', html)
    assert {"finding-1", "finding-2", "finding-3", "finding-4-clean"} <= set(names)


def test_old_figures_go_and_a_users_own_stay(tmp_path: Path) -> None:
    make_folder(tmp_path, NETWORKS[:4])
    (tmp_path / "figures").mkdir()
    for name in ("probes-old-0.pdf", "finding-7.png", "mine.png"):
        (tmp_path / "figures" / name).write_bytes(b"")
    write_report(tmp_path)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"mine.png", "finding-1.png"} <= left
    assert not left & {"probes-old-0.pdf", "finding-7.png"}


# Its parts


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.booleans(),
       st.sampled_from([1.0, 3.0, 50.0, 1e4]))  # fmt: skip
def test_packed_is_the_matrix_to_the_digits_shown(
    seed: int, rows: int, columns: int, intervals: bool, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    count = rows + columns
    value = rng.uniform(-scale, scale, (count, count))
    value[rng.random(value.shape) < 0.1] = np.nan
    replicates = rng.normal(value, 0.02, (5, count, count)) if intervals else None
    keys = [("a", "clean", str(i)) for i in range(rows)]
    keys += [("b", "clean", str(i)) for i in range(columns)]
    pairs = AllPairs(keys, 9, "cka", Pairs(value, replicates, np.full(5, 3), {}, []))
    packed = pack(pairs, [("a", "clean"), ("b", "clean")], [(0, 1), (1, 0), (1, 1)])
    assert set(packed.blocks) == {"0,1", "1,1"}
    raw = base64.b64decode(packed.text)
    assert len(raw) == 4 * packed.cells
    whole = np.frombuffer(raw[: 2 * packed.cells], "<i2")
    half = np.frombuffer(raw[2 * packed.cells :], "<u2")
    offset, m, n = packed.blocks["0,1"]
    assert (m, n) == (rows, columns)
    got = np.where(whole == NOT_DEFINED, np.nan, whole * packed.step)[offset : offset + m * n]
    wanted = value[:rows, rows:].ravel()
    np.testing.assert_allclose(got, wanted, atol=packed.step / 2 * 1.0001)
    assert packed.step == 1e-4 or scale > 3
    assert packed.step * 3276 < scale or packed.step == 1e-4
    if not intervals:
        assert (half == NO_INTERVAL).all()
    else:
        side = pairs.matrix(("a", "clean"), ("b", "clean"))
        length = (side["similarity"] - side["lower"]).values.ravel()
        found = np.where(half == NO_INTERVAL, np.nan, half * packed.step)[offset : offset + m * n]
        np.testing.assert_allclose(found, length, atol=packed.step / 2 * 1.0001)


def test_what_does_not_fit_is_left_out_and_said() -> None:
    pairs = AllPairs([("a", "c", "1"), ("a", "c", "2"), ("b", "c", "1")], 9, "cka",
                     Pairs(np.eye(3), None, np.array([], dtype=np.int64), {}, []))  # fmt: skip
    sides = [("a", "c"), ("b", "c")]
    packed = pack(pairs, sides, [(0, 0), (0, 1), (1, 1)], limit=5)
    assert set(packed.blocks) == {"0,0", "1,1"}
    assert packed.left_out == [(("a", "c"), ("b", "c"))]
    assert packed.cells == 5


def test_curves_are_the_named_numbers(folder: Path) -> None:
    """The mean of the diagonal is the alignment, of the far distances the long-range similarity."""
    pairs = read_study(folder).similarity
    assert pairs is not None
    a, b = ("sl-st-0", "clean"), ("sl-st-0", "pgd")
    curve = same_layer(pairs, [(a, b)])
    assert curve.value.mean() == pytest.approx(pairs.alignment(a, b)["alignment_mean"])
    matrix = pairs.matrix(a, b)
    np.testing.assert_allclose(curve.lower, np.diagonal(matrix["lower"]))
    count = len(LAYERS)
    far = [d for d in range(count) if d > count / 2]
    weights = [count - d for d in far]
    distance = by_distance(pairs, [a])
    assert distance.value[0] == pytest.approx(1)
    assert np.average(distance.value[far], weights=weights) == pytest.approx(
        pairs.long_range(a)["long_range"]
    )
    two = same_layer(pairs, [(a, b), (a, ("sl-st-0", "noise"))])
    noise = same_layer(pairs, [(a, ("sl-st-0", "noise"))])
    np.testing.assert_allclose(two.value, (curve.value + noise.value) / 2)


def test_marks_stand_where_the_numbers_are() -> None:
    one = Number("k", "l", 0.5, 0.25, 0.75, paper=1.0)
    text = str(mark(one, (0.0, 1.0), None))
    # 5 points of edge on both sides of 140
    assert 'd="M40.0 9.0H110.0"' in text
    assert 'cx="75.0"' in text
    assert "M145.0 4.0l4 5" in text
    assert "band" not in text
    band = str(mark(Number("k", "l", 0.0), (-0.1, 0.1), 0.02))
    assert 'x="61.0" y="0" width="28.0"' in band
    assert "not defined" in str(mark(Number("k", "l", float("nan")), (0.0, 1.0), None))
    assert domain([one], None) == (0.0, 1.0)
    assert domain([Number("k", "l", 0.001, 0.0, 0.002)], 0.02) == (-0.04, 0.04)
    assert domain([Number("k", "l", -0.5, -0.6, -0.4)], 0.02) == (-0.6, 0.04)


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.41234, False, "0.412"), (-0.0312, False, "−0.031"), (0.412, True, "+0.412"),
     (-0.0001, False, "0.000"), (-0.0001, True, "0.000"), (0.0, True, "0.000"), (None, False, "–"),
     (float("nan"), True, "–")],
)  # fmt: skip
def test_numbers_in_words(value: float | None, sign: bool, text: str) -> None:
    assert number(value, sign=sign) == text


def test_times_sizes_and_minus_signs() -> None:
    assert [seconds(x) for x in (None, 0.44, 9.96, 41.4, 60, 3599.6, 7502)] == [
        "–", "0.4 s", "10.0 s", "41 s", "1 min 00 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
    assert [size(x) for x in (EPS, 0.15, None, 16 / 255)] == ["8/255", "0.15", "", "16/255"]
    assert pretty("at - st: -0.1 in layer-2 e-3") == "at − st: −0.1 in layer-2 e-3"


def test_bokehs_core_is_all_that_stands_in_the_page() -> None:
    library = _library()
    assert len(library) < 2e6
    assert "</script" not in library
