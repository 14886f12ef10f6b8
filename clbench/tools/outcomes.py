"""The findings of a conformance kit, whatever it checks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CheckResult:
    """The finding of a check: passed, failed (with what is wrong), or not applicable (with the reason)."""

    check: str
    status: str
    reason: str = ""


class NotApplicableError(Exception):
    """Raised by a check for something that it can't apply to by what that declares."""


def demand(holds: object, otherwise: str) -> None:
    """Raise AssertionError unless something holds, also under `python -O`, which leaves out assert statements."""
    if not holds:
        raise AssertionError(otherwise)


def checks_of(module: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    """Return the functions check_NAME that a module defines, by NAME and in their order."""
    named = ((name, value) for name, value in module.items() if name.startswith("check_"))
    return {n.removeprefix("check_"): value for n, value in named if value.__module__ == module["__name__"]}


def found_by(name: str, check: Callable[[], None]) -> CheckResult:
    """Do a check and return what it found; whatever it raises is a finding."""
    try:
        check()
    except NotApplicableError as reason:
        return CheckResult(name, "not applicable", str(reason))
    except AssertionError as error:
        return CheckResult(name, "failed", str(error))
    except Exception as error:  # whatever the code under test raises
        return CheckResult(name, "failed", f"{type(error).__name__}: {error}")
    return CheckResult(name, "passed")
