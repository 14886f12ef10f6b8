"""Whose code an exception comes from, so that a run that fails in a class of the user's ends in one sentence."""

import sys
import traceback
from pathlib import Path
from types import FrameType

import pydantic

from clbench.config.errors import LONGEST, ConfigError, RunError, one_line

# Code of these is never the user's.
_OTHERS = {"clbench", "torch", "numpy", "pydantic"} | sys.stdlib_module_names


def place_of(error: BaseException) -> str:
    """Return where an exception was raised: the user's hook, if it is one, the file and the line."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    if not frames:
        return "outside of Python"
    own = [(frame, line) for frame, line in frames if _root(frame) not in _OTHERS]
    frame, line = (own or frames)[-1]
    hook = f"{own[0][0].f_code.co_qualname.rpartition('<locals>.')[2]}, " if own else ""
    return f"{hook}{Path(frame.f_code.co_filename).name} line {line}"


def run_error(error: Exception, task: int) -> Exception:
    """Return what a run ends with that an exception stopped: a RunError of one sentence; a refusal stays as it is.

    It is of the exception's own kind too, so that who raises something to end a run can catch it.
    """
    if isinstance(error, ConfigError | RunError):
        return error
    said = error.errors(include_url=False)[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
    kind = f"{type(error).__name__}: {said}".removesuffix(": ")
    where = f"task {task}, " if task >= 0 else ""
    text = one_line(f"{one_line(kind, LONGEST - 100)} ({where}{place_of(error)})", LONGEST)
    named = {"__module__": RunError.__module__, "__str__": RuntimeError.__str__}
    try:
        failure: Exception = type("RunError", (RunError, type(error)), named)(text)
    except TypeError:  # the two kinds can't be one
        return RunError(text)
    vars(failure).update(vars(error))
    return failure


def _root(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
