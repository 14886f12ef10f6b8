"""The help of a verb: short by default, and every option with --help-all."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    pass

# A verb with no more options than this shows all of them.
FEW = 24
# The options of a run that the short help shows.
COMMON = {
    *("setting", "tasks", "limit", "seed", "model", "epochs", "batch_size", "optimizer", "lr"),
    *("memory_size", "device", "threads", "data_root"),
}


class Verb(TyperCommand):
    """A verb whose help fits on a screen."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, the sentences of the verb, arguments and options; each option with a line, or a few."""
        self.print_help(ctx, every=len(self.params) <= FEW)

    def print_help(self, ctx: Any, *, every: bool) -> None:
        """Print the help, with all options or the common ones."""
        from rich.console import Console, Group
        from rich.text import Text

        from clbench.support.fitted import Column, Fitted

        groups: dict[str, list[tuple[str, Text]]] = {"": []}
        left_out = 0
        for param in self.get_params(ctx):
            panel = getattr(param, "rich_help_panel", None) or ""
            if panel and not every and param.name not in COMMON:
                left_out += 1
                continue
            group = panel if every else ""
            groups.setdefault(group, []).append((_typed(param), Text.from_markup(getattr(param, "help", None) or "")))
        usage = " ".join([ctx.command_path, *self.collect_usage_pieces(ctx)])
        shown: list[Any] = [Text(f"usage: {usage}\n\n{self.help}\n")]
        for group, rows in groups.items():
            if group:
                shown.append(Text(f"\n{group}", style="bold"))
            names = Column("", [name for name, _ in rows], keep=1, wraps=True)
            shown.append(Fitted([names, Column("", [text for _, text in rows], wraps=True)], head=False))
        if left_out:
            shown.append(Text(f"\n{left_out} more options: clbench {self.name} --help-all"))
        Console(highlight=False).print(Group(*shown))


def _typed(param: Any) -> str:
    """Return how a parameter is typed: `--lr X`, `scenario`."""
    if param.param_type_name == "argument":
        return str(param.name)
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {param.metavar or str(param.name).rpartition('_')[2].upper()}"


def show_all(ctx: typer.Context, asked: bool) -> None:
    """Print the help with all options, and end."""
    if asked:
        cast(Verb, ctx.command).print_help(ctx, every=True)
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", help="Show every option and exit.", callback=show_all, is_eager=True)
]
