"""Published claims beside our runs: how near the numbers come, and a verdict computed from them."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clbench.config.errors import ConfigError
from clbench.reports.published import Claim, claims
from clbench.results.metrics import average_accuracies
from clbench.results.statistics import equivalence, half_width, spread
from clbench.support.files import write_atomically

if TYPE_CHECKING:
    from clbench.results.result import Result

Role = Literal["claim", "naive"]
Verdict = Literal["reproduced", "consistent", "differs", "not discriminating", "not run"]
# Fewer runs give a verdict that is provisional.
ENOUGH = 5
# Below this p value two means are equivalent.
LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """One run as a claim needs it: its value in percent, after each step the average accuracy, and where it is from.

    role: whether it is the claim's own strategy or naive under the same protocol. seconds: of training, memory and
    evaluation.
    """

    claim: str
    role: Role
    seed: int
    value: float
    seconds: float
    curve: str
    class_order: str
    device: str
    threads: int
    clbench: str
    torch: str
    created: str
    identity: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim with the numbers behind it, in points; None where there are too few runs.

    interval: half the 95 % t interval of the mean. bound: how far the mean may be away. equivalence: the p value of two
    one-sided t tests that the means are no further apart than the tolerance. runs_needed: with so many runs these tests
    would tell equal means, at the 5 % level; None where no number does. naive: the mean of naive under the protocol;
    paired: the mean difference from it, seed by seed, and half its 95 % t interval.
    """

    claim: Claim
    n: int
    mean: float | None
    sd: float | None
    interval: float | None
    difference: float | None
    bound: float | None
    equivalence: float | None
    runs_needed: int | None
    naive: float | None
    paired: float | None
    paired_interval: float | None
    seconds: float | None
    verdict: Verdict
    reason: str

    @property
    def provisional(self) -> bool:
        """Whether there are fewer runs than a verdict needs."""
        return 0 < self.n < min(ENOUGH, self.claim.seeds)


def judge(claim: Claim, runs: Iterable[Measured]) -> Judgement:
    """Decide a claim by its runs and those of naive.

    It is reproduced where |mean - published| <= min(2 tol, max(tol, 2 sqrt(s^2 / n + SEM^2))), s being the standard
    deviation of our n runs and SEM the published mean's standard error: a result that is too good differs too.
    One run can be no more than consistent with a number. A claim does not discriminate where naive passes the same
    rule, or where the paired difference from naive may be 0.
    """
    ours = {run.seed: run for run in runs if run.role == "claim"}
    naive = {run.seed: run for run in runs if run.role == "naive"}
    values = [run.value for _, run in sorted(ours.items())]
    mean, sd, n = spread(values)
    if mean is None:
        empty = (None,) * 11
        return Judgement(claim, 0, *empty, "not run", "no run yet")
    bound = _bound(claim, sd, n)
    difference = mean - claim.value
    passes = abs(difference) <= bound
    baseline = spread(run.value for run in naive.values())
    pairs = [ours[seed].value - naive[seed].value for seed in sorted(ours.keys() & naive.keys())]
    paired, paired_sd, n_pairs = spread(pairs)
    paired_interval = half_interval(paired_sd, n_pairs)
    verdict: Verdict = "differs" if not passes else "reproduced" if n > 1 else "consistent"
    reason = f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'}, {bound:.2f} allowed"
    if passes and claim.strategy != "naive":
        if baseline.mean is None:
            verdict, reason = "not run", "naive has not run under this protocol"
        elif abs(baseline.mean - claim.value) <= _bound(claim, baseline.sd, baseline.n):
            verdict, reason = "not discriminating", f"naive passes as well, with {baseline.mean:.2f}"
        elif paired is not None and paired_interval is not None and abs(paired) <= paired_interval:
            verdict, reason = "not discriminating", f"the difference from naive, {paired:.2f} points, may be 0"
    return Judgement(
        claim,
        n,
        mean,
        sd,
        half_interval(sd, n),
        difference,
        bound,
        None if sd is None else equivalence(difference, *_error_of_both(claim, sd, n), claim.tolerance),
        None if sd is None else _runs_needed(claim, sd),
        baseline.mean,
        paired,
        paired_interval,
        spread(run.seconds for run in ours.values()).mean,
        verdict,
        reason,
    )


def half_interval(sd: float | None, n: int) -> float | None:
    """Return half the width of the 95 % t interval of a mean of n values; None of fewer than two."""
    return None if sd is None or n < 2 else half_width(sd, n)


def _bound(claim: Claim, sd: float | None, n: int) -> float:
    spread_of_both = math.sqrt((sd or 0.0) ** 2 / n + claim.sem**2)
    return min(2 * claim.tolerance, max(claim.tolerance, 2 * spread_of_both))


def _error_of_both(claim: Claim, sd: float, n: int) -> tuple[float, float]:
    """Return the standard error of the difference of the two means, and its degrees of freedom.

    Welch 1947, doi:10.1093/biomet/34.1-2.28; a published mean without an error counts as exact.
    """
    ours, theirs = sd**2 / n, claim.sem**2
    below = ours**2 / (n - 1) + (theirs**2 / (claim.error_runs - 1) if claim.error_runs > 1 else 0.0)
    return math.sqrt(ours + theirs), (ours + theirs) ** 2 / below if below else n - 1


def _runs_needed(claim: Claim, sd: float, most: int = 1000) -> int | None:
    """Return the fewest runs with which equal means would be found equivalent; None above `most`."""

    def enough(n: int) -> bool:
        return equivalence(0.0, *_error_of_both(claim, sd, n), claim.tolerance) <= LEVEL

    return next((n for n in range(2, most + 1) if enough(n)), None)


def measure(claim: Claim, role: Role, result: "Result") -> Measured:
    """Return a run as the claim sees it."""
    classifier = claim.classifier if role == "claim" else None
    value = result.summary(classifier=classifier)[claim.metric]
    if value is None:
        raise ConfigError(f"{claim.id}: {claim.metric} of {result!r} is undefined")
    matrix = result.classifiers[classifier or result.recorded.headline.classifier][result.recorded.headline.matrix]
    sizes = [task["n_test"] for task in result.record["scenario"]["tasks"]]
    steps = (
        average_accuracies(matrix, sizes if claim.metric.startswith("sample") else None) if matrix is not None else []
    )
    environment = result.record["environment"]
    return Measured(
        claim.id,
        role,
        result.seed,
        100 * value,
        round(sum(result.seconds.values()), 1),
        " ".join("-" if step is None else f"{100 * step:.2f}" for step in steps),
        " ".join(map(str, result.recorded.class_order)) if len(result.recorded.class_order) <= 100 else "",
        environment["device"],
        environment["threads"],
        result.recorded.clbench,
        environment["packages"].get("torch", ""),
        result.recorded.created,
        result.recorded.identity,
    )


def to_csv(rows: Iterable[Measured]) -> str:
    """Return runs as CSV, every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Measured)])
    writer.writerows(asdict(row).values() for row in rows)
    return text.getvalue()


def read_csv(text: str) -> list[Measured]:
    """Read what to_csv wrote; raises ConfigError for anything else."""
    numbers = {"seed": int, "value": float, "seconds": float, "threads": int}
    try:
        return [
            Measured(**{name: numbers.get(name, str)(value) for name, value in row.items()})
            for row in csv.DictReader(io.StringIO(text))
        ]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"not a table of measured claims: {error}") from None


def committed() -> list[Measured]:
    """Return the runs that are kept with the code, empty where there are none."""
    file = resources.files("clbench.reports").joinpath("results", "runs.csv")
    return read_csv(file.read_text("utf-8")) if file.is_file() else []


def written(folder: Path) -> list[Measured]:
    """Return the runs in the runs.csv of a folder of results, empty where there is none."""
    path = folder / "runs.csv"
    return read_csv(path.read_text("utf-8")) if path.is_file() else []


def taken_over(claim: Claim, role: Role, identity: str, rows: Iterable[Measured]) -> Measured | None:
    """Return a run that was measured for a claim with the same metric, as this claim sees it; None without one."""
    known = claims()

    def measured_as(other: Claim, its_role: Role) -> tuple[str, str | None]:
        return other.metric, other.classifier if its_role == "claim" else None

    wanted = measured_as(claim, role)
    for row in rows:
        if row.identity == identity and row.claim in known and measured_as(known[row.claim], row.role) == wanted:
            return replace(row, claim=claim.id, role=role)
    return None


def write_results(rows: Sequence[Measured], folder: Path) -> list[Judgement]:
    """Write runs.csv, claims.csv and claims.md; claims that are in the folder and not among the rows stay.

    Return the judgement of each claim that has runs, in order of the claims.
    """
    path = folder / "runs.csv"
    kept = written(folder)
    fresh = {(row.claim, row.role, row.seed): row for row in rows}
    merged = {(row.claim, row.role, row.seed): row for row in kept} | fresh
    ordered = sorted(merged.values(), key=lambda row: (row.claim, row.role, row.seed))
    judgements = judge_all(ordered)
    write_atomically(path, to_csv(ordered))
    write_atomically(folder / "claims.csv", claims_csv(judgements))
    write_atomically(folder / "claims.md", to_markdown(judgements, ordered))
    return judgements


def judge_all(rows: Sequence[Measured], wanted: Sequence[Claim] | None = None) -> list[Judgement]:
    """Return the judgement of each claim wanted; by default of every one that has runs."""
    by_claim: dict[str, list[Measured]] = {}
    for row in rows:
        by_claim.setdefault(row.claim, []).append(row)
    from clbench.reports.published import chosen

    listed = wanted if wanted is not None else [c for c in chosen([]) if c.id in by_claim]
    return [judge(claim, by_claim.get(claim.id, [])) for claim in listed]


def numbers(j: Judgement) -> dict[str, Any]:
    """Return a judgement with every digit, as claims.csv and --json hold it; None for what is undefined."""
    c = j.claim
    return {
        "claim": c.id,
        "citation": c.citation,
        "source": c.source,
        "provenance": c.provenance,
        "metric": c.metric,
        "classifier": c.classifier,
        "published": c.value,
        "error": c.error or None,
        "error_kind": c.error_kind,
        "error_runs": c.error_runs,
        "ours": j.mean,
        "sd": j.sd,
        "n": j.n,
        "interval": j.interval,
        "difference": j.difference,
        "tolerance": c.tolerance,
        "allowed": j.bound,
        "equivalence": j.equivalence,
        "runs_needed": j.runs_needed,
        "naive": j.naive,
        "paired_difference": j.paired,
        "paired_interval": j.paired_interval,
        "seconds": j.seconds,
        "verdict": j.verdict,
        "provisional": j.provisional,
        "reason": j.reason,
        "note": c.note,
    }


def claims_csv(judgements: Sequence[Judgement]) -> str:
    """Return the judgements as CSV, every digit, undefined numbers empty."""
    text = io.StringIO()
    rows = [numbers(j) for j in judgements]
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


COLUMNS = (
    *("claim", "published", "ours", "n", "difference", "allowed", "TOST p", "naive", "paired difference", "verdict"),
)


def cells(j: Judgement) -> list[str]:
    """Return a judgement as the cells of COLUMNS: percent and points."""
    c = j.claim
    n = f"{j.n} of {c.seeds}" if j.n < c.seeds else str(j.n)
    return [
        c.id,
        published_text(c),
        ours_text(j),
        n if j.runs_needed is None or j.runs_needed <= j.n else f"{n}, needs {j.runs_needed}",
        "-" if j.difference is None else f"{j.difference:+.2f}",
        "-" if j.bound is None else f"{j.bound:.2f}",
        "-" if j.equivalence is None else f"{j.equivalence:.2g}" if j.equivalence >= 1e-3 else "< 0.001",
        "-" if j.naive is None else f"{j.naive:.2f}",
        "-"
        if j.paired is None or c.strategy == "naive"
        else f"{j.paired:+.2f}" + ("" if j.paired_interval is None else f" ±{j.paired_interval:.2f}"),
        j.verdict + (" (provisional)" if j.provisional else ""),
    ]


def published_text(claim: Claim) -> str:
    """Return a published number with its error."""
    kinds = {"sem": f"±{claim.error:g} SEM", "std": f"±{claim.error:g} sd", "none": ""}
    uncertain = "?" if claim.provenance == "uncertain" else ""
    return f"{claim.value:g}{uncertain} {kinds[claim.error_kind]}".strip()


def ours_text(j: Judgement) -> str:
    """Return our mean with half its interval."""
    return "-" if j.mean is None else f"{j.mean:.2f}" + ("" if j.interval is None else f" ±{j.interval:.2f}")


def summary(judgements: Iterable[Judgement]) -> str:
    """Say in one line how many claims came to which verdict."""
    counts = Counter(j.verdict for j in judgements)
    return " · ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict))


def to_markdown(judgements: Sequence[Judgement], rows: Sequence[Measured]) -> str:
    """Return the table of claims as Markdown, with versions, seeds and times."""
    lines = [
        "# Published numbers and ours",
        "",
        "Accuracy in percent. Ours: mean ± half the 95 % t interval over n seeds. A claim is reproduced where",
        "|mean - published| <= min(2 tol, max(tol, 2 sqrt(s²/n + SEM²))), the right side being what is allowed; it is",
        "not discriminating where `naive` under the same protocol passes too, or where the difference from it, seed by",
        f"seed, may be 0. With fewer than {ENOUGH} seeds a verdict is provisional, and one run can be no more than",
        "consistent with a number. TOST p: the p value of two one-sided t tests (Schuirmann 1987) that the two",
        "means are no further apart than tol; n says how many runs these tests need where there are fewer. SEM: the",
        "published mean's standard error; sd: standard deviation; ?: a number that nobody could verify.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|",
        *("| " + " | ".join(cells(j)) + " |" for j in judgements),
        "",
        *provenance(rows),
        "",
    ]
    if differing := [j for j in judgements if j.verdict not in ("reproduced", "consistent") and j.n]:
        why = [f"- `{j.claim.id}`: {j.verdict}: {j.reason}. {j.claim.tried}".rstrip() for j in differing]
        lines += ["## Why", "", *why, ""]
    if noted := [j.claim for j in judgements if j.claim.note]:
        lines += ["## Notes on protocols", "", *(f"- `{c.id}`: {c.note}" for c in noted), ""]
    return "\n".join(lines)


def provenance(rows: Sequence[Measured]) -> list[str]:
    """Return the dates, machines and versions of the runs as lines of Markdown."""
    if not rows:
        return ["No runs yet."]
    days = sorted(row.created[:10] for row in rows)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    made = sorted({f"clbench {row.clbench}, torch {row.torch}, {row.device}, {row.threads} thread(s)" for row in rows})
    hours = sum({row.identity: row.seconds for row in rows}.values()) / 3600
    return [f"Run {when}: {'; '.join(made)}; {hours:.1f} hours in all."]


def known_claims(rows: Iterable[Measured]) -> list[Measured]:
    """Return the runs of claims that still exist."""
    return [row for row in rows if row.claim in claims()]
