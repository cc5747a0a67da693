import re
import socket
import urllib.request

import msgspec
import pytest

from covey.server.metrics import Metrics, serve_metrics
from covey.testing.releases import candidate_of
from covey.testing.storage import summary_of
from covey.types.errors import PortInUseError, UpdateRangeError
from covey.wire.administration import BufferStatus
from covey.wire.messages import Reported, Taken


def text(metrics):
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry).decode()


def value(metrics, line):
    found = re.search(rf"^{re.escape(line)} ([0-9.e+]+)$", text(metrics), re.MULTILINE)
    return float(found[1]) if found else None


def used():
    metrics = Metrics()
    metrics.watch(lambda: 7, lambda: 3, lambda: 2, lambda: BufferStatus(updates=4, devices=9))
    metrics.round_ended(summary_of(2))
    metrics.round_ended(msgspec.structs.replace(summary_of(2), metrics={"staleness": 1.25}))
    metrics.round_ended(summary_of(4, "abandoned"))
    metrics.check_in("assigned")
    with metrics.reporting() as done:
        assert done(reported := Reported(counted=True, retry_after_s=1.0)) is reported
        done(Taken(step="ready"))  # a step of a secure sum, not yet an update
    with pytest.raises(UpdateRangeError), metrics.reporting():
        raise UpdateRangeError("header", expected="a weight", got="another")
    metrics.decided(candidate_of(2, "refused", reason="not_finite"))
    metrics.failed("unauthorized")
    return metrics


def test_what_is_counted():
    metrics = used()
    assert value(metrics, 'covey_rounds_total{kind="train",reason="",status="committed"}') == 2
    assert value(metrics, 'covey_rounds_total{kind="train",reason="too_few_reports",status="abandoned"}') == 1
    assert value(metrics, 'covey_devices_total{outcome="reported"}') == 4 + 4 + 6
    assert value(metrics, 'covey_devices_total{outcome="lost"}') == 3
    assert value(metrics, 'covey_bytes_total{direction="up"}') == 7 * 8
    assert value(metrics, 'covey_bytes_total{direction="down"}') == 5 * 8
    assert value(metrics, 'covey_round_seconds_count{kind="train"}') == 2
    assert value(metrics, 'covey_round_seconds_sum{kind="train"}') == 4 / 8
    assert value(metrics, 'covey_check_ins_total{answer="assigned"}') == 1
    assert value(metrics, 'covey_reports_total{outcome="counted"}') == 1
    assert value(metrics, 'covey_reports_total{outcome="update_range"}') == 1
    assert value(metrics, 'covey_candidates_total{reason="not_finite",status="refused"}') == 1
    assert value(metrics, 'covey_errors_total{code="unauthorized"}') == 1
    assert [value(metrics, n) for n in ("covey_waiting_devices", "covey_round", "covey_release_version")] == [7, 3, 2]
    assert [value(metrics, f"covey_buffer_{n}") for n in ("updates", "devices")] == [4, 9]
    assert [value(metrics, f"covey_buffer_staleness_{n}") for n in ("count", "sum")] == [1, 1.25]


def test_no_label_grows_with_what_devices_or_administrators_send():
    metrics = Metrics()
    metrics.failed("session-12345")
    metrics.failed("10.0.0.1")
    for number in (1, 2):
        row = summary_of(number, "rolled_back")
        metrics.round_ended(msgspec.structs.replace(row, reason=f"to round {number}"))
    assert value(metrics, 'covey_errors_total{code="other"}') == 2
    assert value(metrics, 'covey_rounds_total{kind="train",reason="other",status="rolled_back"}') == 2
    labels = set(re.findall(r"[{,](\w+)=", text(used())))
    assert labels <= {"kind", "status", "reason", "answer", "outcome", "direction", "code", "le"}


def test_two_servers_in_one_process_count_apart():
    first, second = Metrics(), Metrics()
    first.check_in("assigned")
    assert value(second, 'covey_check_ins_total{answer="assigned"}') is None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_they_are_served_on_the_loopback_address_until_stopped():
    port = free_port()
    with serve_metrics(used(), port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"covey_waiting_devices 7.0" in answer.read()
        with pytest.raises(PortInUseError), serve_metrics(Metrics(), port):
            pass
    with pytest.raises(OSError, match=r"refused|urlopen"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
