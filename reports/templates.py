"""The templates of the page and of Markdown, which lie beside this file."""

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def source(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files("clbench.reports").joinpath(name).read_text("utf-8")


@cache
def environment(*, escaped: bool) -> "Environment":
    """Return what makes texts from templates; escaped: whether values stand in HTML, as text whatever they hold."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(source),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
