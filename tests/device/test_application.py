"""An application's device: it stores, serves and takes part, and closing it ends everything."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from covey.device.application import Application
from covey.device.choices import Choices
from covey.device.examples import ExampleStore
from covey.types.errors import NoReleaseError, TransportError, UsageError
from covey.types.tensors import pack_tensors
from covey.wire.messages import ComeBack

from . import world
from .fake_server import FakeServer
from .release_server import ReleaseServer

INPUT = {"x": np.zeros(3, np.float32)}
GOOD = pack_tensors({"w": np.float32([[-2, 2]] * 3), "b": np.zeros(2, np.float32)}, world.plan().manifest.params)


class Conditions:
    """What the test says."""

    def __init__(self):
        self.holds, self.is_closed = True, False

    def check(self, needs=None):
        return SimpleNamespace(holds=self.holds, lapsed=(), hints=())

    def close(self):
        self.is_closed = True


class Started:
    """An application, its servers, and what it told."""

    def __init__(self, home, **options):
        self.events, self.changed = [], threading.Condition()
        self.server, self.releases, self.conditions = FakeServer(), ReleaseServer(), Conditions()
        self.releases.publish(1, GOOD, expires_at=1 << 40)
        self.server.on_call = self._only_one_session
        self.app = Application(
            home, "https://server", world.policy(), transport=self.server, conditions=self.conditions,
            releases=self.releases, on_event=self._note, **options,
        )  # fmt: skip
        self.app.examples.add_many("points", world.points(40), world.SCHEMA)

    def _only_one_session(self, call):
        if call == "check_in" and self.server.num_sessions:
            self.server.answers = [ComeBack(retry_after_s=3600.0, reason="between_rounds")]

    def _note(self, event):
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_for(self, kind):
        with self.changed:
            assert self.changed.wait_for(lambda: kind in self.kinds, timeout=30), self.kinds

    @property
    def kinds(self):
        return [e.kind for e in self.events]


@pytest.fixture
def started(tmp_path):
    s = Started(tmp_path / "home")
    yield s
    s.app.close()


def test_it_takes_part_serves_the_release_and_tunes_after_a_session(started):
    with pytest.raises(NoReleaseError):
        started.app.model.predict(INPUT)
    started.app.start()
    started.wait_for("tuned")
    assert started.kinds.index("release") < started.kinds.index("counted") < started.kinds.index("tuned")
    assert started.app.model.version == 1
    assert started.app.model.predict(INPUT)["p"].tolist() == pytest.approx([0.5, 0.5])
    assert started.server.counted == {"s1"}


def test_closing_ends_everything_and_frees_the_directory(started, tmp_path):
    started.app.start()
    started.wait_for("counted")
    started.app.close()
    assert started.conditions.is_closed
    assert not [t for t in threading.enumerate() if t.name == "covey"]
    again = Started(tmp_path / "home")
    assert again.app.model.version == 1  # offline, at once
    again.app.close()


def test_nothing_is_sent_while_conditions_or_choices_are_against_it(tmp_path):
    for refused in (False, True):
        s = Started(tmp_path / f"home-{refused}")
        s.conditions.holds = refused
        if refused:
            Choices.of_home(tmp_path / f"home-{refused}").refuse(world.POPULATION)
        with s.app:
            s.wait_for("release")
            assert not s.app.may_train()
        assert s.server.calls == ["abandon"] or s.server.calls == []


def test_a_server_without_a_release_or_out_of_reach_costs_nothing(tmp_path):
    s = Started(tmp_path / "home")
    s.releases.release_bytes = None
    with s.app:
        s.wait_for("counted")
        assert s.app.refresh() is False

        def away(population):
            raise TransportError("server", expected="an answer", got="none")

        s.releases.release = away
        with pytest.raises(TransportError):
            s.app.refresh()
        with pytest.raises(NoReleaseError):
            s.app.model.predict(INPUT)
    assert s.server.counted == {"s1"}


def test_another_process_may_add_examples_while_it_is_open(started, tmp_path):
    started.app.examples.declare(world.SCHEMA)
    with ExampleStore.of_home(tmp_path / "home") as store:
        store.add("points", {"x": [1.0, 2.0, 3.0], "y": 1})
    assert started.app.examples.count("points") == 41
    with pytest.raises(UsageError, match=r"no other process uses|one in use"):
        Application(tmp_path / "home", "https://server", world.policy())
