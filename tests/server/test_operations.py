"""A server in a process of its own, as an operator sees it: its log, its metrics, its health, and its end."""

import json
import signal
import socket
import ssl
import urllib.request

import pytest

from . import parts


@pytest.fixture
def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url, authority=None):
    context = ssl.create_default_context(cafile=authority) if authority else None
    with urllib.request.urlopen(url, timeout=30, context=context) as answer:
        return answer.read().decode()


def test_what_an_operator_sees(tmp_path, port):
    extra = f'log_format = "json"\nlog_level = "info"\nmetrics_port = {port}\nhost = "localhost"'
    directory = parts.write_directory(tmp_path / "server", extra=extra)
    with parts.served(directory) as served:
        assert json.loads(get(f"{served.url}/healthz", directory / "authority" / "ca.pem")) == {"status": "ok"}
        document = json.loads(get(f"{served.url}/v1/openapi.json", directory / "authority" / "ca.pem"))
        assert document["openapi"] == "3.1.0" and "/v1/checkin" in document["paths"]
        metrics = get(f"http://127.0.0.1:{port}/metrics")
        assert "covey_waiting_devices 0.0" in metrics and "covey_round 0.0" in metrics
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
        events = [json.loads(line) for line in served.stderr.read().splitlines()]
    assert [e["event"] for e in events] == ["releases", "serving", "stopping", "stopped"]
    assert {e["level"] for e in events} == {"info"}
    serving = events[1]
    assert (serving["population"], serving["round"], serving["releases"]) == (parts.POPULATION, 0, "no_release_key")


def test_a_metrics_port_that_is_taken_is_told_before_anything_is_served(tmp_path, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        directory = parts.write_directory(tmp_path / "server", extra=f"metrics_port = {port}")
        with pytest.raises(AssertionError, match="port_in_use"), parts.served(directory):
            pass
