import hashlib
import io
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.request import urlopen

import pytest
import torch

from lightning_atlas.cli import fetching
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.intake import zoo
from lightning_atlas.intake.loading import read_weights


class Server(BaseHTTPRequestHandler):
    """Gives one file; `limit` ends the connection early, `status` refuses, `page` answers with a web page."""

    content: bytes = b""
    limit: int | None = None
    status: int | None = None
    ranges: ClassVar[list[str | None]] = []
    url: str = ""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        if self.status:
            self.send_error(self.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.limit is None else body[: self.limit])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def served():
    own = type("Own", (Server,), {"ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    own.url = f"http://127.0.0.1:{server.server_address[1]}/"
    yield own
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def entry(served, tmp_path):
    """One published file of a few tensors, on the server of the test."""
    path = tmp_path / "made.pth"
    torch.save({"net": {f"module.{number}": torch.randn(100) for number in range(50)}}, path)
    served.content = path.read_bytes()
    path.unlink()
    return replace(
        zoo.find("suprem_segresnet"),
        path=tmp_path / "weights" / "a.pth",
        url=served.url + "a.pth",
        sha256=hashlib.sha256(served.content).hexdigest(),
        size_bytes=len(served.content),
    )


def left_in(entry):
    return [each.name for each in entry.path.parent.iterdir()]


def test_a_fetched_file_is_the_published_one_and_is_read_by_its_name(entry, served, monkeypatch):
    told = fetching.fetch(entry, opener=urlopen)
    assert entry.path.read_bytes() == served.content
    assert left_in(entry) == ["a.pth"]
    assert "weights: suprem_segresnet" in told
    monkeypatch.setattr(zoo, "entries", lambda: {entry.name: entry})
    source = read_weights(entry.name)
    assert source.contract == entry.contract
    assert fetching.fetch(entry, opener=None) == f"{entry.name} is here: {entry.path}"
    assert len(served.ranges) == 1


def test_another_folder_gets_the_file_and_the_way_to_use_it(entry, tmp_path):
    told = fetching.fetch(entry, tmp_path / "mine", urlopen)
    assert (tmp_path / "mine" / "a.pth").is_file()
    assert f"weights: {tmp_path / 'mine' / 'a.pth'}" in told
    assert not entry.path.parent.exists()


def test_a_connection_that_breaks_leaves_nothing_under_the_name_and_is_gone_on_with(entry, served):
    served.limit = 3000
    with pytest.raises(CommandError, match=r"suprem_segresnet could not be fetched: .*\nrun the command again"):
        fetching.fetch(entry, opener=urlopen)
    assert left_in(entry) == [".a.pth.part"]
    served.limit = None
    fetching.fetch(entry, opener=urlopen)
    assert served.ranges == [None, "bytes=3000-"]
    assert entry.path.read_bytes() == served.content
    assert left_in(entry) == ["a.pth"]


def test_two_halves_are_only_joined_where_a_hash_tells_that_they_belong_together(entry, served):
    unknown = replace(entry, sha256=None, size_bytes=None)
    entry.path.parent.mkdir()
    (entry.path.parent / ".a.pth.part").write_bytes(b"another file")
    told = fetching.fetch(unknown, opener=urlopen)
    assert served.ranges == [None]
    assert entry.path.read_bytes() == served.content
    assert f"no hash is known for it; this one's sha256 is {entry.sha256}" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sha256": "0" * 64}, "its sha256 is [0-9a-f]{64}, and that of the published file is 0{64}"),
        ({"sha256": None, "sha256_prefix": "00000000"}, "that of the published file is 00000000"),
        ({"size_bytes": 7}, "it has [0-9,]+ bytes, and the published file 7"),
    ],
)
def test_another_file_is_removed_and_said_to_be_another(change, told, entry):
    with pytest.raises(CommandError, match=told):
        fetching.fetch(replace(entry, **change), opener=urlopen)
    assert left_in(entry) == []


def test_a_web_page_is_no_file_of_weights(entry, served):
    served.content = b"\n<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(CommandError, match="is a web page, not weights"):
        fetching.fetch(replace(entry, sha256=None, size_bytes=None), opener=urlopen)
    assert left_in(entry) == []


def test_a_refusal_of_the_server_is_told_with_its_number(entry, served):
    served.status = 403
    with pytest.raises(CommandError, match=r"the server says 403 Forbidden\n(?s:.*)save it by hand"):
        fetching.fetch(entry, opener=urlopen)
    assert left_in(entry) == []


def test_a_disk_without_room_is_told_before_anything_comes(entry, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6})())
    with pytest.raises(CommandError, match=r"has 1 MB left, and suprem_segresnet needs .*--output FOLDER"):
        fetching.fetch(entry, opener=urlopen)
    assert left_in(entry) == []


def test_a_stop_leaves_no_half_file(entry):
    class Stopped(io.BytesIO):
        status, headers = 200, {"Content-Length": "10000"}

        def read(self, *_):
            if self.tell():
                raise KeyboardInterrupt
            self.seek(1)
            return b"x" * 100

    @contextmanager
    def opener(*_, **__):
        yield Stopped()

    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(entry, opener=opener)
    assert left_in(entry) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.pth", "file:///etc/hostname", "ftp://127.0.0.1/a"])
def test_nothing_but_https_is_opened(url, entry):
    with pytest.raises(CommandError, match="unknown url type"):
        fetching.fetch(replace(entry, url=url))
    assert left_in(entry) == []


def test_without_a_network_the_way_by_hand_is_told(entry):
    def opener(*_, **__):
        raise fetching.urllib.error.URLError(OSError("Name or service not known"))

    with pytest.raises(CommandError) as caught:
        fetching.fetch(entry, opener=opener)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 5
    assert "Name or service not known" in lines[0]
    assert entry.url in str(caught.value)
    assert str(entry.path.parent) in str(caught.value)


@pytest.mark.parametrize("top", ["Dataset1_a/", ""])
def test_an_archive_becomes_the_folder_in_it(top, entry, served, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr(f"{top}trainer/plans.json", "{}")
        file.writestr(f"{top}trainer/fold_0/checkpoint_final.pth", "x")
        file.writestr("../../outside.txt", "never there")
        file.writestr("__MACOSX/a", "of a Macintosh")
    served.content = packed.getvalue()
    zipped = replace(
        entry, path=entry.path.with_name("Dataset1_a"), url=served.url + "a.zip", sha256=None, size_bytes=None
    )
    fetching.fetch(zipped, opener=urlopen)
    assert left_in(entry) == ["Dataset1_a"]
    assert not (tmp_path / "outside.txt").exists()
    assert len(list(zipped.path.rglob("plans.json"))) == 1


def test_a_file_that_is_no_archive_leaves_nothing(entry, served):
    zipped = replace(
        entry, path=entry.path.with_name("Dataset1_a"), url=served.url + "a.zip", sha256=None, size_bytes=None
    )
    served.content = b"\x00not an archive"
    with pytest.raises(CommandError, match="is no archive, and was removed"):
        fetching.fetch(zipped, opener=urlopen)
    assert left_in(entry) == []


def test_what_is_shipped_needs_no_network(capsys):
    fetching.main(["fetch", "starter_abdomen_ct"])
    assert "is shipped with the library" in capsys.readouterr().out


def test_the_list_has_a_line_for_each_entry_and_says_what_is_not_known(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_ATLAS_WEIGHTS", str(tmp_path))
    (tmp_path / "VoComni_B.pt").write_bytes(b"x")
    fetching.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert rows.keys() == zoo.entries().keys()
    assert rows["suprem_unet"].split() == [
        "suprem_unet",
        "UniversalNetwork(GenesisUNet)",
        "32",
        "233",
        "MB",
        "Apache-2.0",
        "no",
    ]
    assert rows["vocomni_swin_unetr_b"].endswith("yes")
    assert rows["starter_abdomen_ct"].endswith("shipped")
    assert "not known" in rows["stu_net_huge"]
    assert str(tmp_path) in lines[-1]


@pytest.mark.parametrize("name", zoo.entries())
def test_everything_known_of_an_entry_is_shown_in_ascii(name, capsys):
    entry = zoo.find(name)
    fetching.main(["show", name])
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert shown.isascii()
    for text in (entry.card, entry.licence, entry.origin, *entry.doubts, *entry.contract.classes):
        assert " ".join(text.split()) in words
    assert (entry.sha256 or entry.sha256_prefix or "sha256 not known") in words
    assert max(map(len, shown.splitlines())) < 170


@pytest.mark.parametrize("words", [["fetch"], ["get", "a"], ["fetch", "a", "--folder", "b"], ["show"]])
def test_other_words_are_answered_with_the_right_ones(words):
    with pytest.raises(CommandError, match="write `weights list`"):
        fetching.main(words)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(CommandError, match=r"'suprem_segnet'; nearest: .*suprem_segresnet"):
        fetching.main(["fetch", "suprem_segnet"])
