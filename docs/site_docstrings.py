"""A griffe extension: the parameters of a docstring, one `name: text` a line in the code, as a list on the site."""

import re
from typing import Any

from griffe import Extension, Object

# A parameter, or several of one meaning, at the beginning of a line; what is indented further belongs to it.
PARAMETERS = re.compile(r"((?:^[a-z_*][\w*, ]*: .*\n?(?:^[ \t]+\S.*\n?)*)+)", re.MULTILINE)
PARAMETER = re.compile(r"^([a-z_*][\w*, ]*): ", re.MULTILINE)


class Parameters(Extension):
    """Makes each `name: text` of a docstring an item of a list."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = PARAMETERS.sub(
                lambda found: "\n" + PARAMETER.sub(r"- `\1`: ", found[1]) + "\n", obj.docstring.value
            )
