"""Whatever is drawn lies inside its box: on the page at any width and in print, and in the figures of every style."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from clbench.reports import figures
from clbench.reports.charts import CHARTS
from clbench.reports.comparison import Comparison
from clbench.results.result import Result

Make = Callable[..., Result]
Opened = Callable[..., None]
Compared = Callable[[list[Result]], Comparison]

TWELVE = ("joint", "naive", "feature-extraction", "lwf", "ewc", "er", "icarl", "si", "mas", "derpp", "bic", "gdumb")
OPTIONS = "[memory_size=200,classifier=nearest_mean,share=0.25]"
# Strategies, tasks, seeds, and whether labels, class names and texts are long.
SHAPES = {
    "2 tasks": (TWELVE[:4], 2, 2, False),
    "2 tasks, long names": (TWELVE, 2, 2, True),
    "10 tasks": (TWELVE, 10, 2, False),
    "10 tasks, long names": (TWELVE[:6], 10, 2, True),
    "20 tasks, long names": (TWELVE, 20, 1, True),
    "100 tasks": (TWELVE[:3], 100, 1, False),
    "40 strategies": (tuple(f"WWW-method-{k}" for k in range(40)), 3, 1, False),
}
# A4 and Letter on their side, without the margins of 12 mm, in CSS pixels.
PRINT = (965, 1032)


def runs(make_result: Make, shape: str) -> Iterator[Result]:
    """Runs with everything that can be drawn: evaluations within tasks, losses, confusions of two classes a task."""
    names, n_tasks, seeds, long = SHAPES[shape]
    within = [[0.5] * (task + 1) + [None] * (n_tasks - task - 1) for task in range(n_tasks)]
    for name in names:
        for seed in range(seeds):
            base = make_result(
                name,
                seed,
                sizes=(2,) * n_tasks,
                label=name + OPTIONS if long else None,
                evaluations=tuple((task, 3, row) for task, row in enumerate(within)) if n_tasks <= 20 else (),
                warnings=("a warning of many words " * 20,) * 9 if long else (),
                config={"strategy_options": {f"option_{k}": "v" * 40 for k in range(12)}} if long else {},
            )
            n = 2 * n_tasks
            known = [f"a very long class name {c}" if long else str(c) for c in range(n)]
            more: dict[str, Any] = {
                "confusion": [[3] * n] * n,
                "training": [
                    {"task": task, "stage": "train", "epoch": 0, "losses": {"new": 1.5, "old": 0.5}}
                    for task in range(n_tasks)
                ],
                "scenario": base.record["scenario"] | {"class_names": known},
                "environment": {"python": "3.11.7", "device": "NVIDIA H200 " * (4 if long else 1)},
            }
            yield Result(json.loads(json.dumps(base.record)) | more)


MEASURE = (Path(__file__).parent / "measure.js").read_text("utf-8")
# A printer unfolds what the page says. The frames are marked when their sizes are observed, which takes two frames.
UNFOLD = """
const wanted = matchMedia("print").matches ? "details.open-in-print" : "details";
document.querySelectorAll(wanted).forEach((one) => (one.open = true));
requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(arguments[0])));
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_on_the_page_leaves_its_box(shape: str, make_result: Make, browser: Any, opened: Opened) -> None:
    """Measured by the browser, with everything unfolded; nothing scrolls without a sign of it, and in print nothing.

    Letters have at least 8 points in print, and at least 9 pixels in a chart on the screen.
    """
    results = list(runs(make_result, shape))
    wrong = {}
    for media, widths in (("screen", (390, 768, 1280)), ("print", PRINT)):
        for width in widths:
            opened(results, width, media)
            browser.execute_async_script(UNFOLD)
            wrong[media, width] = browser.execute_script(MEASURE)
    assert {key: found for key, found in wrong.items() if found} == {}


def outside(figure: Any) -> list[str]:
    """The texts of a figure that its canvas does not hold, by their tight boxes, after it is laid out."""
    FigureCanvasAgg(figure).draw()
    renderer, page = figure.canvas.get_renderer(), figure.bbox
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1:
                found.append(text.get_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("style", figures.STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_leaves_a_figure(shape: str, style: str, make_result: Make, compared: Compared) -> None:
    part = compared(list(runs(make_result, shape)))
    wrong = {}
    for name, definition in CHARTS.items():
        if drawing := definition.drawn(part):
            with figures.in_style(style) as medium:
                wrong[name] = outside(figures.render(drawing, part.title, medium))
    assert {name: found for name, found in wrong.items() if found} == {}
