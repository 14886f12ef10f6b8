"""The command line: `main`, and the verbs by name. torch is imported by the verbs that train, and by no other."""

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from clbench.cli.before import plan_verb, pretrain_verb, tune_verb
from clbench.cli.caching import cache_verb
from clbench.cli.console import end
from clbench.cli.datasets import data_verb
from clbench.cli.help import Verb
from clbench.cli.listing import list_verb
from clbench.cli.reading import check_verb, describe_verb, report_verb, watch_verb
from clbench.cli.reproducing import reproduce_verb
from clbench.cli.running import compare_verb, crosscheck_verb, run_verb
from clbench.cli.sweeping import sweep_verb
from clbench.cli.using import export_verb, extend_verb, predict_verb
from clbench.config.errors import ConfigError, RunError
from clbench.support.endings import BEGUN, Terminated, ending, interrupt, signals_taken

VERBS: dict[str, Callable[..., None]] = {
    "run": run_verb,
    "compare": compare_verb,
    "crosscheck": crosscheck_verb,
    "sweep": sweep_verb,
    "reproduce": reproduce_verb,
    "plan": plan_verb,
    "pretrain": pretrain_verb,
    "tune": tune_verb,
    "predict": predict_verb,
    "export": export_verb,
    "extend": extend_verb,
    "report": report_verb,
    "watch": watch_verb,
    "describe": describe_verb,
    "check": check_verb,
    "list": list_verb,
    "cache": cache_verb,
    "data": data_verb,
}

app = typer.Typer(
    help="Which continual-learning strategy forgets least, by how much, and can the number be trusted?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"clbench {metadata.version('clbench')}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


for _name, _verb in VERBS.items():
    app.command(_name, cls=Verb)(_verb)


def _check_arguments(command: Any, given: Sequence[str]) -> None:
    """Refuse what click would take in silence: an empty text, as of a variable that is not set, and an option twice."""
    verb = command.commands.get(given[0]) if given else None
    once = {name for p in verb.params if not p.multiple for name in p.opts} if verb is not None else set()
    names = [text.partition("=")[0] for text in given if text.startswith("--")]
    for text in given:
        if not text or (text.startswith("--") and text.endswith("=")):
            what = f"{text} without a value" if text else f"an empty argument in: {' '.join(given)}"
            raise ConfigError(f"{what}; give a value or leave it out")
    for name in names:
        if name in once and names.count(name) > 1:
            raise ConfigError(f"{name} is given twice; once is accepted")


def _without_tilde(text: str) -> str:
    """Return an argument with the home folder for its `~`, which a shell leaves in `--out=~/x` and in quotes."""
    if "~" not in text:
        return text
    from clbench.support.files import expanded

    name, equals, value = text.partition("=")
    if text.startswith("--") and value.startswith("~"):
        return f"{name}{equals}{expanded(value)}"
    return str(expanded(text)) if text.startswith("~") else text


def _note(message: Warning | str, *place: Any, **options: Any) -> None:
    """Show a warning as a note; `--help`, which has none to show, imports nothing for it."""
    from clbench.support.text import note

    note(message, *place, **options)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 a run failed, 2 the request can't be met, 130/143 interrupted."""
    # Typer brings its own copy of click, or uses the installed one, by version; the base class tells which.
    click_error = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    asked = list(sys.argv[1:] if arguments is None else arguments)
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or stream.encoding != "utf-8"):
                # A terminal that has no sign for a character shows another one.
                stream.reconfigure(errors="replace")
        command = typer.main.get_command(app)
        with signals_taken(interrupt), warnings.catch_warnings():
            warnings.showwarning = _note
            given = [_without_tilde(text) for text in asked]
            _check_arguments(command, given)
            code = command.main(args=given, prog_name="clbench", standalone_mode=False)
        # Typer turns Ctrl-C into this code.
        if code == 130:
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt):
        end(*ending(signal.SIGINT, asked, begun=BEGUN.is_set()))
    except Terminated as ended:
        end(*ending(ended.number, asked, begun=BEGUN.is_set()))
    except ConfigError as error:
        end(str(error), 2)
    except RunError as error:
        # An exception of the user's code may be of another kind too.
        if type(error) is RunError:
            end(str(error), 1)
        if os.environ.get("CLBENCH_TRACEBACK"):
            raise
        end(f"{error}; CLBENCH_TRACEBACK=1 shows where it came from", 1)
    except SystemExit as ended:
        # Typer and rich end with 1 when nobody reads what is printed any more.
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(0)
        if not isinstance(ended.code, int) or not ended.code:
            # No verb leaves so; code of the user's did, and what was asked for is not done.
            end(f"sys.exit({'' if ended.code is None else repr(ended.code)}) was called under way", 1)
        sys.exit(ended.code)
    except BaseException as error:  # a user's code may raise what is no Exception
        if not isinstance(error, click_error):
            if os.environ.get("CLBENCH_TRACEBACK"):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            end(
                f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno}); "
                "CLBENCH_TRACEBACK=1 shows where it came from",
                1,
            )
        message: str = error.format_message()  # type: ignore[attr-defined]
        # No arguments at all: click raises the help text as an error.
        if error.__class__.__name__ == "NoArgsIsHelpError":
            print(message)
            sys.exit(0)
        end(str(ConfigError(message)), 2)
    sys.exit(0)
