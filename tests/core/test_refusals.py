"""Cases that the fuzzers found: each is refused in one printable line under 300 characters, without a traceback."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench import ConfigError
from clbench.cli.options import read_config
from clbench.config.errors import unknown
from clbench.results.result import Result, load_results
from clbench.running.folder import RunFolder
from clbench.running.packing import pack, unpack
from clbench.running.resolve import resolve

OPTIONS = {"model": "mlp:4", "epochs": 1, "threads": 1}


@pytest.mark.parametrize("text", ["a" * 5000, "é" * 400, "\x1b[31m\u202e\udcff", "a\nb\tc", " "])
@pytest.mark.parametrize("option", ["scenario", "strategy", "model", "device", "weights", "train", "class_order"])
def test_any_text_is_refused_in_one_printable_line(option: str, text: str, tmp_path: Path) -> None:
    names = {"scenario": "split-mnist-5k", "strategy": "naive"}
    options: dict[str, Any] = {k: v for k, v in OPTIONS.items() if k != option}
    if option in names:
        names[option] = text
    else:
        options[option] = text
    with pytest.raises(ConfigError) as caught:
        clbench.run(names["scenario"], names["strategy"], out=tmp_path / "run", **options)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_names_that_an_error_lists_fit_into_its_line() -> None:
    assert len(str(unknown("claim", "?", [f"{'long' * 12}/{i}" for i in range(100)]))) < 300
    assert str(unknown("thing", "?", ["a", "b"])) == "unknown thing '?'; accepted: a, b"
    assert str(unknown("thing", "?", ["a", "b"], prefix="x:")) == "unknown thing 'x:?'; accepted: x:a, x:b"
    # Case makes names no less alike, and a prefix of all names makes them no more alike.
    assert str(unknown("thing", "ewcc", ["EWC"], prefix="x:")) == "unknown thing 'x:ewcc'; did you mean 'x:EWC'?"


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, 3, True])
def test_a_setting_of_another_type_is_refused(value: Any) -> None:
    """A list can't be looked up in the presets by setting."""
    if value is None:
        resolve("split-mnist-5k", "ewc", {"setting": value})  # nothing was requested
        return
    with pytest.raises(ConfigError, match="setting="):
        resolve("split-mnist-5k", "ewc", {"setting": value})


def test_a_path_with_a_nul_is_refused(refused: Any) -> None:
    """Only a config file or Python can give one."""
    with refused("weights="):
        clbench.run("split-mnist-5k", "naive", weights="a\0b", **OPTIONS)


def png(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(9400, 9400), (12000, 14000), (60000, 60000)])
def test_an_image_that_claims_to_be_huge_is_refused_from_its_header(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    from clbench.scenarios.images import find_image_folder

    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        (tmp_path / "photos" / part / "cat").mkdir(parents=True)
        (tmp_path / "photos" / part / "cat" / "0.png").write_bytes(png(*size))
    with refused("0.png", "pixels"):
        find_image_folder(tmp_path / "photos", 32).read()


def test_a_run_json_with_a_list_for_tuned_by_is_left_out(run: Any, tmp_path: Path, refused: Any) -> None:
    record = run(out=tmp_path / "run").record
    record["config"]["tuned_by"] = ["oracle"]
    with pytest.raises(ValueError, match="tuned_by"):
        Result(record)


def test_forgetting_of_a_single_row_is_undefined_in_the_report(run: Any, tmp_path: Path) -> None:
    """The record still holds the metric, and of the matrix only its first row."""
    import json

    from clbench.reports import write_report

    record = run("lwf", out=tmp_path / "run").record
    for name in ("class_incremental", "task_aware"):
        for found in (record["accuracy"], *record["classifiers"].values()):
            found[name] = found[name][:1]
    record = json.loads(json.dumps(record))
    (tmp_path / "run" / "run.json").write_text(json.dumps(record), "utf-8")
    write_report(load_results(tmp_path / "run"), tmp_path / "report")
    assert "Forgetting is undefined" in (tmp_path / "report" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("part", ["record", "task", "within", "start"])
@pytest.mark.parametrize("value", [None, -1, "a", [], {}, {"trainer": 3}, 10**30])
def test_a_checkpoint_with_other_contents_is_refused(
    part: str, value: Any, run: Any, tmp_path: Path, refused: Any
) -> None:
    """Its checksums are right, so it is not damaged; its content has been changed."""

    class StopError(Exception):
        pass

    class Stop(clbench.running.observer.Observer):
        def task(self, task: int, row: Any) -> None:
            raise StopError

    with pytest.raises(StopError):
        run("naive", out=tmp_path / "run", observer=Stop())
    file = tmp_path / "run" / "checkpoint.pt"
    stored = unpack(file.read_bytes(), clbench.Strategy)
    if part == "within" and value is None:
        return  # as it is at the beginning of a task
    file.write_bytes(pack(stored | {part: value}))
    (tmp_path / "run" / "checkpoint-previous.pt").unlink(missing_ok=True)
    assert RunFolder(tmp_path / "run").has_checkpoint()
    with refused("checkpoint", "--force"):
        run("naive", out=tmp_path / "run", resume=True)


def test_a_config_file_of_any_bytes_is_refused(tmp_path: Path, refused: Any) -> None:
    for name in ("a.toml", "a.json"):
        (tmp_path / name).write_bytes(b"\xff\x00[" * 400)
        with refused(name):
            read_config(tmp_path / name)
