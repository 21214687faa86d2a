"""Fetching: goes on where it stopped, refuses other bytes, says what to do without a network."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memalpha.data import download
from memalpha.data.download import REMOTES, Remote, fetch
from memalpha.data.files import DOWNLOADS

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server():
    """Serves CONTENT with ranges; `limit` bytes of it, then it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            server.asked.append(first)
            if self.path != "/file":
                return self.send_error(404)
            if first >= len(server.content):
                return self.send_error(416)
            body = server.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.limit])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.limit, server.asked = CONTENT, None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(server, path="a/file.json", **options):
    return Remote(f"http://127.0.0.1:{server.server_port}/file", path, **options)


def test_a_file_is_fetched_once_and_pinned(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(remote(server, sha256=digest), tmp_path)
    assert path == tmp_path / "a" / "file.json" and path.read_bytes() == CONTENT
    assert json.loads((path.parent / DOWNLOADS).read_text())["file.json"]["sha256"] == digest
    assert fetch(remote(server, sha256=digest), tmp_path) == path
    assert server.asked == [0]
    assert sorted(p.name for p in path.parent.iterdir()) == [DOWNLOADS, "file.json"]


def test_a_fetch_that_broke_off_goes_on(server, tmp_path):
    server.limit = 1000
    with pytest.raises(ConnectionError, match="put it at .*file.json; run again"):
        fetch(remote(server), tmp_path)
    assert not (tmp_path / "a" / "file.json").exists()
    server.limit = None
    path = fetch(remote(server, sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path)
    assert path.read_bytes() == CONTENT and server.asked == [0, 1000]


def test_a_part_that_is_whole_takes_its_name(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.json.part").write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [len(CONTENT)]


def test_other_bytes_are_refused_and_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match="SHA-256 .* where 0000 is expected"):
        fetch(remote(server, sha256="0000"), tmp_path)
    assert not list((tmp_path / "a").iterdir())
    path = fetch(remote(server), tmp_path)  # no hash is known: this one is pinned
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(ValueError, match=hashlib.sha256(CONTENT).hexdigest()):
        fetch(remote(server), tmp_path)
    path.write_bytes(b"changed by hand")
    with pytest.raises(ValueError, match="file.json: SHA-256"):
        fetch(remote(server), tmp_path)


def test_no_network_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match="Without a network, fetch it on another machine"):
        fetch(Remote("http://127.0.0.1:9/none", "a/b.json"), tmp_path)


def test_the_hub_is_asked_for_the_pinned_commit(tmp_path, monkeypatch):
    asked = []

    class Api:
        def dataset_info(self, repository):
            asked.append(repository)
            return type("Info", (), {"sha": "c0ffee"})

    def hub(repository, name, repo_type, revision, local_dir):
        asked.append((repository, name, repo_type, revision))
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_bytes(CONTENT)
        return str(local_dir / name)

    monkeypatch.setattr(download, "HfApi", Api)
    monkeypatch.setattr(download, "hf_hub_download", hub)
    remote = Remote("x.parquet", "m/x.parquet", repository="o/d")
    path = fetch(remote, tmp_path)
    assert path.read_bytes() == CONTENT
    path.unlink()
    fetch(remote, tmp_path)
    call = ("o/d", "x.parquet", "dataset", "c0ffee")
    assert asked == ["o/d", call, call]  # the second time the commit is known
    fetch(Remote("y.parquet", "m/y.parquet", repository="o/d", revision="fee1"), tmp_path)
    assert asked[3:] == [("o/d", "y.parquet", "dataset", "fee1")]  # not asked which is the newest
    assert json.loads((tmp_path / "m" / DOWNLOADS).read_text())["y.parquet"]["origin"] == "fee1"


def test_a_hub_that_is_not_reached_says_what_to_do(tmp_path, monkeypatch):
    class Api:
        def dataset_info(self, repository):
            raise RuntimeError("name or service not known")

    monkeypatch.setattr(download, "HfApi", Api)
    with pytest.raises(ConnectionError, match=r"o/d x\.parquet: RuntimeError: name .* put it at"):
        fetch(Remote("x.parquet", "m/x.parquet", repository="o/d"), tmp_path)


def test_every_remote_goes_where_its_loader_looks():
    paths = [remote.path for some in REMOTES.values() for remote in some]
    assert len(paths) == len(set(paths))
    folders = {path.split("/")[0] for path in paths}
    assert folders == {
        "squad", "squad_v2", "trec", "nlu", "hotpotqa", "perltqa", "longmemeval", "banking77",
        "clinc150", "booksum", "infinitebench", "memalpha", "memoryagentbench",
    }  # fmt: skip


def test_what_is_pinned_before_the_first_fetch():
    """A commit in every address of GitHub; the hashes that are known are whole ones."""
    remotes = [remote for some in REMOTES.values() for remote in some]
    for found in remotes:
        if "githubusercontent" in found.url:
            assert re.fullmatch("[0-9a-f]{40}", found.url.split("/")[5]), found
        assert re.fullmatch("([0-9a-f]{40})?", found.revision), found
        assert re.fullmatch("([0-9a-f]{64})?", found.sha256), found
    unknown = {remote.path.split("/")[0] for remote in remotes if not remote.sha256}
    assert unknown == {"nlu", "perltqa", "booksum", "memalpha", "memoryagentbench"}
