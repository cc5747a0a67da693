"""Every write of the storage fails in turn: a state that was never, or an answer that was not true, must not be seen.

A small library is loaded before the C library and counts every call that changes a file, of Python and of SQLite. At
the one that the test names the process dies, dies with half of it done, or finds the disk full. ``faults.py`` walks all
of them, through populations, tasks, rounds, releases, roll-backs and the privacy ledger, and through a migration.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

static long left = 0;
static int kind = 0;
void covey_arm(long n, int how) { left = n; kind = how; }
long covey_left(void) { return left; }
static int now(void) { return left > 0 && --left == 0; }
static void die(void) { kill(getpid(), SIGKILL); }

#define CHANGE(name, params, args) \
    int name params { \
        static int (*real) params; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (now()) { \
            if (kind == 2) { errno = ENOSPC; return -1; } \
            die(); \
        } \
        return real args; \
    }
#define WRITE(name, params, args, half) \
    ssize_t name params { \
        static ssize_t (*real) params; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (now()) { \
            if (kind == 2) { errno = ENOSPC; return -1; } \
            if (kind == 1) real half; \
            die(); \
        } \
        return real args; \
    }

WRITE(write, (int f, const void *b, size_t n), (f, b, n), (f, b, n / 2))
WRITE(pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), (f, b, n / 2, o))
WRITE(pwrite64, (int f, const void *b, size_t n, off64_t o), (f, b, n, o), (f, b, n / 2, o))
CHANGE(fsync, (int f), (f))
CHANGE(fdatasync, (int f), (f))
CHANGE(rename, (const char *a, const char *b), (a, b))
CHANGE(unlink, (const char *a), (a))
CHANGE(ftruncate, (int f, off_t n), (f, n))
CHANGE(ftruncate64, (int f, off64_t n), (f, n))
"""

COMPILER = shutil.which("cc")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="loads a library before the C library, as Linux can"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, cc"),
]
FAULTS = Path(__file__).with_name("faults.py")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "faults.c").write_text(LIBRARY)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", folder / "faults.so", folder / "faults.c", "-ldl"], check=True)
    return folder / "faults.so"


def walk(library, *arguments):
    got = subprocess.run(
        [sys.executable, FAULTS, *arguments],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (got.returncode, got.stderr) == (0, "")
    return int(got.stdout)


@pytest.fixture
def work():
    """Return a folder; in memory where there is one, for every walk syncs a thousand times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", ["kill", "torn", "full"])
def test_every_write_fails_in_turn_and_nothing_is_half_done(kind, library, work):
    assert walk(library, work, kind) > 80


@pytest.mark.parametrize("kind", ["kill", "torn", "full"])
def test_every_write_of_a_migration_fails_in_turn_and_it_loses_nothing(kind, library, work):
    assert walk(library, work, kind, Path(__file__).with_name("schema_2.sql")) > 5
