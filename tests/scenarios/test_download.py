"""Downloads, from servers on this machine: sources that fail, lie, or never answer."""

import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from clbench.config.errors import ConfigError
from clbench.scenarios import download
from clbench.scenarios.cifar import CIFAR_BATCHES
from clbench.scenarios.datasets import KNOWN, load_dataset
from clbench.scenarios.files import IDX_FILES

IMAGES = np.arange(10 * 28 * 28).astype(np.uint8).reshape(10, 28, 28)
LABELS = np.arange(10, dtype=np.uint8)
HTML = b"<!DOCTYPE html><html>please log in</html>"


def idx_gz(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    return gzip.compress(content, mtime=0)


FILES = {f"{stem}.gz": idx_gz(IMAGES if "images" in stem else LABELS) for stem in IDX_FILES}


class Mirror:
    """A server: /good/ has the files, /html/ a page, /cut/ half of each; everything else is 404."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                _, place, name = self.path.split("/")
                body = {"good": FILES[name], "html": HTML, "cut": FILES[name][: len(FILES[name]) // 2]}.get(place)
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


def sources(monkeypatch: pytest.MonkeyPatch, *bases: str) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(
        download,
        "payloads",
        lambda torchvision_class: [
            download.Payload(name, tuple(f"{base}/{name}" for base in bases), hashlib.md5(content).hexdigest())
            for name, content in FILES.items()
        ],
    )


@pytest.mark.parametrize("bad", ["html", "cut", "gone"])
def test_a_bad_first_source_leads_to_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    sources(monkeypatch, f"{mirror.url}/{bad}", f"{mirror.url}/good")
    data = load_dataset("mnist", tmp_path)
    assert np.array_equal(data.x_train[:, 0], IMAGES)
    assert data.y_test.tolist() == list(range(10))
    raw = tmp_path / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == FILES  # and nothing unfinished
    assert "downloading http://127.0.0.1" in capsys.readouterr().err
    asked = len(mirror.asked)
    load_dataset("mnist", tmp_path)
    assert len(mirror.asked) == asked  # files on disk: no network call


def test_only_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror) -> None:
    sources(monkeypatch, f"{mirror.url}/good")
    load_dataset("mnist", tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    mirror.asked.clear()
    load_dataset("mnist", tmp_path)
    assert mirror.asked == ["/good/t10k-labels-idx1-ubyte.gz"]


def test_the_error_lists_all_attempts_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror
) -> None:
    sources(monkeypatch, f"{mirror.url}/html", f"{mirror.url}/gone", f"{mirror.url}/cut")
    with pytest.raises(ConfigError) as error:
        load_dataset("mnist", tmp_path)
    message = str(error.value)
    name = "train-images-idx3-ubyte.gz"
    half = len(FILES[name]) // 2
    for place, problem in (
        ("html", "answered an HTML page"),
        ("gone", "HTTP Error 404"),
        ("cut", f"answered {half:,} bytes with the MD5 sum"),
    ):
        assert f"{mirror.url}/{place}/{name}: {problem}" in message
    assert "put train-images-idx3-ubyte.gz, " in message
    assert f"into {tmp_path / 'MNIST' / 'raw'}" in message
    assert "\n" not in message
    assert len(mirror.asked) == 3  # the first file failed everywhere: the others are not asked for
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_offline_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror) -> None:
    sources(monkeypatch, f"{mirror.url}/good")
    with pytest.raises(ConfigError, match="downloads are off"):
        load_dataset("mnist", tmp_path, offline=True)
    assert mirror.asked == []


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sources(monkeypatch, url, url)
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"no answer within 0\.2 s.*no answer within 0\.2 s"):
            load_dataset("mnist", tmp_path)
        assert time.monotonic() - start < 5


def test_name_resolution_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(30) and [])
    sources(monkeypatch, "http://mirror.invalid")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"no answer within 0\.2 s"):
        load_dataset("mnist", tmp_path)
    assert time.monotonic() - start < 5
    released.set()


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.torchvision_class])
def test_torchvisions_sources_cover_every_known_set_and_30_seconds(name: str) -> None:
    payloads = download.payloads(KNOWN[name].torchvision_class)
    folder = KNOWN[name].folder
    expected = [CIFAR_BATCHES[folder].archive] if folder in CIFAR_BATCHES else list(FILES)
    assert sorted(payload.name for payload in payloads) == sorted(expected)
    assert all(url.startswith("http") and url.endswith(payload.name) for payload in payloads for url in payload.urls)
    # No network: each source of the first file is waited for, then it is over; importing torchvision takes seconds too.
    assert len(payloads[0].urls) * download.ANSWER_SECONDS <= 20


def test_a_folder_that_can_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror
) -> None:
    sources(monkeypatch, f"{mirror.url}/good")
    (tmp_path / "MNIST").touch()
    with pytest.raises(ConfigError, match="no data for 'mnist'"):
        load_dataset("mnist", tmp_path)
