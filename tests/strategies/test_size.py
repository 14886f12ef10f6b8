"""A method can be read at one go: no strategy's file has more than 80 lines of code, and LwF's fewer than 40."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

STRATEGIES = Path(__file__).parents[2] / "strategies"
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(text: str) -> int:
    """Count the lines of a module without blank ones, comments, imports and docstrings."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            left_out.update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - left_out)


def test_lines_are_counted_as_by_hand() -> None:
    """A class, an attribute of three lines and a return are six lines with their def; the rest is no code."""
    text = '''"""A module."""

import os
from a import (
    b,
)


# A comment.
class A:
    """A class,

    described."""

    x = (  # with a comment
        1,
    )

    def f(self):
        """A function."""
        return 1  # one
'''
    assert code_lines(text) == 6


@pytest.mark.parametrize("file", sorted(STRATEGIES.glob("*.py")), ids=lambda file: file.stem)
def test_a_strategy_is_short(file: Path) -> None:
    assert code_lines(file.read_text("utf-8")) <= (39 if file.stem == "lwf" else 80)
