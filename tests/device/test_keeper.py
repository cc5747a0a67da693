"""The agent's side of serving: releases are fetched for applications that asked, and for nobody else."""

import pytest

from covey.device.events import AgentEvent
from covey.device.keeper import ReleaseKeeper
from covey.device.personal import PersonalModel
from covey.types.errors import TransportError

from . import world
from .release_server import ReleaseServer


@pytest.fixture
def kept(tmp_path):
    """Return a keeper, its server, what it told, and the state directory."""
    told, server, home = [], ReleaseServer(), tmp_path / "home"
    home.mkdir()
    server.publish(1, world.checkpoint(), expires_at=1 << 40)
    keeper = ReleaseKeeper(home, "https://server", world.policy(), told.append, source=server)
    yield keeper, server, told, home
    keeper.close()


def event(kind):
    return AgentEvent(kind, kind)


def kinds(told):
    return [e.kind for e in told]


def model(home):
    return PersonalModel(home, world.OWNER.public_key(), world.POPULATION)


def test_nothing_is_fetched_that_no_application_serves(kept):
    keeper, server, told, _ = kept
    for kind in ("enrolled", "waiting", "counted"):
        keeper(event(kind))
    assert kinds(told) == ["enrolled", "waiting", "counted"] and server.num_fetches == 0


def test_an_application_gets_each_release_without_a_network_of_its_own(kept):
    keeper, server, told, home = kept
    served = model(home)
    keeper(event("waiting"))
    assert model(home).version == 0
    keeper(event("enrolled"))
    assert model(home).version == 1 and served.predict({"x": world.points(1)["x"][0]})
    server.publish(2, world.checkpoint(), expires_at=1 << 40)
    keeper(event("counted"))
    assert model(home).version == 2
    keeper(event("counted"))
    assert kinds(told) == ["waiting", "enrolled", "release", "counted", "release", "counted"]


def test_what_goes_wrong_is_told_and_costs_nothing(kept):
    keeper, server, told, home = kept
    model(home)
    keeper(event("counted"))
    server.publish(2, world.checkpoint(), expires_at=5)  # expired long ago
    keeper(event("counted"))

    def away(population):
        raise TransportError("server", expected="an answer", got="none")

    server.release = away
    keeper(event("counted"))
    assert kinds(told) == ["counted", "release", "counted", "release_failed", "counted", "release_failed"]
    assert [e.error.code for e in told if e.error] == ["release_refused", "unreachable"]
    assert model(home).version == 1


def test_a_server_without_a_release_is_no_failure_and_a_stopped_keeper_fetches_nothing(kept):
    keeper, server, told, home = kept
    model(home)
    newest, server.release_bytes = server.release_bytes, None
    keeper(event("counted"))
    server.release_bytes = newest
    keeper.stop()
    keeper(event("counted"))
    assert kinds(told) == ["counted", "counted"] and server.num_fetches == 0
