"""The list of slow tests names tests that are there."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_slow_test_is_there() -> None:
    listed = (ROOT / "tests/slow.txt").read_text().splitlines()
    assert listed == sorted(set(listed))
    for name in listed:
        path, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(), name
