"""Rules of a fair comparison: each rule that the runs break has an id and a sentence for the reader."""

from collections.abc import Sequence
from statistics import fmean

from clbench.results.result import Result

# A larger ratio of optimizer steps than this is reported.
_UNEQUAL = 1.05


def broken_rules(groups: Sequence[tuple[str, list[Result]]]) -> list[tuple[str, str]]:
    """Return (rule, sentence) for each rule that the runs of a comparison break; groups: runs by label.

    Only the steps of competitors are compared, since a reference such as joint may take more.
    """
    found = []
    runs = [run for _, group in groups for run in group]
    steps = {
        label: fmean(run.steps for run in group)
        for label, group in groups
        if not group[0].is_reference and group[0].steps
    }
    if steps and max(steps.values()) > _UNEQUAL * min(steps.values()):
        most, fewest = max(steps, key=lambda label: steps[label]), min(steps, key=lambda label: steps[label])
        text = f"Not the same number of optimizer steps: {most} takes {steps[most]:.0f}, {fewest} {steps[fewest]:.0f}."
        found.append(("unequal-budget", text))
    if len({run.seed for run in runs}) == 1:
        found.append(("single-seed", "All runs are of one seed: nothing is known of how far others lie apart."))
    elif len({tuple(run.recorded.class_order) for run in runs}) == 1 and _has_an_order(runs[0]):
        text = "All runs have one class order: another order can move accuracies by more than another seed does."
        found.append(("single-class-order", text))
    return found


def _has_an_order(run: Result) -> bool:
    """Tell whether another class order would change the tasks: it does not where all tasks have the same classes."""
    return len(run.task_classes) > 1 and run.setting != "domain"
