"""``covey device`` in a terminal: joining, leaving, the service, and what `run` says when it cannot."""

import shlex
import subprocess
import sys

import pytest

from covey.plans.signing import generate_owner_key, public_key_pem


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "owner.pub"
    path.write_bytes(public_key_pem(generate_owner_key().public_key()))
    return path


def test_join_run_leave(covey, key, tmp_path):
    home = tmp_path / "my home"
    where = ["--server", "https://127.0.0.1:1", "--population", "p", "--owner-key", key, "--home", home]
    done = covey("device", "join", *where, "--min-cohort", 7)
    assert done.returncode == 0, done.stderr
    assert "takes part in 'p' at https://127.0.0.1:1" in done.stdout
    command = [sys.executable, "-m", "covey", "device", "run", "--home", str(home), "--assume", "idle,charging,battery"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as agent:
        try:
            assert "trying again" in agent.stdout.readline()  # nobody listens there
            second = covey("device", "run", "--home", home)
            assert second.returncode == 2 and "one in use by process" in second.stderr, second.stderr
            agent.terminate()
            out, err = agent.communicate(timeout=60)
            assert agent.returncode == 143 and "stopped" in out, err
        finally:
            agent.kill()
    done = covey("device", "leave", "p", "--home", home)
    assert done.returncode == 0, done.stderr
    done = covey("device", "run", "--home", home)
    assert done.returncode == 2 and "covey device join" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--server", "https://x"], "--server with --population and --owner-key"),
        (["--home", "a", "--home", "b"], "--server with --once or several --home"),
        (["--once"], "--server with --once or several --home"),
        (["--assume", "unmeterd"], "some of idle, charging, unmetered, battery, storage, memory"),
    ],
)
def test_what_was_typed_cannot_be_done(covey, tmp_path, args, said):
    done = covey("device", "run", *args, XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == 2 and said in done.stderr


def test_terms_that_mean_nothing_are_not_joined(covey, key, tmp_path):
    where = [
        "device",
        "join",
        "--server",
        "https://x",
        "--population",
        "p",
        "--owner-key",
        key,
        "--home",
        tmp_path / "h",
    ]
    for more, said in (
        (["--min-cohort", 0], "--min-cohort"),
        (["--min-noise", "nan"], "--min-noise"),
        (["--ca", key], "certificates in PEM"),
    ):
        done = covey(*where, *more)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "h").exists()


def test_the_service_runs_this_python_and_quotes_what_systemd_would_read(covey, tmp_path):
    home = tmp_path / 'a "50%" $home'
    done = covey("device", "install-service", "--home", home, "--assume", "unmetered")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart=").replace("$$", "$").replace("%%", "%"))
    assert words == [sys.executable, "-m", "covey", "device", "run", "--home", str(home), "--assume", "unmetered"]
    for setting in ("Nice=10", "IOSchedulingClass=idle", "RestartPreventExitStatus=2", "WantedBy=default.target"):
        assert setting in done.stdout
    done = covey("device", "install-service", "--write", XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert "systemctl --user enable --now covey-device.service" in done.stdout
    assert "[Service]" in (tmp_path / "config/systemd/user/covey-device.service").read_text()
