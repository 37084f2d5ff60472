"""The report in a real headless browser: what it shows, what it asks for, how it is printed."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folder import LAYERS, NETWORKS, make_folder

from repsim.compare import AllPairs
from repsim.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = os.environ.get("REPSIM_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if BROWSER is None:
    pytest.skip(
        "no browser is installed (apt-get install chromium, or REPSIM_BROWSER=PATH)",
        allow_module_level=True,
    )

CHOSEN = [one for one in NETWORKS if not one.name.startswith("cl-at-1")]
PHONE = {"width": 360, "height": 780}
DESKTOP = {"width": 1360, "height": 900}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AllPairs]:
    """The page, opened where nothing else lies: it needs no other file."""
    folder = tmp_path_factory.mktemp("study")
    pairs = make_folder(folder, CHOSEN)
    alone = tmp_path_factory.mktemp("alone") / "report.html"
    shutil.copy(write_report(folder), alone)
    return alone, pairs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # In a container there is often neither a sandbox nor much shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield running
        running.close()


class Opened:
    """A page with all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def cell(self, panel: str, row: int, column: int) -> tuple[float, float]:
        """Where a cell is on the screen, from bokeh's own axes."""
        self.page.eval_on_selector(f"#{panel}", "one => one.scrollIntoView({block: 'center'})")
        self.page.wait_for_timeout(150)
        x, y = self.page.evaluate(
            """([panel, row, column]) => {
                const find = (views) => {
                    for (const view of views) {
                        if (view.model.name === panel) return view;
                        const inside = find(view.child_views || []);
                        if (inside) return inside;
                    }
                };
                const view = find([...Bokeh.index]), frame = view.frame;
                const box = view.el.getBoundingClientRect();
                return [box.x + frame.x_scale.compute(column), box.y + frame.y_scale.compute(row)];
            }""",
            [panel, row, column],
        )
        return float(x), float(y)

    def tip(self) -> str:
        """The text of the tooltip that is shown."""
        self.page.wait_for_timeout(400)
        return str(
            self.page.evaluate(
                """() => {
                    const texts = [];
                    const walk = (root) => {
                        for (const one of root.querySelectorAll('*')) {
                            if (one.matches('.tip') && one.getBoundingClientRect().width) {
                                texts.push(one.innerText);
                            }
                            if (one.shadowRoot) walk(one.shadowRoot);
                        }
                    };
                    walk(document);
                    return texts.join(' | ');
                }"""
            )
        )

    def drawn(self, panel: str) -> dict[str, Any]:
        """The cells of a panel as bokeh has them."""
        return dict(
            self.page.evaluate(
                """(name) => {
                    for (const doc of Bokeh.documents) {
                        const found = doc.get_model_by_name(name + ':cells');
                        if (found) return Object.fromEntries(
                            Object.entries(found.data).map(([key, list]) => [key, [...list]]));
                    }
                }""",
                panel,
            )
        )


@pytest.fixture
def opened(browser: Any, study: tuple[Path, AllPairs]) -> Iterator[Opened]:
    one = Opened(browser, study[0], viewport=DESKTOP)
    yield one
    assert not one.problems
    one.page.close()


def shown(text: str) -> tuple[float, float, float]:
    """Value, lower and upper end from "0.1234 [0.1200, 0.1300]"."""
    numbers = re.findall(r"-?\d\.\d{4}", text.replace("\u2212", "-"))
    return tuple(map(float, numbers))  # type: ignore[return-value]


def test_opens_without_errors_and_asks_for_nothing(
    browser: Any, study: tuple[Path, AllPairs]
) -> None:
    one = Opened(browser, study[0], viewport=DESKTOP)
    one.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    one.page.wait_for_timeout(500)
    assert one.problems == []
    pictures = one.page.eval_on_selector_all(
        "img", "list => Promise.all(list.map(x => x.decode().then(() => x.naturalWidth, () => 0)))"
    )
    assert len(pictures) > 10
    assert min(pictures) > 100
    asked = [url for url in one.requests if not url.startswith("data:")]
    assert asked == [study[0].as_uri()]
    one.page.close()


def test_every_panel_has_the_values_of_the_matrix(
    opened: Opened, study: tuple[Path, AllPairs]
) -> None:
    for panel in ("grid-0", "grid-3"):
        name = opened.page.eval_on_selector(f"select[data-grid={panel}]", "one => one.value")
        matrix = study[1].matrix((name, "clean"), (name, "pgd"))
        cells = opened.drawn(panel)
        value = np.array(cells["value"]).reshape(len(LAYERS), len(LAYERS))
        np.testing.assert_allclose(value, matrix["similarity"], atol=0.50001e-4)
        assert cells["row"][: len(LAYERS)] == [LAYERS[0]] * len(LAYERS)
        assert cells["column"][: len(LAYERS)] == list(LAYERS)


@pytest.mark.parametrize(("row", "column"), [(0, 5), (4, 1), (5, 5)])
def test_hover_shows_both_layers_value_and_interval(
    opened: Opened, study: tuple[Path, AllPairs], row: int, column: int
) -> None:
    name = opened.page.eval_on_selector("select[data-grid=grid-0]", "one => one.value")
    matrix = study[1].matrix((name, "clean"), (name, "pgd"))
    opened.page.mouse.move(*opened.cell("grid-0", row, column))
    tip = opened.tip()
    assert f"rows {LAYERS[row]}" in tip
    assert f"columns {LAYERS[column]}" in tip
    wanted = [float(matrix[v][row, column]) for v in ("similarity", "lower", "upper")]
    # The ends of the interval are the value ± a half that is rounded too.
    np.testing.assert_allclose(shown(tip), wanted, atol=1.001e-4)
    assert shown(tip)[0] == pytest.approx(wanted[0], abs=0.51e-4)


def test_select_switches_conditions_and_networks(
    opened: Opened, study: tuple[Path, AllPairs]
) -> None:
    page = opened.page
    page.select_option("#compare", "clean|clean")
    name = page.eval_on_selector("select[data-grid=grid-1]", "one => one.value")
    value = np.array(opened.drawn("grid-1")["value"]).reshape(len(LAYERS), -1)
    wanted = study[1].matrix((name, "clean"), (name, "clean"))["similarity"]
    np.testing.assert_allclose(value, wanted, atol=0.50001e-4)
    page.select_option("select[data-grid=grid-1]", "untrained-0")
    value = np.array(opened.drawn("grid-1")["value"]).reshape(len(LAYERS), -1)
    wanted = study[1].matrix(("untrained-0", "clean"), ("untrained-0", "clean"))["similarity"]
    np.testing.assert_allclose(value, wanted, atol=0.50001e-4)
    # A pair whose block is kept the other way round: rows and columns are not mixed up.
    page.select_option("#reading", "pgd")
    page.select_option("select[data-rows=pair-0]", "cl-full-at-0")
    page.select_option("select[data-columns=pair-0]", "sl-st-0")
    value = np.array(opened.drawn("pair-0")["value"]).reshape(len(LAYERS), -1)
    wanted = study[1].matrix(("cl-full-at-0", "pgd"), ("sl-st-0", "pgd"))["similarity"]
    np.testing.assert_allclose(value, wanted, atol=0.50001e-4)
    assert not np.allclose(value, value.T)


def test_a_picked_layer_is_marked_in_all_panels(opened: Opened) -> None:
    page = opened.page
    page.mouse.click(*opened.cell("grid-2", 3, 1))
    page.wait_for_timeout(300)
    assert page.evaluate("repsim.state().marked") == {"row": LAYERS[3], "column": LAYERS[1]}
    assert page.input_value("#mark-row") == LAYERS[3]
    boxes = page.evaluate(
        """() => repsim.state().shown.map(panel => {
            for (const doc of Bokeh.documents) {
                const figure = doc.get_model_by_name(panel);
                if (figure) return figure.center.filter(one => one.name).map(
                    one => [one.name.split(':')[1], one.visible, one.bottom, one.top, one.left,
                            one.right]);
            }
        })"""
    )
    assert len(boxes) == 6
    for panel in boxes:
        assert {tuple(box[:4]) for box in panel if box[0] == "row"} == {("row", True, 2.5, 3.5)}
        columns = {(box[1], box[4], box[5]) for box in panel if box[0] == "column"}
        assert columns == {(True, 0.5, 1.5)}
    notes = page.eval_on_selector_all(".note", "list => list.map(one => one.textContent)")
    assert all(len(shown(note)) == 3 for note in notes)
    page.mouse.click(*opened.cell("grid-2", 3, 1))
    page.wait_for_timeout(300)
    assert page.evaluate("repsim.state().marked") is None
    page.select_option("#mark-row", LAYERS[2])  # without a mouse
    assert page.evaluate("repsim.state().marked") == {"row": LAYERS[2], "column": LAYERS[2]}
    page.click("#mark-none")
    assert page.evaluate("repsim.state().marked") is None


def test_links_of_findings_set_the_panels_and_open_what_is_folded(opened: Opened) -> None:
    page = opened.page
    page.click("#finding-3 a[data-set]")
    assert page.input_value("#compare") == "clean|clean"
    assert not page.eval_on_selector("#finding-1 ol.commands", "one => one.closest('details').open")
    page.click("#finding-1 td.ref a >> nth=0")
    page.wait_for_timeout(200)
    assert page.eval_on_selector("#finding-1 ol.commands", "one => one.closest('details').open")


@pytest.mark.parametrize("viewport", [PHONE, {"width": 390, "height": 844}, DESKTOP])
def test_page_is_no_wider_than_the_screen(
    browser: Any, study: tuple[Path, AllPairs], viewport: dict[str, int]
) -> None:
    one = Opened(browser, study[0], viewport=viewport)
    page = one.page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    small = page.eval_on_selector_all(
        "select, button, summary",
        "list => list.map(x => x.getBoundingClientRect().height).filter(x => x && x < 24)",
    )
    assert small == []  # WCAG 2.2, 2.5.8: large enough to be hit
    page.close()


def test_a_finger_picks_a_layer(browser: Any, study: tuple[Path, AllPairs]) -> None:
    one = Opened(browser, study[0], viewport=PHONE, has_touch=True, is_mobile=True)
    page = one.page
    page.touchscreen.tap(*one.cell("grid-0", 2, 2))
    page.wait_for_timeout(400)
    assert page.evaluate("repsim.state().marked") == {"row": LAYERS[2], "column": LAYERS[2]}
    assert len(shown(page.text_content("#grid-0-note"))) == 3
    assert one.problems == []
    page.close()


def test_printed_page_has_figures_instead_of_panels(
    browser: Any, study: tuple[Path, AllPairs], tmp_path: Path
) -> None:
    one = Opened(browser, study[0], viewport=DESKTOP)
    page = one.page
    page.emulate_media(media="print")
    assert not page.is_visible("#explorer")
    assert page.is_visible("#figure-heatmaps-attacked img")
    assert not page.is_visible("nav.contents")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.eval_on_selector_all("details", "list => list.every(one => one.open)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.eval_on_selector_all("details", "list => list.every(one => !one.open)")
    content = page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    pages = re.findall(rb"/Type\s*/Page\b", inflated(content))
    assert 5 < len(pages) < 60
    page.close()


def inflated(pdf: bytes) -> bytes:
    """A PDF with its compressed streams readable."""
    parts = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S):
        try:
            parts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(parts)


def test_text_is_there_without_scripts(browser: Any, study: tuple[Path, AllPairs]) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(study[0].as_uri())
    assert page.is_visible("#verdicts table")
    assert page.is_visible("#finding-1 img")
    assert page.is_visible("noscript")
    page.close()
