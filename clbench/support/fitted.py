"""Tables that fit: where the width is too small for all columns, whole columns are left out and named below."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

# Between two columns.
GAP = 2
# A column that wraps keeps this width, if it needs it.
LEAST = 24


@dataclass(frozen=True)
class Column:
    """A column of a table.

    keep: of two columns the one with the larger number stays longer; of equal ones the one that is further left.
    wraps: whether its cells may be broken, after a space, comma, slash or bar; titles always may, at spaces.
    """

    title: str
    cells: Sequence[str | Text]
    keep: int = 0
    align: Literal["left", "right"] = "left"
    wraps: bool = False

    @property
    def texts(self) -> list[Text]:
        """The cells as they are printed."""
        return [cell if isinstance(cell, Text) else Text(cell) for cell in self.cells]

    @property
    def widest(self) -> int:
        """The width in which neither title nor cells need a second line."""
        return max(_longest(self.title.splitlines()), *(cell_len(text.plain) for text in self.texts), 1)

    @property
    def least(self) -> int:
        """The width below which a word of the title, or a cell that may not wrap, would be broken."""
        title = _longest(self.title.split())
        if not self.wraps:
            return max(title, _longest([text.plain for text in self.texts]), 1)
        pieces = [piece.rstrip() for text in self.texts for piece in _pieces(text.plain)]
        return max(title, _longest(pieces), min(self.widest, LEAST))

    def text(self, cell: Text, width: int) -> Text:
        """Return a cell with a line break before each piece that has no room left."""
        if not self.wraps or cell_len(cell.plain) <= width:
            return cell
        lines = [""]
        for piece in _pieces(cell.plain):
            if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
        return Text("\n".join(line.rstrip() for line in lines), style=cell.style)


@dataclass(frozen=True)
class Fitted:
    """A table with as many of its columns as fit on the console that prints it, and no word broken.

    more: where the columns that are left out are found; empty where nothing need be said of them.
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    more: str = ""
    head: bool = True

    def shown(self, width: int) -> list[tuple[Column, int]]:
        """Return the columns that fit into a width, in their order, each with its own width."""
        left = list(self.columns)
        while len(left) > 1 and sum(c.least for c in left) + GAP * (len(left) - 1) > width:
            left.remove(min(reversed(left), key=lambda c: c.keep))
        widths = [column.widest for column in left]
        excess = sum(widths) + GAP * (len(left) - 1) - width
        # The widest columns give up first what is too wide.
        while excess > 0:
            reducible = [i for i, column in enumerate(left) if widths[i] > min(column.least, width)]
            if not reducible:
                break
            i = max(reducible, key=lambda i: widths[i])
            widths[i] -= 1
            excess -= 1
        return list(zip(left, widths, strict=True))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        shown = self.shown(options.max_width)
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, show_header=self.head)
        table.collapse_padding, table.padding = True, (0, GAP - 1, 0, 0)
        for column, width in shown:
            table.add_column(
                Text(column.title), justify=column.align, width=width, overflow="fold", vertical="top", no_wrap=False
            )
        for cells in zip(*([c.text(text, width) for text in c.texts] for c, width in shown), strict=True):
            table.add_row(*cells)
        if self.title:
            yield Text(self.title, style="bold")
        yield table
        left_out = [c.title.replace("\n", " ").strip() for c in self.columns if c not in [c for c, _ in shown]]
        told = f"too narrow for: {', '.join(left_out)}; {self.more}" if left_out and self.more else ""
        for text in filter(None, (self.caption, told)):
            yield Text(text, style="dim")


def _pieces(text: str) -> list[str]:
    """Return the parts of a text between which it may be broken."""
    return re.findall(r"[^\s,/|]*(?:[,/|]|\s+|$)", text)


def _longest(words: Sequence[str]) -> int:
    return max(map(cell_len, words), default=0)
