import hashlib
import http.server
import threading

import pytest

from covey.data.download import RemoteFile, fetch
from covey.types.errors import BlobHashError, NotFoundError, TransportError

CONTENT = b"digits" * 1000


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()
        thread.join()


def remote(url, content=CONTENT):
    return RemoteFile(url=url, path="set/file", md5=hashlib.md5(content).hexdigest())


def test_a_file_is_fetched_once_and_checked(site):
    seen = []
    (path,) = fetch("set", files=[remote(site)], on_progress=lambda *a: seen.append(a))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("file", len(CONTENT), len(CONTENT))
    assert fetch("set", files=[remote("http://127.0.0.1:1/gone")]) == [path]


def test_other_bytes_are_not_kept(site, tmp_path):
    with pytest.raises(BlobHashError):
        fetch("set", files=[remote(site, b"something else")])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_no_answer_and_no_download_are_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(TransportError):
        fetch("set", files=[remote("http://127.0.0.1:1/nothing")])
    with pytest.raises(NotFoundError, match="mnist"):
        fetch("imagenet")
