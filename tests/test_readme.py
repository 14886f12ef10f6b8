"""The commands and examples of the pages work, and what they say about the code is true."""

import inspect
import re
import runpy
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench
from clbench.cli import main
from clbench.results import metrics

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
# Blocks of commands that no test runs as they stand: a part of each, and the reason.
NOT_RUN = {
    "grid.toml --dry-run": "test_the_commands_of_the_page_of_sweeps_work runs it, and looks at what comes out",
    "#SBATCH": "needs Slurm; test_the_commands_of_the_page_of_sweeps_work runs it with a srun of its own",
    "ray start": "needs a Ray cluster; tests/core/test_cluster.py runs one",
    "ResNet18_Weights": "downloads 45 MB of weights; tests/core/test_models.py reads a file of that form",
    "split-cifar100": "needs CIFAR-100, and hours",
    "tasks=800": "takes minutes; tests/core/test_evaluate_current.py does it in small",
    "budget flops=2e11": "takes minutes; tests/core/test_budgets.py does it in small",
    "pretrain split-mnist --classes": "needs MNIST, and minutes; tests/strategies/test_adapters.py does it in small",
}
# The commands are for real scenarios; here they get little to do.
LITTLE = ["--epochs", "1", "--limit", "5", "--threads", "1"]
# A shell that tells what it would call clbench with.
TELL = 'clbench() { printf \'%s\\0\' "$@"; }; srun() { "$@"; }; '


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the reader's own data: arrays, vectors and photos of four classes that differ in brightness."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    data: dict[str, Any] = {}
    for part, each in (("train", 6), ("test", 3)):
        labels = np.repeat(np.arange(4), each)
        noise = random.integers(0, 40, (len(labels), 12, 12))
        data |= {f"x_{part}": (60 * labels[:, None, None] + noise).astype(np.uint8), f"y_{part}": labels}
        for index, (image, label) in enumerate(zip(data[f"x_{part}"], labels, strict=True)):
            file = Path("photos", part, f"class-{label}", f"{index}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((40, 36)).save(file)
    np.savez("mine.npz", **data)
    digits = np.repeat(np.arange(10), 6)
    vectors = random.normal(digits[:, None], 1, (60, 64))
    np.savez("vectors.npz", x_train=vectors, y_train=digits, x_test=vectors + 0.1, y_test=digits)
    # The same photos without a test of their own.
    shutil.copytree("photos/train", "holiday")
    # The grid of docs/sweeps.md, with one seed and little to do.
    grid = re.sub(r"^(seeds = ).*", r"\g<1>1", blocks("docs/sweeps.md", "toml")[0], flags=re.MULTILINE)
    Path("grid.toml").write_text(f"limit = 5\n{grid}")
    return tmp_path


def test_the_pages_have_commands_and_examples() -> None:
    assert len(blocks("README.md", "bash")) >= 3
    assert len(blocks("README.md", "python")) >= 2


def commands() -> list[Any]:
    """Every block of commands of every page; those of NOT_RUN are skipped with the reason."""
    found = []
    for page in PAGES:
        for number, block in enumerate(blocks(page, "bash")):
            reason = next((why for what, why in NOT_RUN.items() if what in block), None)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            found.append(pytest.param(page, number, marks=marks))
    return found


def call(line: str) -> None:
    """Have a shell read a line, with its quotes, globs and variables, and call clbench with what it makes of them.

    The call is in this process, because a new one takes seconds to start; tests/test_cli.py starts the console script.
    """
    read = subprocess.run(["bash", "-euc", TELL + line], capture_output=True, text=True, check=True)
    words = read.stdout.split("\0")[:-1]
    assert words, line
    with pytest.raises(SystemExit) as ended:
        main([*words, *(LITTLE if words[0] in ("run", "compare", "tune", "pretrain") else [])])
    assert ended.value.code == 0, line


def lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", "").splitlines() if not line.startswith(("make ", "pip ", "#"))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), commands())
def test_the_commands_of_the_pages_work(
    page: str, number: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = blocks(page, "bash")[number]
    if "photos" in block or "cache clear" in block:
        monkeypatch.setenv("CLBENCH_CACHE", str(place / "cache"))
    (place / "runs").mkdir()
    for line in lines(block):
        call(line)


def test_every_block_has_a_language_and_those_that_are_not_run_are_there() -> None:
    """No test would run a block without a language; a reason for a block that is gone would hide the next one."""
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    for page, text in pages.items():
        opening = re.findall(r"^```(.*)$", text, re.MULTILINE)[::2]
        assert set(opening) <= {"bash", "python", "toml", "text"}, page
    every = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    assert [what for what in NOT_RUN if what not in every] == []


def test_the_grid_of_the_page_of_sweeps_is_what_it_says() -> None:
    """Two rates for naive and each er, 5 seeds: 30; lwf 2 x 3 x 5 less 2 x 5: 20; ewc: 2."""
    from clbench.many.sweeps import expand

    requests = expand(tomllib.loads(blocks("docs/sweeps.md", "toml")[0]), "grid.toml")
    counts = Counter(str(request.strategy).partition("[")[0] for request in requests)
    assert counts == {"naive": 10, "er": 20, "lwf": 20, "ewc": 2}


@pytest.mark.slow
def test_the_commands_of_the_page_of_sweeps_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine, and as the second of two jobs of a Slurm array."""
    local, slurm = (
        block for block in blocks("docs/sweeps.md", "bash") if "grid.toml --dry-run" in block or "#SBATCH" in block
    )
    for name, value in (("TASK_ID", "2"), ("TASK_COUNT", "2")):
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", value)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    told = []
    for block in (slurm, local):
        for line in lines(block):
            call(line)
            told.append(capsys.readouterr().out)
    assert "5 runs in runs: 5 done now;" in told[0]
    assert "11 runs in runs: 6 done now, 5 done before;" in told[2]
    assert len(list((place / "runs").rglob("run.json"))) == 11
    assert (place / "report" / "report.md").exists()


# tests/test_contributing.py runs those of CONTRIBUTING.md in processes of their own: they register metrics and charts.
EXAMPLES = [(page, n) for page in PAGES if page != "CONTRIBUTING.md" for n in range(len(blocks(page, "python")))]


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_the_python_examples_work(page: str, number: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks(page, "python")[number]
    (place / "example.py").write_text(text)
    runpy.run_path(str(place / "example.py"), run_name="example")
    assert ("print(" in text) == bool(capsys.readouterr().out)
    if "mine.npz" in text:  # as few lines as the pages promise
        assert len([line for line in text.splitlines() if line.strip()]) < 10


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    missing = [t for t in targets if not any((base / t).exists() for base in (ROOT / page).parents)]
    assert missing == []


def test_make_knows_every_target_that_the_pages_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"\bmake ([a-z-]+)\b(?=[`\n]|    )", (ROOT / page).read_text())) <= targets


def test_the_page_of_defaults_is_up_to_date() -> None:
    """The page is generated; `make readme` writes it anew."""
    expected: str = runpy.run_path(str(ROOT / "docs/update_defaults.py"))["page"]()
    assert (ROOT / "docs/defaults.md").read_text() == expected + "\n"


def test_the_page_of_strategies_is_up_to_date() -> None:
    """Generated too; it has every strategy that pyproject.toml declares, the equation from its docstring in a box."""
    expected: str = runpy.run_path(str(ROOT / "docs/update_defaults.py"))["strategies_page"]()
    assert (ROOT / "docs/strategies.md").read_text() == expected + "\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["clbench.strategies"]
    assert set(re.findall(r"^### (\S+)$", expected, re.MULTILINE)) == set(declared)
    assert len(blocks("docs/strategies.md", "text")) == len(declared)


def test_every_method_has_its_equation_or_none_to_give() -> None:
    """The references do nothing of their own, and the others choose data or weights, which their pages say in words."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    equations = tomllib.loads((ROOT / "docs/equations.toml").read_text())
    in_words = {"cumulative", "independent", "joint", "naive", "gdumb", "packnet", "xdg", "feature-extraction"}
    assert set(equations) | in_words == set(project["entry-points"]["clbench.strategies"])
    assert not set(equations) & in_words


def test_the_page_of_the_interface_has_every_public_name() -> None:
    """Modules have a section, and the rest an entry under the name that users import."""
    page = (ROOT / "docs/api.md").read_text()
    documented = set(re.findall(r"heading: clbench\.(\w+)", page)) | set(re.findall(r"`clbench\.(\w+)`", page))
    assert documented >= set(clbench.__all__)


def test_the_page_on_speed_is_up_to_date() -> None:
    expected: str = runpy.run_path(str(ROOT / "docs/update_speed.py"))["page"]()
    assert (ROOT / "docs/speed.md").read_text() == expected


def test_the_page_on_streams_that_are_seen_once_is_up_to_date() -> None:
    expected: str = runpy.run_path(str(ROOT / "docs/update_online.py"))["page"]()
    assert (ROOT / "docs/online.md").read_text() == expected


def test_the_page_of_published_numbers_is_up_to_date() -> None:
    """Generated from the claims and the kept results; `make readme` writes it anew. Each claim has its row."""
    generated = runpy.run_path(str(ROOT / "docs/update_reproduction.py"))
    expected: str = generated["page"]()
    assert (ROOT / "docs/reproduction.md").read_text() == expected + "\n"
    assert generated["line"]() in (ROOT / "README.md").read_text().splitlines()
    rows = re.findall(r"^\| (\w+/\S+/\S+) \| ([\d.]+)", expected, re.MULTILINE)
    written = {}
    for file in (ROOT / "reports/claims").glob("*.toml"):
        table = tomllib.loads(file.read_text())
        for claim in table["claims"]:
            name = claim.get("name", claim["strategy"])
            written[f"{file.stem}/{claim['protocol']}/{name}"] = claim["value"]
    assert {name: float(value) for name, value in rows} == written


def test_presets_are_those_of_the_page() -> None:
    """Reads both: the presets as TOML, the page by its headings and the first two cells of each row."""
    page: dict[str, dict[str, str]] = {}
    heading = ""
    for line in (ROOT / "docs/defaults.md").read_text().splitlines():
        if line.startswith(("## ", "### ")):
            heading = line.lstrip("# ")
        elif found := re.match(r"\| `(\w+)` \| `([^`]*)` \|", line):
            page.setdefault(heading, {})[found[1]] = found[2]
    presets = tomllib.loads((ROOT / "scenarios/presets.toml").read_text())
    assert len(presets) >= 7
    for scenario, preset in presets.items():
        for name, values in flat(scenario, preset).items():
            assert page[name] == {key: str(value) for key, value in values.items()}


def flat(name: str, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    found = {name: own} if own else {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(f"{name}.{key}", value)
    return found


def test_the_worked_values_of_the_metrics_are_those_of_the_code() -> None:
    """The values on the page are from the papers' formulas, worked out by hand for a matrix of three tasks."""
    given: dict[str, Any] = {}
    exec(blocks("docs/metrics.md", "python")[0], given)
    rows = re.findall(r"^\| `(\w+)` \|.*\| (-?[\d.]+) \|$", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} >= set(metrics.METRICS)
    for name, value in rows:
        function = getattr(metrics, name)
        arguments = {parameter: given[parameter] for parameter in inspect.signature(function).parameters}
        assert function(**arguments) == pytest.approx(float(value), abs=5e-7), name


@pytest.mark.slow
def test_the_table_of_the_readme_comes_from_runs(place: Path) -> None:
    """A small comparison: the numbers in the table are those of the runs, and the rest of the page stays."""
    import clbench

    results = clbench.compare("split-mnist-5k", ["er", "icarl"], seeds=2, out="runs", epochs=1, limit=5, memory_size=20)
    shutil.copy(ROOT / "README.md", place)
    script = runpy.run_path(str(ROOT / "docs/update_readme.py"))
    script["update"](place / "runs", place)
    text = (place / "README.md").read_text()
    begin, end = script["BEGIN"], script["END"]
    assert re.sub(f"{begin}.*{end}", "", text, flags=re.DOTALL) == re.sub(
        f"{begin}.*{end}", "", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    for name in ("er", "icarl", "naive", "joint"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        accuracies = [r.metrics["average_accuracy"] for r in results if r.strategy == name]
        assert f"| {100 * np.mean(accuracies):.1f} ± {100 * np.std(accuracies, ddof=1):.1f} |" in row
        assert row.endswith("| 2 |")
    assert (place / script["FIGURE"]).stat().st_size < 100_000


def test_the_figure_of_the_readme_is_small() -> None:
    assert (ROOT / "docs/figures/demo-average_accuracy.png").stat().st_size < 100_000
