"""The finder: the published table, and what is used instead where the table is unsafe."""

import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.cli.main import cli
from covey.secagg.parameters import COMPLETE_UP_TO, active_quorum, find_parameters, table
from covey.types.errors import SecAggParameterError

SIZES = [100, 500, 1000, 10**4, 10**6, 10**8]
TABLE = {
    (0.05, 0.05): [(12, 6), (28, 16), (30, 17), (34, 20), (38, 22), (44, 25)],
    (0.05, 0.10): [(16, 6), (32, 17), (36, 19), (42, 22), (50, 25), (56, 28)],
    (0.05, 0.33): [(28, 6), (64, 21), (72, 24), (86, 29), (102, 34), (120, 39)],
    (0.2, 0.2): [(40, 21), (88, 48), (98, 54), (122, 67), (144, 78), (164, 88)],
    (0.33, 0.33): [(68, 34), (214, 113), (286, 150), (422, 221), (518, 270), (592, 307)],
}
SEMI_MALICIOUS = {
    (0.05, 0.05): [(16, 11), (44, 31), (52, 37), (62, 44), (74, 52), (86, 60)],
    (0.1, 0.1): [(32, 22), (82, 57), (96, 67), (122, 85), (146, 101), (170, 117)],
    (0.2, 0.2): [(62, 42), (220, 150), (302, 206), (482, 328), (600, 407), (696, 471)],
}
ROWS = [(shares, row, False) for shares, row in TABLE.items()]
ROWS += [(shares, row, True) for shares, row in SEMI_MALICIOUS.items()]


@pytest.mark.parametrize("shares, row, active", ROWS)
def test_the_table_is_the_published_one(shares, row, active):
    assert [table(n, *shares, semi_malicious=active) for n in SIZES] == row


def test_one_more_value_of_the_production_implementation():
    assert table(1000, 0.33, 0.05) == (78, 60)


@pytest.mark.parametrize("n", [10, 20])
def test_the_raw_formula_is_unsafe_for_small_groups_and_never_used(n):
    found = find_parameters(n, 0.05, 0.10, active=False)
    assert found.k is not None and found.k <= 4
    assert found.k_used == n - 1  # complete
    assert found.t_used > found.num_adversaries >= 1
    assert found.t_used == active_quorum(n, found.num_adversaries)
    raw = find_parameters(10, 0.05, 0.10, active=False)
    assert (raw.k, raw.num_adversaries) == (2, 1)  # 5 % of 10 is nobody; used is one


def test_the_share_is_the_decimal_that_was_typed():
    assert find_parameters(1000, 0.05, 0.1, active=False).num_adversaries == 50  # float: 50.00000000000001 -> 51
    assert find_parameters(1000, 0.07, 0.1, active=False).num_adversaries == 70


@given(st.integers(3, 2000), st.floats(0, 0.4), st.floats(0, 0.4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_used_is_safe_and_survives_its_dropout(n, adversary, dropout, active):
    try:
        found = find_parameters(n, adversary, dropout, active=active)
    except SecAggParameterError:
        return
    size, corrupt = found.group_size, found.num_adversaries
    assert corrupt >= 1 and corrupt >= adversary * size - 1e-6
    assert found.num_groups * size >= n > (found.num_groups - 1) * size
    if active:
        assert size <= 512 and found.k_used == size - 1 and 2 * found.t_used > size + corrupt
    if size <= COMPLETE_UP_TO or found.k_used == size - 1:
        assert found.k_used == size - 1 and corrupt < found.t_used <= size - found.num_dropouts
    else:
        assert found.k_used % 2 == 0 and found.bits_used.isolation_bits > 40
        assert found.bits_used.exposure_bits >= 40 and found.bits_used.failure_bits >= 19


@pytest.mark.parametrize("n1", [150, 300, 600, 999])
def test_what_is_found_for_n_max_is_safe_when_fewer_advertise(n1):
    """Same shares of a smaller U1: tails of the hypergeometric distribution only get lighter."""
    from covey.secagg.parameters import _Population

    found = find_parameters(1000, 0.05, 0.10, active=False)
    few = _Population(n1, math.ceil(0.05 * n1), math.ceil(0.10 * n1)).bits(found.k_used, found.t_used, False)
    assert few.isolation_bits > 40 and few.exposure_bits > 40


@pytest.mark.parametrize(
    "arguments",
    [(2, 0.05, 0.1), (10**9 + 1, 0.05, 0.1), (100, -0.1, 0.1), (100, 1.0, 0.1), (100, 0.1, 1.0), (100, math.nan, 0.1),
     (100, 0.5, 0.6), (3, 0.9, 0.0)],
)  # fmt: skip
def test_shares_that_nothing_withstands(arguments):
    with pytest.raises(SecAggParameterError):
        find_parameters(*arguments, active=False)


def test_an_active_server_needs_a_quorum_after_the_dropout():
    with pytest.raises(SecAggParameterError, match="survivors"):
        find_parameters(100, 0.33, 0.40, active=True)
    assert find_parameters(100, 0.33, 0.32, active=True).t_used == 67


def test_no_degree_is_an_error_and_not_a_guess():
    assert table(1000, 0.5, 0.499) is None
    with pytest.raises(SecAggParameterError, match="a degree"):
        find_parameters(1000, 0.5, 0.499, active=False)


def test_the_command_prints_table_and_used_numbers():
    line = ["secagg", "parameters", "--parties", "1000", "--adversary", "0.05", "--dropout", "0.10"]
    done = CliRunner().invoke(cli, [*line, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert (found["k"], found["t"], found["k_used"], found["t_used"]) == (36, 19, 36, 19)
    assert found["mode"] == "honest-but-curious"
    assert found["bits"]["exposure_bits"] > 40 and found["bits_used"]["failure_bits"] > 20
    done = CliRunner().invoke(cli, [*line, "--active", "--json", "-"])
    active = json.loads(done.output)
    assert (active["k"], active["t"]) == table(1000, 0.05, 0.10, semi_malicious=True)
    assert (active["num_groups"], active["group_size"], active["k_used"], active["t_used"]) == (2, 500, 499, 263)
    assert active["mode"] == "active" and active["bits_used"]["exposure_bits"] is None
    text = CliRunner().invoke(cli, line).output
    assert "36" in text and "19" in text and "honest-but-curious" in text


def test_the_command_refuses_what_nothing_withstands(capsys):
    done = CliRunner().invoke(
        cli, ["secagg", "parameters", "--parties", "10", "--adversary", "0.6", "--dropout", "0.6"]
    )
    assert isinstance(done.exception, SecAggParameterError)
