"""Text for people to read."""

import sys
import warnings
from typing import Any


def printable(text: str) -> str:
    """Return the text without line breaks, terminal codes and other characters that can't be seen."""
    return "".join(character if character.isprintable() else "?" for character in text)


def duration(seconds: float) -> str:
    """Return a time for people: `12.3 s`, `5 min`, `2 h 7 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """Return a time that counts down: `0:12`, `5:00`, `2:07:31`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def note(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as the command line does, in the place of `warnings.showwarning`."""
    print(f"note: {message}", file=sys.stderr)


def tell(text: str) -> None:
    """Warn at the caller's line outside clbench, each time anew.

    Python's default filter shows a warning only the first time that a line of a program gives it.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("clbench."):
        frame = frame.f_back
    warnings.warn_explicit(text, UserWarning, frame.f_code.co_filename, frame.f_lineno, registry={})
