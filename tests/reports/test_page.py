"""The HTML page: what stands in it, that text from runs stays text, how it behaves in a browser."""

import base64
import io
import json
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench.reports import page, provenance, tables
from clbench.reports.chart import lowest
from clbench.reports.comparison import compare
from clbench.results.result import Result, load_results

Make = Callable[..., Result]
WithMore = Callable[..., Result]
Opened = Callable[..., None]
HOSTILE = (
    "<script>window.hacked = true</script>",
    "\"'><img src=x onerror=hacked=1>",
    "{{ 7 * 7 }}{% raw %}",
    "</style></svg><b>",
    "שלום‮ evil",
    "w" * 200,
)
VOID = {"meta", "link", "br", "input", "img"}
# Their end tags may be left out.
OPTIONAL = {"td", "th", "tr", "thead", "tbody", "li", "p", "dt", "dd"}


class Page(HTMLParser):
    """The elements of a page, its visible text and what does not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.wrong: list[str] = []
        self.stack: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID | OPTIONAL:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL and (not self.stack or self.stack.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("script", "style"):
            return
        self.text.append(data)
        if "table" in self.stack and self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def rendered(results: list[Result]) -> Page:
    return Page(page.render(compare(results)))


def figures(section: page.Section, name: str) -> list[page.Figure]:
    """The figures of a section that are drawn of each strategy, by the name of their chart."""
    return next((list(group.figures) for group in section.groups if group.name == name), [])


def evaluations(*rows: tuple[int, int, list[float | None]]) -> list[dict[str, Any]]:
    return [
        {"task": task, "stage": "train", "epoch": 0, "step": step, "class_incremental": row, "task_aware": row}
        for task, step, row in rows
    ]


@pytest.fixture
def measured(make_result: Make, with_more: WithMore) -> Result:
    """Two tasks of two classes, each number of it chosen by hand."""
    result = make_result("er", sizes=(2, 2), matrix=np.array([[0.9, np.nan], [0.6, 0.8]]), config={"eval_every": 2})
    return with_more(
        result,
        evaluations=evaluations((0, 2, [0.7, None]), (1, 2, [0.2, 0.1]), (1, 4, [0.5, 0.6])),
        training=[
            {"task": t, "stage": "train", "epoch": 0, "steps": 7, "lr": 0.1, "losses": {"new": 1.5 - t, "old": 0.25}}
            for t in (0, 1)
        ],
        confusion=[[80, 10, 10, 0], [0, 100, 0, 0], [25, 25, 50, 0], [0, 0, 0, 100]],
        environment={"python": "3.11.7", "packages": {"torch": "2.14.1"}},
    )


def test_the_page_nests_and_names_every_part(seven: list[Result]) -> None:
    found = rendered(seven)
    assert found.wrong == []
    assert found.stack == []
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in found.elements if a.get("href", "").startswith("#")}
    assert targets <= set(ids)


def test_nothing_is_loaded_from_anywhere(seven: list[Result]) -> None:
    """No attribute that fetches names an address, no style fetches, and the page forbids fetching itself."""
    text = page.render(compare(seven))
    found = Page(text)
    for tag, attributes in found.elements:
        for name in ("src", "srcset", "href", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag, value) == ("link", "data:,"), (tag, name, value)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")", text)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|import\(", text)
    assert next(a["content"] for a in found.of("meta") if a.get("http-equiv")).startswith("default-src 'none'")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str, make_result: Make, with_more: WithMore) -> None:
    """As scenario, strategy label, class, option, warning, loss term, stage and environment."""
    results = []
    for strategy in ("lwf", "joint"):
        base = make_result(strategy, label=name, scenario=name, sizes=(2, 2), warnings=(name,), config={name: name})
        names = [f"{name}{c}" for c in range(4)]
        record = base.record
        results.append(
            with_more(
                base,
                strategy=record["strategy"] | {"family": name},
                scenario=record["scenario"] | {"class_names": names},
                confusion=[[9, 1, 0, 0]] * 4,
                environment={name: name, "packages": {name: name}},
                training=[{"task": 0, "stage": name, "epoch": 0, "losses": {name: 1.0}}],
                evaluations=evaluations((1, 2, [0.5, 0.5])),
            )
        )
    ordinary = rendered([make_result("lwf", sizes=(2, 2)), make_result("joint", sizes=(2, 2))])
    found = rendered(results)
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in ordinary.elements} | {
        "details",
        "dd",
        "dt",
        "aside",
    }
    assert len(found.of("script")) == 1
    assert not any(key.startswith("on") for _, attributes in found.elements for key in attributes)
    assert found.wrong == []
    shown = "".join(c if c.isprintable() else "?" for c in name)
    assert " ".join(shown.split()) in found.words


def test_references_stand_apart_and_in_every_chart(seven: list[Result]) -> None:
    (part,) = compare(seven)
    section = page.sections([part])[0]
    assert {part.rows[row].label for row, _ in section.references.lines} == {"joint", "naive"}
    assert not {part.rows[row].label for row, _ in section.table.lines} & {"joint", "naive"}
    index = {row.label: str(i) for i, row in enumerate(part.rows)}
    for figure in (*section.lead, *section.main):
        drawn = set(re.findall(r'data-s="(\d+)"', str(figure.drawing)))
        assert {index["joint"], index["naive"]} <= drawn, figure.title


def test_a_strategy_looks_the_same_in_every_section(make_result: Make) -> None:
    results = [
        make_result(name, seed, scenario=scenario)
        for scenario, names in (("a", ("er", "lwf", "icarl")), ("b", ("icarl", "ewc")))
        for name in names
        for seed in (0, 1)
    ]
    looks = [{row.label: row.look for row in part.rows} for part in compare(results)]
    assert looks[0]["icarl"] == looks[1]["icarl"]
    assert len({*looks[0].values(), *looks[1].values()}) == 4


def test_every_chart_has_its_numbers_as_a_table(seven: list[Result], measured: Result) -> None:
    """The points that are drawn, in the units of the data, are the numbers of the table, rounded."""
    sections = page.sections(compare([*seven, measured]))
    assert [group.name for group in sections[1].groups] == [
        *("task_accuracy", "confusion", "stability_gap", "training_loss"),
    ]
    for section in sections:
        assert section.main
        for figure in (*section.lead, *section.main, *(figure for group in section.groups for figure in group.figures)):
            assert len(figure.numbers.lines) > 0
        average = section.lead[0]
        for row, cells in average.numbers.lines:
            points = re.search(
                rf'data-s="{row}" data-n="[^"]*"(?: data-e="[^"]*")? points="([^"]*)"', str(average.drawing)
            )
            assert points
            drawn = [float(point.split(",")[1]) for point in points[1].split(" ")]
            written = [float(cell.text.split(" ± ")[0]) for cell in cells[1:]]
            assert drawn[: len(written)] == pytest.approx(written, abs=0.0551)


def test_evaluations_within_tasks_stay_apart(measured: Result) -> None:
    """By hand: task 0 is at 90 % when learned, 20 % at its lowest within task 1 (a fall of 70 points), 60 % at its end
    (40 regained). min-ACC is that 20 %; WC-ACC = 80 / 2 + (1 - 1/2) 20 = 50 %. The matrix keeps its 60 %."""
    found = rendered([measured])
    row = next(
        line for table in found.tables for line in table if "fall within a task" in table[0][3:4] for line in table[1:]
    )
    assert [cell.strip() for cell in row[1:]] == ["20.0", "50.0", "70.0", "40.0"]
    matrix = next(table for table in found.tables if table[1:] and table[1][0].strip() == "after 0")
    assert [cell.strip() for cell in matrix[2]] == ["after 1", "60.0", "80.0"]
    # Steps 2, 7 (the end of task 0), 7 + 2, 7 + 4 and 14 (the end of task 1).
    steps = next(table for table in found.tables if table[0][0] == "step")
    assert [line[0].strip() for line in steps[1:]] == ["2", "7", "9", "11", "14"]


def test_confusion_is_the_share_of_each_class(measured: Result, make_result: Make, with_more: WithMore) -> None:
    """Two runs of opposite class orders are added up by class, not by output: rows of the second read backwards."""
    order = [3, 2, 1, 0]
    record = json.loads(json.dumps(measured.record))
    for task, (a, b) in zip(record["scenario"]["tasks"], ((0, 2), (2, 4)), strict=True):
        task["classes"] = order[a:b]
    other = with_more(
        Result(record), class_order=order, confusion=[[100, 0, 0, 0], [0, 0, 0, 100], [0, 0, 50, 50], [0, 0, 0, 100]]
    )
    other.record["config"]["seed"] = 1
    (section,) = page.sections(compare([measured, Result(other.record)]))
    (figure,) = figures(section, "confusion")
    shown = [[cell.text for cell in cells] for _, cells in figure.numbers.lines]
    # Class 0 is output 3 of the second run: (80 + 100) / 200 right. Class 2 is its output 1: all taken for class 0.
    assert shown == [
        ["0", "90.0", "5.0", "5.0", "0.0"],
        ["1", "25.0", "75.0", "0.0", "0.0"],
        ["2", "62.5", "12.5", "25.0", "0.0"],
        ["3", "0.0", "0.0", "0.0", "100.0"],
    ]


def test_many_classes_are_shown_by_task(make_result: Make, with_more: WithMore) -> None:
    """Of 11 tasks of two classes, all taken for the first class: 100 % of every task go to task 0."""
    size = 22
    base = make_result("lwf", sizes=(2,) * 11)
    (section,) = page.sections(compare([with_more(base, confusion=[[7] + [0] * (size - 1)] * size)]))
    (figure,) = figures(section, "confusion")
    assert [[cell.text for cell in cells[1:]] for _, cells in figure.numbers.lines] == [["100", *["0"] * 10]] * 11


def test_storage_is_listed_in_items_and_bytes(seven: list[Result]) -> None:
    (part,) = compare(seven)
    ledger = page.ledger(part)
    titles = [column.title for column in ledger.headings]
    rows = {cells[0].text: [cell.text for cell in cells] for _, cells in ledger.lines}
    assert rows["iCaRL"][titles.index("exemplars, items")] == "200"
    assert rows["iCaRL"][titles.index("exemplars, bytes")] == "156,800"
    assert rows["LwF"][titles.index("teacher, bytes")] == "1,913,640"
    assert rows["EWC"][titles.index("importances, bytes")] == "3,827,280"
    assert rows["naive"][titles.index("all but the model, bytes")] == "0"


def test_each_run_is_listed_with_its_class_order(make_result: Make, with_more: WithMore) -> None:
    results = []
    for seed in range(3):
        base = make_result("icarl", seed, sizes=(2, 2))
        results.append(with_more(base, class_order=[[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]][seed]))
    (part,) = compare(results)
    runs, orders = provenance.runs(part)
    shown = [[str(cell.text) for cell in cells] for _, cells in runs.lines]
    assert [line[1:3] for line in shown] == [["0", "A"], ["1", "B"], ["2", "A"]]
    assert orders == [("A", "0, 1, 2, 3"), ("B", "3, 2, 1, 0")]
    averages = [f"{100 * result.summary()['average_accuracy']:.1f}" for result in results]
    assert [line[3] for line in shown] == averages


def test_numbers_of_the_page_are_those_of_the_tables_on_disk(seven: list[Result]) -> None:
    import pandas as pd

    titles = {row.title: row.label for part in compare(seven) for row in part.rows}
    frame = pd.read_csv(io.StringIO(tables.to_csv(tables.comparison(compare(seven))))).set_index("strategy")
    found = rendered(seven)
    table = next(table for table in found.tables if len(table[0]) > 1 and table[0][1].strip() == "n")
    place = next(i for i, title in enumerate(table[0]) if title.startswith("forgetting"))
    assert len(table) == 1 + len(frame)
    for line in table[1:]:
        shown = max((title for title in titles if line[0].strip().startswith(title)), key=len)
        label = titles[shown]
        for title, column in (("average_accuracy", 2), ("forgetting", place)):
            mean, sd = (float(part) for part in re.match(r"\s*(-?[\d.]+) ± ([\d.]+)", line[column]).groups())  # type: ignore[union-attr]
            assert mean == pytest.approx(100 * frame.loc[label, title], abs=0.051)
            assert sd == pytest.approx(100 * frame.loc[label, f"{title}_sd"], abs=0.051)


def test_what_differs_between_configurations_is_marked(make_result: Make) -> None:
    results = [make_result(name, config={"lr": lr}) for name, lr in (("lwf", 0.1), ("ewc", 0.1), ("si", 0.01))]
    (part,) = compare(results)
    differing, common = provenance.configs(part)
    assert differing is not None
    titles = [column.title for column in differing.headings]
    marked = {cells[0].text: cells[titles.index("lr")].css for _, cells in differing.lines}
    assert marked == {"LwF": "", "EWC": "", "SI": "differs"}
    assert "epochs" in dict(common)
    assert "lr" not in dict(common)


def test_a_single_task_and_a_single_run_make_a_page(make_result: Make) -> None:
    found = rendered([make_result("lwf", sizes=(4,))])
    assert found.wrong == []
    assert "Not defined for a single task" in found.words


def test_matrices_beyond_the_limit_are_named(make_result: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clbench.reports.page.MOST_CELLS", 60)
    (section,) = page.sections(compare([make_result(name) for name in ("lwf", "ewc", "er")]))
    assert len(figures(section, "task_accuracy")) == 2
    assert section.left_out[-1] == (
        "Accuracy on each task: there is no room for 1 strategies, whose numbers are in matrices.csv."
    )


def test_points_are_thinned_to_the_lowest() -> None:
    """Of 240 values in bins of three, the one dip of each bin stays, and the last value."""
    values = np.ones(240)
    values[1::3] = 0.0
    assert lowest([values.tolist()], 3) == [*range(1, 240, 3), 239]


@pytest.mark.slow
def test_the_command_makes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolved again, the printed commands have the identity of the runs."""
    import clbench
    from clbench import cli

    monkeypatch.chdir(tmp_path)
    tiny = {"epochs": 1, "limit": 5, "seeds": [3, 5], "out": "runs"}
    clbench.compare("split-mnist-5k", ["er[memory_size=20,share=0.25]", "lwf"], class_order_seed=7, tasks=2, **tiny)
    clbench.run("split-mnist-5k", "naive", seed=3, iterations=2, memory_size=10, out="runs/other", threads=1)
    results = load_results("runs")
    identities = {result.recorded.identity for result in results}
    asked = []
    for part in compare(results):
        for row in part.rows:
            for line in provenance.command(row).splitlines():
                found = re.fullmatch(r'(?:for seed in ([\d ]+); do )?(.*?)(?: --seed "\$seed"; done)?', line)
                assert found
                words = shlex.split(found[2])
                assert words[:2] == ["clbench", "run"]
                asked += [[*words[1:], "--seed", seed] for seed in found[1].split()] if found[1] else [words[1:]]
    assert len(asked) == len(results)
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    for arguments in asked:
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--quiet"])
        assert ended.value.code == 0
    assert {result.recorded.identity for result in load_results("runs")} == identities


@pytest.mark.alone
@pytest.mark.slow
def test_a_thousand_runs_make_a_report_in_seconds(make_result: Make, tmp_path: Path) -> None:
    """`clbench report` over 1,000 runs takes under 20 s of one core, and the page stays under 5 MB.

    Measured on 3 scenarios x 5 strategies with evaluations within tasks: 15.5 s, 0.57 MB; a page of 50 strategies x 20
    seeds x 20 tasks x 100 classes: 3.0 MB.
    """
    names = ("naive", "joint", "lwf", "ewc", "er", "icarl", "si", "mas", "der", "bic")
    for name in names:
        for seed in range(100):
            make_result(name, seed).write(tmp_path / "runs" / name / str(seed))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-m", "clbench", "report", "runs", "--out", "report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20
    assert (tmp_path / "report/report.html").stat().st_size < 5_000_000
    assert done.stdout.splitlines()[-1] == f"report: {Path('report/report.html')}"


@pytest.mark.slow
def test_the_page_sorts_and_filters(browser: Any, seven: list[Result], opened: Opened) -> None:
    opened(seven, 1280)
    find = browser.find_elements
    first = "table.main tbody:not(.references) tr th bdi"
    (part,) = compare(seven)
    competitors = [row for row in part.rows if row.label not in ("joint", "naive")]
    by_forgetting = sorted(competitors, key=lambda row: row.spread("forgetting").mean or 0.0)
    head = next(b for b in find("css selector", "table.main thead button") if b.text.startswith("forgetting"))
    head.click()
    assert [e.text for e in find("css selector", first)] == [row.name[0] for row in reversed(by_forgetting)]
    head.send_keys("\ue007")  # Enter
    assert [e.text for e in find("css selector", first)] == [row.name[0] for row in by_forgetting]
    assert browser.find_element("css selector", "table.main th[aria-sort]").get_attribute("aria-sort") == "ascending"
    names = [e.text for e in find("css selector", "table.main tbody.references bdi")]
    assert sorted(names) == ["joint", "naive"]
    browser.find_element("css selector", ".filter").send_keys("ICARL")
    assert {e.text for e in find("css selector", "table.main tbody bdi") if e.is_displayed()} == {"iCaRL"}
    shown = [row for row in find("css selector", "table.main tbody tr") if row.is_displayed()]
    assert len(shown) == 2
    drawn = [e for e in find("css selector", ".charts svg.chart:first-of-type polyline") if e.is_displayed()]
    assert {e.get_attribute("data-n") for e in drawn} == {"iCaRL", "iCaRL (linear)"}
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_of_many_strategies_the_best_are_drawn_at_first(browser: Any, make_result: Make, opened: Opened) -> None:
    opened([make_result("lwf", label=f"method{i:02}") for i in range(20)], 1280)
    lines = browser.find_elements("css selector", ".charts figure:first-child polyline")
    assert sum(line.is_displayed() for line in lines) == page.MOST_DRAWN
    hidden = browser.find_element("css selector", ".legend button[aria-pressed='false']")
    hidden.send_keys("\ue00d")  # Space
    assert sum(line.is_displayed() for line in lines) == page.MOST_DRAWN + 1
    assert len(browser.find_elements("css selector", "table.main tbody tr")) == 20


@pytest.mark.slow
def test_the_page_tells_values_on_hover_and_by_keyboard(browser: Any, seven: list[Result], opened: Opened) -> None:
    from selenium.webdriver import ActionChains

    opened(seven, 1280)
    (part,) = compare(seven)
    first = part.rows[0]
    curve = [100 * np.mean([np.nanmean(m[k, : k + 1]) for m in first.matrices]) for k in (0, 1)]
    chart = browser.find_element("css selector", ".charts svg.chart")
    tip = browser.find_element("id", "tip")
    browser.execute_script("document.querySelector('.filter').focus()")
    # From the filter over the table's scrolling areas and the legend to the chart, as a reader would.
    while browser.switch_to.active_element != chart:
        ActionChains(browser).send_keys("\ue004").perform()  # Tab
    assert tip.is_displayed()
    for step, key in ((0, ""), (1, "\ue014")):  # Arrow right
        if key:
            ActionChains(browser).send_keys(key).perform()
        label, value = tip.text.split("\n")
        assert label == first.title
        assert float(re.match(rf"after task {step}: ([\d.]+)", value)[1]) == pytest.approx(curve[step], abs=0.0051)  # type: ignore[index]
    ActionChains(browser).send_keys("\ue00c").perform()  # Escape
    assert not tip.is_displayed()
    browser.execute_script("document.getElementById('s1-charts').open = true")
    scatter = browser.find_elements("css selector", ".charts svg.chart")[2]
    mark = scatter.find_element("css selector", "use[data-t^='ER:']")
    # Scrolling hides what is shown, so it has to be over.
    scroll = "arguments[0].scrollIntoView({block: 'center'}); const done = arguments[1];"
    browser.execute_async_script(scroll + "requestAnimationFrame(() => requestAnimationFrame(done))", scatter)
    ActionChains(browser).move_to_element(mark).perform()
    assert tip.text.startswith("ER: learning accuracy")
    assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(
    width: int, browser: Any, seven: list[Result], make_result: Make, opened: Opened, with_more: WithMore
) -> None:
    """With names of 200 characters, and everything unfolded."""
    longest = [
        with_more(
            make_result("er", seed, label="w" * 200, scenario="long", config={"x" * 200: "y" * 200}),
            scenario=make_result("er").record["scenario"] | {"name": "z" * 200, "class_names": ["n" * 200] * 10},
            confusion=np.eye(10, dtype=int).tolist(),
            environment={"platform": "p" * 200},
        )
        for seed in (0, 1)
    ]
    opened([*seven, *longest], width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(browser: Any, make_result: Make, opened: Opened) -> None:
    opened([make_result("lwf", label=name, scenario=name) for name in HOSTILE], 1280)
    assert browser.execute_script("return window.hacked") is None
    assert len(browser.find_elements("css selector", "img")) == 0


@pytest.mark.slow
def test_the_page_prints(browser: Any, seven: list[Result], opened: Opened) -> None:
    opened(seven, 1280)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    assert browser.get_log("browser") == []
