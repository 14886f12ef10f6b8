"""The two ways a request ends badly, and the one sentence that says why."""

import difflib
import itertools
from collections.abc import Iterable

# Of the one line that an error is, the command line's own "clbench: " included.
LONGEST = 299


class ConfigError(ValueError):
    """The request can't be met as given (exit code 2): one sentence with the value and what is accepted.

    It is one printable line; what was given may be anything, so one that is too long is cut in its middle.
    """

    def __init__(self, message: str, longest: int = LONGEST - len("clbench: ")) -> None:
        super().__init__(one_line(message, longest))


class MissingDataError(ConfigError):
    """A data set is not on this machine, and could not be downloaded."""


class RunError(RuntimeError):
    """A run failed while it was under way (exit code 1), for a reason that one sentence can give."""


def one_line(text: str, longest: int) -> str:
    """Return text as one line of printable characters, cut in its middle where it is too long."""
    # An invisible character is written as in a Python string.
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    if len(line) <= longest:
        return line
    head, tail = line[: longest - longest // 2 - 5], line[-(longest // 2) :]
    # Between words, where one ends nearby.
    if (end := head.rfind(" ")) > len(head) - 20:
        head = head[:end]
    if 0 <= (begin := tail.find(" ")) < 20:
        tail = tail[begin + 1 :]
    return f"{head} ... {tail}"


def shown(value: object, longest: int = 60) -> str:
    """Return a value as a sentence shows it: an array by its shape, all else as Python writes it, cut if it is long."""
    if (shape := getattr(value, "shape", None)) and not isinstance(value, type):
        text = f"<{type(value).__name__} of shape {tuple(shape)}>"
    else:
        try:
            text = repr(value)
        except Exception:  # of a class of the user's, or a number too long to be written
            text = f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def unknown(kind: str, name: str, choices: Iterable[str], *, prefix: str = "") -> ConfigError:
    """Return the error for an unknown name: the nearest valid one, or those there are; `prefix` goes before each."""
    known, name = list(choices), str(name)
    by_lower = {choice.lower(): choice for choice in reversed(known)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    shown = _some([prefix + choice for choice in known])
    hint = f"did you mean {prefix + by_lower[near[0]]!r}?" if near else f"accepted: {shown or 'none'}"
    return ConfigError(f"unknown {one_line(kind, 80)} {one_line(repr(prefix + name), 60)}; {hint}")


def _some(names: list[str]) -> str:
    """Return as many of the names as a line has room for."""
    fitting = sum(length < 180 for length in itertools.accumulate(len(name) + 2 for name in names))
    n = len(names) if fitting == len(names) <= 12 else min(max(fitting, 1), 8)
    return ", ".join([*names[:n], *([f"and {len(names) - n} more"] if n < len(names) else [])])
