"""The state directory: one process at a time, blobs verified, files whole."""

import errno
import os
import sqlite3
import subprocess
import sys

import pytest

from covey.device import files
from covey.device.home import Credential, DeviceHome
from covey.types.errors import BlobHashError, StorageError, StorageFullError, TransportError, UsageError
from covey.wire.messages import BlobRef

from . import world

DATA = bytes(range(256)) * 40
REF = world.ref(DATA, "checkpoints")


@pytest.fixture
def home(tmp_path):
    with DeviceHome(tmp_path / "home") as h:
        yield h


def parts(data=DATA, size=1000):
    return (data[i : i + size] for i in range(0, len(data), size))


def blobs(home):
    return sorted(p.name for p in (home.path / "blobs").iterdir())


def test_a_blob_is_kept_by_its_hash(home):
    assert home.blobs.get(REF) is None
    assert home.blobs.download(REF, lambda start: parts()) == DATA
    assert home.blobs.get(REF) == DATA
    assert blobs(home) == [REF.sha256]


@pytest.mark.parametrize(
    "data", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""], ids=["truncated", "longer", "changed", "empty"]
)
def test_a_wrong_download_is_refused_and_nothing_is_kept(home, data):
    with pytest.raises(BlobHashError, match="download: expected 10240 bytes"):
        home.blobs.download(REF, lambda start: parts(data))
    assert blobs(home) == [] and home.blobs.get(REF) is None


def test_a_download_is_cut_off_where_it_grows_too_long(home):
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield bytes(1000)

    with pytest.raises(BlobHashError, match="got more"):
        home.blobs.download(REF, lambda start: endless())
    assert len(sent) == 11


def test_a_blob_that_rotted_on_the_disk_is_deleted(home):
    home.blobs.download(REF, lambda start: parts())
    (home.path / "blobs" / REF.sha256).write_bytes(DATA[:-1] + b"x")
    assert home.blobs.get(REF) is None
    assert blobs(home) == []


@pytest.mark.parametrize("name", ["", "..", "../" + "a" * 61, "A" * 64, "/etc/passwd"])
def test_a_name_that_is_no_hash_cannot_leave_the_directory(home, name):
    ref = BlobRef(sha256=name, num_bytes=1, path="/")
    for call in (lambda: home.blobs.get(ref), lambda: home.blobs.download(ref, lambda start: parts(b"x"))):
        with pytest.raises(BlobHashError, match="a SHA-256 in lower-case hex"):
            call()


def test_a_download_goes_on_where_it_was_cut(home):
    starts = []

    def cut(start):
        starts.append(start)
        yield from parts(DATA[start : start + 3000])
        raise TransportError("server", expected="an answer", got="ReadError")

    for _ in range(3):
        with pytest.raises(TransportError):
            home.blobs.download(REF, cut)
    home.close()
    with DeviceHome(home.path) as again:
        assert again.blobs.get(REF) is None
        assert again.blobs.download(REF, lambda start: (starts.append(start), parts(DATA[start:]))[1]) == DATA
    assert starts == [0, 3000, 6000, 9000]
    assert blobs(home) == [REF.sha256]


def test_what_was_kept_of_a_download_may_have_been_wrong(home):
    (home.path / "blobs" / f".part-{REF.sha256}").write_bytes(b"x" * 100)
    starts = []
    assert home.blobs.download(REF, lambda start: (starts.append(start), parts(DATA[start:]))[1]) == DATA
    assert starts == [100, 0]
    (home.path / "blobs" / REF.sha256).unlink()
    (home.path / "blobs" / f".part-{REF.sha256}").write_bytes(DATA + b"longer")
    assert home.blobs.download(REF, lambda start: parts(DATA[start:])) == DATA


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path):
    with DeviceHome(tmp_path / "h", max_cache_bytes=25) as home:
        refs = []
        for i, name in enumerate("abcd"):
            data = name.encode() * 10
            refs.append(world.ref(data, "plans"))
            home.blobs.download(refs[-1], lambda start, data=data: parts(data))
            os.utime(tmp_path / "h" / "blobs" / refs[-1].sha256, ns=(i, i))
        home.blobs.get(refs[0])  # used again
        home.blobs.trim({refs[1].sha256})
        assert [home.blobs.get(r) is not None for r in refs] == [True, True, False, False]


def test_credentials_are_kept_for_each_population(home):
    other = Credential(server="s", population="q", bearer="c", renew_at_s=2.0)
    home.save_credential(CREDENTIAL)
    home.save_credential(other)
    home.forget_credential("s", "p")
    assert home.credential("s", "p") is None and home.credential("s", "q") == other


def test_a_full_disk_says_so_and_keeps_nothing_by_halves(home, monkeypatch):
    home.save_credential(CREDENTIAL)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageFullError, match="blob cache: expected room on the disk, got No space left"):
        home.blobs.download(REF, lambda start: parts())
    with pytest.raises(StorageFullError, match="credential"):
        home.save_credential(Credential(server="s", population="p", bearer="other", renew_at_s=2.0))
    monkeypatch.undo()
    assert blobs(home) == []
    assert home.credential("s", "p") == CREDENTIAL
    assert [p.name for p in home.path.glob(".partial-*")] == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from covey.device.home import DeviceHome
from covey.types.errors import StorageFullError
from covey.types.tensors import sha256_hex
from covey.wire.messages import BlobRef
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
home = DeviceHome(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
data = bytes(300_000)
try:
    ref = BlobRef(sha256=sha256_hex(data), num_bytes=len(data), path="/")
    home.blobs.download(ref, lambda start: (c for c in [data]))
except StorageFullError:
    assert list((home.path / "blobs").iterdir()) == []
    home.close()
    print("full")
"""


def test_a_real_limit_on_file_size_is_a_full_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "h")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "full\n"


CREDENTIAL = Credential(server="s", population="p", bearer="b", renew_at_s=1.0)


def test_a_credential_is_for_one_server_and_population_and_its_owners_eyes(home):
    assert home.credential("s", "p") is None
    home.save_credential(CREDENTIAL)
    assert home.credential("s", "p") == CREDENTIAL
    assert home.credential("s", "q") is None and home.credential("t", "p") is None
    assert (home.path / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert home.path.stat().st_mode & 0o777 == 0o700
    home.forget_credential("s", "p")
    assert home.credential("s", "p") is None


def test_a_broken_credential_is_no_credential(home):
    (home.path / "credentials.json").write_bytes(b"{")
    assert home.credential("s", "p") is None


def test_a_directory_serves_one_device_at_a_time(tmp_path):
    with DeviceHome(tmp_path / "h"), pytest.raises(UsageError, match="no other process uses") as caught:
        DeviceHome(tmp_path / "h")
    assert "--home" in caught.value.hint
    DeviceHome(tmp_path / "h").close()


def test_another_process_is_kept_out_and_a_killed_one_frees_the_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from covey.device.home import DeviceHome\n"
        "home = DeviceHome(Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "h")], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(UsageError):
        DeviceHome(tmp_path / "h")
    other.kill()
    other.wait()
    other.stdout.close()
    DeviceHome(tmp_path / "h").close()


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    DeviceHome(tmp_path / "h").close()
    leftover = tmp_path / "h" / "blobs" / ".partial-x"
    leftover.write_bytes(b"half")
    DeviceHome(tmp_path / "h").close()
    assert not leftover.exists()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"state directory .*: expected a file that can be read and written"):
        DeviceHome(tmp_path / "file" / "h")


def test_a_lock_that_finds_no_room_says_so():
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    found = files.lock_error("lock l", "a lock that comes free", error)
    assert isinstance(found, StorageFullError) and found.hint
    assert type(files.lock_error("lock l", "a lock that comes free", sqlite3.OperationalError("x"))) is StorageError
