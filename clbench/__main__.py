"""python -m clbench, and the command clbench."""

from typing import NoReturn

from clbench.support.endings import end_at_once, take_signals


def main() -> NoReturn:
    """Run the command line; a signal ends it in a sentence while it is still, or no longer, under way."""
    take_signals(end_at_once)
    from clbench.cli import main as run

    try:
        run()
    finally:
        take_signals(end_at_once)


if __name__ == "__main__":
    main()
