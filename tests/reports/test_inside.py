"""All that is drawn lies inside its box: on the page at any width and in print, and in the figures of every style."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
# Strategies, tasks, seeds, and what is put at the end of each label, and of each class name, and into other texts.
SHAPES = {
    "2 tasks": (TWELVE[:4], 2, 2, "", ""),
    "2 tasks, many strategies with options": (TWELVE, 2, 2, OPTIONS, " of the kind that has a long name"),
    "10 tasks": (TWELVE, 10, 2, "", ""),
    "10 tasks, names without a space": (TWELVE[:6], 10, 2, "W" * 80, "W" * 60),
    "10 tasks, Chinese names": (TWELVE[:6], 10, 2, "类" * 40, "类增量学习" * 8),
    "20 tasks, options": (TWELVE, 20, 1, OPTIONS, " of the kind that has a long name"),
    "100 tasks": (TWELVE[:3], 100, 1, "", ""),
    "40 strategies": (tuple(f"WWW-method-{k}" for k in range(40)), 3, 1, "", ""),
}
# A4 and Letter on their side, without the margins of 12 mm, in CSS pixels.
PRINT = (965, 1032)


def runs(make_result: Make, shape: str) -> Iterator[Result]:
    """Runs with everything that can be drawn: evaluations within tasks, losses, confusions of two classes a task."""
    names, n_tasks, seeds, beside, told = SHAPES[shape]
    within = [[0.5] * (task + 1) + [None] * (n_tasks - task - 1) for task in range(n_tasks)]
    for name in names:
        for seed in range(seeds):
            base = make_result(
                name,
                seed,
                sizes=(2,) * n_tasks,
                label=name + beside,
                scenario=f"split-mnist-5k{told}",
                evaluations=tuple((task, 3, row) for task, row in enumerate(within)) if n_tasks <= 20 else (),
                warnings=tuple(f"{k}{told} " * 20 for k in range(9)) if told else (),
                config={"strategy_options": {f"option_{k}": f"{k}{told}" for k in range(12)}} if told else {},
            )
            n = 2 * n_tasks
            losses = {"new": 1.5, f"old{told}": 0.5}
            more: dict[str, Any] = {
                "confusion": [[3] * n] * n,
                "training": [{"task": t, "stage": "train", "epoch": 0, "losses": losses} for t in range(n_tasks)],
                "scenario": base.record["scenario"] | {"class_names": [f"{c}{told}" for c in range(n)]},
                "environment": {"python": "3.11.7", "device": f"NVIDIA H200{told}"},
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
    """The parts of a figure outside its canvas, and the texts that lie on each other, by their tight boxes."""
    FigureCanvasAgg(figure)
    # The layout alone is done, because nobody looks at what is drawn.
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    texts = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
    boxes = [one.get_window_extent(renderer) for one in texts]
    page, all_of_it = (
        figure.bbox.padded(1),
        figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans),
    )
    found = [] if page.contains(*all_of_it.min) and page.contains(*all_of_it.max) else [f"{all_of_it} beyond {page}"]
    found += [
        f"{text.get_text()!r} is cut off"
        for text, box in zip(texts, boxes, strict=True)
        if not (page.contains(*box.min) and page.contains(*box.max))
    ]
    # All pairs at once, since forty strategies have thousands of texts.
    low, high = (np.array([getattr(box, end) for box in boxes]).reshape(-1, 2) for end in ("min", "max"))
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    height = (high - low)[:, 1]
    on = (shared[..., 0] > 1) & (shared[..., 1] > 0.3 * np.minimum(height[:, None], height))
    for one, other in np.argwhere(np.triu(on, 1)):
        found.append(f"{texts[other].get_text()!r} lies on {texts[one].get_text()!r}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("style", figures.STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_leaves_a_figure(shape: str, style: str, make_result: Make, compared: Compared) -> None:
    part = compared(list(runs(make_result, shape)))
    wrong = {}
    for name, definition in CHARTS.items():
        if drawing := definition.drawn(part):
            with figures.in_style(style) as medium:
                wrong[name] = outside(figures.render(drawing, part.title, medium))
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", ["average_accuracy", "forgetting", "accuracy_matrices"])
def test_a_figure_of_one_column_holds_its_labels(name: str, seven: list[Result], compared: Compared) -> None:
    """The label of x, which was longer than the column, and the names of the references in their panels."""
    part = compared(seven)
    with figures.in_style("paper") as medium:
        assert outside(figures.render(CHARTS[name].make(part), part.title, medium)) == []
