"""Writes slow.txt: the tests that a report of `pytest --junitxml FILE` says take longer than LONGEST seconds.

    python tests/list_slow.py FILE

conftest.py marks them `slow`, so that `make test` stays short on two cores; `make test-all` runs every test.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

LONGEST = 2.0
LIST = Path(__file__).with_name("slow.txt")


def main() -> None:
    """Add what the report says to the list, and drop what is no longer there."""
    found = set(LIST.read_text().splitlines()) if LIST.exists() else set()
    root = Path(__file__).parent.parent
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        path = f"{case.attrib['classname'].replace('.', '/')}.py"
        name = f"{path}::{case.attrib['name']}"
        if float(case.attrib["time"]) > LONGEST and (root / path).is_file():
            found.add(name)
    kept = [name for name in found if f"def {name.partition('::')[2].partition('[')[0]}(" in text_of(root, name)]
    LIST.write_text("\n".join(sorted(kept)) + "\n")


def text_of(root: Path, name: str) -> str:
    """Return the file of a test, or nothing."""
    path = root / name.partition("::")[0]
    return path.read_text() if path.is_file() else ""


if __name__ == "__main__":
    main()
