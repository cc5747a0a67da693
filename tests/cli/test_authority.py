"""Two programs and a population: an authority, a server that it does not trust, and devices with tokens."""

import stat

import pytest

from .test_federation import line_with, running, url_of


@pytest.fixture
def world(covey, tiny, tmp_path):
    """An application's key, an authority, a population for four devices a round, and four devices with examples."""

    def done(*args):
        result = covey(*args)
        assert result.returncode == 0, result.stderr
        return result.stdout

    done("attest", "key", tmp_path / "app")
    made = done(
        "authority", "init", tmp_path / "authority", "--population", "blobs", "--port", 0,
        "--attestation-key", tmp_path / "app.pub",
    )  # fmt: skip
    assert "authority.pub" in made
    made = done(
        "init", tmp_path / "fed", "--recipe", tiny, "--cohort", 4, "--min-cohort", 3, "--port", 0, "--host",
        "localhost", "--active", "--authority-key", tmp_path / "authority" / "authority.pub",
    )  # fmt: skip
    assert "secure aggregation against an active server" in made
    shown = done("plan", "inspect", tmp_path / "fed/server/plan.covey")
    assert "a server that lies; devices certified by" in shown
    config = tmp_path / "fed/server/server.toml"
    head = 'enrolment = "token"\n' + config.read_text().replace("over_selection = 1.3", "over_selection = 1.0")
    config.write_text(head + '\n[attestation]\nkey = "app.pub"\n')
    (tmp_path / "fed/server/app.pub").write_bytes((tmp_path / "app.pub").read_bytes())
    for i in range(4):
        done("device", "fill", "--home", tmp_path / f"home-{i}", "--recipe", tiny, "--client", i + 4)
    return tmp_path


def tokens(covey, world, audience, count=8):
    """Write tokens for devices to a file, as an application does."""
    made = covey(
        "attest", "token", "--key", world / "app", "--population", "blobs", "--audience", audience, "--count", count
    )
    assert made.returncode == 0, made.stderr
    path = world / f"{audience}.tokens"
    path.write_text(made.stdout)
    return path


def device_args(world, server, authority, *more):
    out = ["device", "run", "--server", server, "--population", "blobs", "--min-cohort", "3", "--once"]
    out += ["--owner-key", world / "fed/owner/owner.pub", "--ca", world / "fed/server/authority/ca.pem"]
    out += [a for i in range(4) for a in ("--home", world / f"home-{i}")]
    if authority:
        out += ["--authority", authority, "--authority-key", world / "authority/authority.pub"]
        out += ["--authority-ca", world / "authority/tls/ca.pem"]
    return [*out, *more]


def test_devices_with_tokens_take_part_in_sums_against_an_active_server(covey, world):
    with (
        running("serve", "--dir", world / "fed/server") as server,
        running("authority", "serve", world / "authority") as a,
    ):
        url, authority = url_of(line_with(server, "serving")), url_of(line_with(a, "certifying devices"))
        mine = ("--attestation", tokens(covey, world, "server"))
        theirs = ("--authority-attestation", tokens(covey, world, "authority"))
        refused = covey(*device_args(world, url, "", *mine))
        assert refused.returncode == 1 and "this device pins none" in refused.stderr
        done = covey(*device_args(world, url, authority, *mine, *theirs))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("counted") == 4
        assert "round 1 committed" in line_with(server, "committed")
    assert stat.S_IMODE((world / "authority/authority.key").stat().st_mode) == 0o600
    # The server's directory has no trace of the authority's key, and the other way round.
    key = (world / "authority/authority.key").read_bytes()
    assert all(key not in p.read_bytes() for p in (world / "fed").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["authority", "init", "x", "--population", "p"], "either --attestation-key FILE or --open"),
        (["authority", "serve", "."], "`covey authority init DIR` writes one"),
        (["attest", "token", "--key", "none", "--population", "p", "--audience", "server"], "a readable file"),
        (["device", "run", "--server", "https://s", "--population", "p", "--owner-key", "OWNER", "--home", "h",
          "--authority", "https://a"], "URL and --authority-key FILE, both"),
        (["device", "run", "--server", "https://s", "--population", "p", "--owner-key", "OWNER", "--home", "h",
          "--attestation", "nothing"], "a readable text file"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(covey, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    assert covey("attest", "key", "OWNER").returncode == 0
    again = covey("attest", "key", "OWNER")
    assert again.returncode == 2 and "a new one" in again.stderr
    done = covey(*["OWNER.pub" if a == "OWNER" else a for a in args])
    assert done.returncode == 2 and text in done.stderr, done.stderr


def test_the_active_mode_wants_an_authority_and_no_plain_mode(covey, tiny, tmp_path):
    for more in (["--active"], ["--authority-key", "x"], ["--active", "--plain", "--authority-key", "x"]):
        done = covey("init", tmp_path / "fed", "--recipe", tiny, *more)
        assert done.returncode == 2 and "--authority-key FILE beside it, and a secure plan" in done.stderr


def test_an_authority_in_a_trial_certifies_anybody(covey, tmp_path):
    made = covey("authority", "init", tmp_path / "a", "--population", "p", "--open", "--port", 0)
    assert made.returncode == 0, made.stderr
    assert 'enrolment = "open"' in (tmp_path / "a/authority.toml").read_text()
    again = covey("authority", "init", tmp_path / "a", "--population", "p", "--open")
    assert again.returncode == 2 and "one with an authority in it" in again.stderr
    with running("authority", "serve", tmp_path / "a") as authority:
        assert "population 'p'" in line_with(authority, "certifying")
        authority.terminate()
        assert authority.wait(timeout=20) == 0
    (tmp_path / "a/authority.toml").write_text('population = "p"\nlifetme_s = 7\n')
    done = covey("authority", "serve", tmp_path / "a")
    assert done.returncode == 2 and "lifetme_s" in done.stderr


def test_terms_that_every_device_would_refuse_are_not_built(covey, tiny, tmp_path):
    assert covey("attest", "key", tmp_path / "key").returncode == 0
    active = ["--active", "--authority-key", tmp_path / "key.pub"]
    # Of three devices, one may be corrupt and one may vanish: two are no quorum of three.
    done = covey("init", tmp_path / "fed", "--recipe", tiny, "--cohort", 2, "--min-cohort", 3, *active)
    assert done.returncode == 2
    done = covey("plan", "build", tiny, "-o", tmp_path / "p", "--secure", "--cohort", 1, "--min-cohort", 3, *active)
    assert done.returncode == 1 and "secagg_parameters" in done.stderr
    done = covey("plan", "build", tiny, "-o", tmp_path / "p", "--secure", "--cohort", 6, "--min-cohort", 3, *active)
    assert done.returncode == 0, done.stderr
