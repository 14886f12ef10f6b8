"""The two ways a request ends badly, and the one sentence that says why."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The request can't be met as given (exit code 2): one sentence with the value and what is accepted."""


class RunError(RuntimeError):
    """A run failed while it was under way (exit code 1), for a reason that one sentence can give."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """Return the error for an unknown name: the nearest valid one, or those there are."""
    known = list(choices)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    shown = [*known[:8], f"and {len(known) - 8} more"] if len(known) > 12 else known
    hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(shown) or 'none'}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")
