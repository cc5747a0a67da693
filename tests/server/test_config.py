"""The configuration is read strictly: what is not understood is refused, with the nearest thing that is."""

import msgspec
import pytest

from covey.server.config import ReleaseConfig, RoundConfig, ServerConfig, load_config
from covey.server.promotion import ReleaseSettings
from covey.server.settings import RoundSettings
from covey.types.errors import UsageError


@pytest.fixture
def load(tmp_path):
    def load(text):
        (tmp_path / "server.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(tmp_path / "server.toml")

    return load


def test_a_population_is_enough(load):
    assert load('population = "p"') == ServerConfig(population="p")


def test_everything_can_be_set(load):
    config = load(
        'population = "p.1-x_Y"\nhost = "::1"\nport = 0\npoll_s = 2\nbuffers = 1\n'
        "[round]\ngoal = 7\nreport_timeout_s = 9\nhyper = { lr = 0.5 }\n"
    )
    assert (config.population, config.host, config.port, config.poll_s, config.buffers) == ("p.1-x_Y", "::1", 0, 2.0, 1)
    assert config.round == RoundConfig(goal=7, report_timeout_s=9.0, hyper={"lr": 0.5})


def test_the_round_table_has_the_settings_of_a_round():
    defaults = RoundSettings(goal=RoundConfig().goal)
    assert RoundSettings(**msgspec.structs.asdict(RoundConfig())) == defaults


@pytest.mark.parametrize(
    ("text", "got", "hint"),
    [
        ('population = "p"\nprot = 1', "prot", "did you mean port"),
        ('population = "p"\n[round]\nreport_timeout = 1', "round.report_timeout", "did you mean report_timeout_s"),
        ('population = "p"\nxyzzy = 1', "xyzzy", "known are population, host, port"),
        ('population = "p"\n[rounds]\ngoal = 1', "rounds", "did you mean round"),
        ('population = "p"\n[round]\nport = 1', "round.port", "known are goal"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(load, text, got, hint):
    with pytest.raises(UsageError, match=f"expected known keys, got {got}") as caught:
        load(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "population = 7",
        'population = "p"\nport = "8443"',
        'population = "p"\nport = 8443.5',
        'population = "p"\nport = true',
        'population = "p"\nround = 1',
        'population = "p"\n[round]\ngoal = "many"',
        'population = "p"\n[round]\nhyper = { lr = "fast" }',
    ],
)
def test_a_value_of_another_type_is_refused(load, text):
    with pytest.raises(UsageError, match="expected a value of the right type"):
        load(text)


@pytest.mark.parametrize(
    ("name", "value", "range_text"),
    [
        ("port", "-1", "0 to 65535"),
        ("port", "65536", "0 to 65535"),
        ("max_waiting", "0", "1 to 10000000"),
        ("buffers", "0", "1 to 4096"),
        ("num_shards", "0", "1 to 1024"),
        ("keep_checkpoints", "0", "1 to 1000000"),
        ("poll_s", "0", "0.01 to 60"),
        ("poll_s", "61", "0.01 to 60"),
        ("poll_s", "nan", "0.01 to 60"),
        ("retry_s", "-1", "0 to 86400"),
        ("retry_s", "inf", "0 to 86400"),
    ],
)
def test_a_value_out_of_range_is_refused(load, name, value, range_text):
    with pytest.raises(UsageError, match=f"{name}: expected {range_text}"):
        load(f'population = "p"\n{name} = {value}')


@pytest.mark.parametrize(
    ("table", "range_text"),
    [
        ("least_s = 0.01", "pace.least_s: expected 0.05 to 86400"),
        ("least_s = 50\nmost_s = 40", "pace.least_s: expected 0.05 to 40"),
        ("most_s = 86401", "pace.most_s: expected 0.05 to 86400"),
        ("margin = 0.9", "pace.margin: expected 1 to 100"),
        ("margin = nan", "pace.margin: expected 1 to 100"),
        ("leest_s = 60", "did you mean least_s"),
    ],
)
def test_a_pace_out_of_range_is_refused(load, table, range_text):
    with pytest.raises(UsageError) as caught:
        load(f'population = "p"\n[pace]\n{table}')
    assert range_text in f"{caught.value} {caught.value.hint}"


def test_who_is_let_in_and_how_much_one_may_ask(load):
    config = load(
        'population = "p"\nenrolment = "token"\n[attestation]\nkey = "app.pub"\n[limits]\ncredential_burst = 7'
    )
    assert (config.enrolment, config.attestation, config.limits.credential_burst) == ("token", {"key": "app.pub"}, 7)
    with pytest.raises(UsageError, match=r"limits\.peer_burst: expected 1 to 1e\+06, got 0"):
        load('population = "p"\n[limits]\npeer_burst = 0')
    with pytest.raises(UsageError, match=r"known keys, got limits\.peer_bust") as refused:
        load('population = "p"\n[limits]\npeer_bust = 1')
    assert "peer_burst" in refused.value.hint


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".hidden", "é", "a\\u0000", "a\\n"])
def test_a_population_that_would_not_fit_into_a_path_is_refused(load, name):
    with pytest.raises(UsageError, match="population: expected 1 to 64 letters, digits and -_"):
        load(f'population = "{name}"')


@pytest.mark.parametrize("text", ["population = ", "[round", b"\xff\xfe"])
def test_what_is_not_toml_is_refused(load, text):
    with pytest.raises(UsageError, match="expected TOML"):
        load(text)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UsageError, match="expected a readable file, got No such file") as caught:
        load_config(tmp_path / "server.toml")
    assert "covey init" in caught.value.hint
    with pytest.raises(UsageError, match="expected a readable file"):
        load_config(tmp_path)


def test_what_is_released_and_told(load):
    config = load('population = "p"\nlog_format = "json"\nmetrics_port = 9464\n[release]\nevery = 5\nmargin = 0.02')
    assert (config.log_format, config.metrics_port, config.release.every, config.release.margin) == (
        "json", 9464, 5, 0.02,
    )  # fmt: skip
    settings = {k: v for k, v in msgspec.structs.asdict(ReleaseConfig()).items() if k not in ("plan", "signature")}
    assert ReleaseSettings(**settings) == ReleaseSettings()
    with pytest.raises(UsageError, match=r"known keys, got release\.evry") as refused:
        load('population = "p"\n[release]\nevry = 1')
    assert "every" in refused.value.hint
    for name in ("log_format", "log_level"):
        with pytest.raises(UsageError, match=f"{name}: expected"):
            load(f'population = "p"\n{name} = "loud"')
