import io
import json
import logging

import pytest

from covey.server.logs import LOG, event, logging_to


def told(form, level="info", **facts):
    out = io.StringIO()
    with logging_to(form, level, out):
        event(logging.DEBUG, "too fine")
        event(logging.INFO, "round ended", **facts)
        event(logging.ERROR, "it failed")
    event(logging.ERROR, "not here any more")
    return out.getvalue().splitlines()


def test_an_event_is_a_line_of_text():
    first, second = told("text", round=3, seconds=1.23456789, status="committed")
    assert first.endswith(" info round ended round=3 seconds=1.23457 status=committed")
    assert second.endswith(" error it failed")


@pytest.mark.parametrize("value", ["a b", "x\ny", 'say "so"', "k=v", ""])
def test_a_fact_cannot_pass_for_another_line_or_fact(value):
    first, _ = told("text", reason=value)
    assert first.endswith(f" reason={json.dumps(value)}")


def test_an_event_is_a_line_of_json():
    first, second = (json.loads(line) for line in told("json", round=3, status="committed", reason="x\ny"))
    assert first.pop("at").endswith("+00:00")
    assert first == {"level": "info", "event": "round ended", "round": 3, "status": "committed", "reason": "x\ny"}
    assert second["event"] == "it failed"


def test_the_level_is_the_least_that_is_told():
    assert len(told("text", "debug")) == 3
    assert len(told("text", "error")) == 1


def test_a_traceback_is_told_whole_and_in_one_line_of_json():
    out = io.StringIO()
    with logging_to("json", "info", out):
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("it broke")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: inside" in json.loads(line)["traceback"]


def test_uvicorns_chatter_about_connections_is_not_told():
    out = io.StringIO()
    with logging_to("text", "debug", out):
        logging.getLogger("uvicorn.error").info("connection open")
        logging.getLogger("uvicorn.access").info("GET /v1/checkin from 10.0.0.1")
    assert out.getvalue() == ""


def test_other_logging_is_left_as_it_was():
    before = (LOG.level, LOG.propagate, list(LOG.handlers))
    told("text")
    assert (LOG.level, LOG.propagate, list(LOG.handlers)) == before
