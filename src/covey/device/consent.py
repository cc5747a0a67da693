"""What the owner of a device can see and do: its state, pausing, refusing, forgetting.

All of it works on the state directory while an agent runs, and while none does. A choice counts first and is recorded
second: a full disk may cost the record, never the choice.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from covey.device.choices import Choices, Chosen
from covey.device.examples import Collection, ExampleStore
from covey.device.files import erase, folder_name, is_held, quarantined, storage_errors, written_whole
from covey.device.ledger import Chain, Ledger, LedgerEntry
from covey.device.populations import Populations
from covey.device.statement import Act, SessionRecord, Totals, acts, sessions, time_text, totals
from covey.types.errors import StorageError, UsageError

__all__ = ["Owner", "Overview"]

_KEPT = ("ledger.jsonl", "choices.json", "lock", "agent.pid", "examples.db")
"""Names, and beginnings of names, that forgetting everything leaves: the record, the choices, and files that an agent
or an application holds open; the store among them is emptied instead."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of a device, for its owner.

    Attributes:
        is_running: whether an agent has the state directory open.
        chosen: the person's choices; None: the file cannot be read, and nothing is trained.
        joined: the populations that the agent of this directory serves.
        collections: what examples there are.
        store_bytes: the size of the example store.
        is_encrypted: whether the store is.
        totals: what happened with each population.
        sessions: every session, oldest first.
        acts: what the person did, oldest first.
        chain: the ledger's chain; None: it is broken.
        problems: what is wrong, in words.
    """

    is_running: bool
    chosen: Chosen | None
    joined: list[str]
    collections: list[Collection]
    store_bytes: int
    is_encrypted: bool
    totals: list[Totals]
    sessions: list[SessionRecord]
    acts: list[Act]
    chain: Chain | None
    problems: list[str] = field(default_factory=list)


class Owner:
    """The owner's view of one state directory."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        """Take a state directory.

        Raises:
            UsageError: there is none.
        """
        if not home.is_dir():
            raise UsageError(f"--home {home}", expected="a device's state directory", got="no such directory")
        self.home, self.clock = home, clock
        self.ledger, self.choices = Ledger.of_home(home), Choices.of_home(home)

    def overview(self) -> Overview:
        """Return everything that there is to see. What cannot be read is told of, and keeps nothing else from view."""
        problems: list[str] = []
        chosen = chain = None
        with _told(problems):
            chosen = self.choices.read()
        with _told(problems):
            chain = self.ledger.verify()
        joined: list[str] = []
        with _told(problems):
            joined = [m.population for m in Populations(self.home).read()]
        entries: list[LedgerEntry] = []
        with _told(problems):
            entries = list(self.ledger.entries())
        collections, store_bytes, is_encrypted = list[Collection](), 0, False
        with _told(problems):
            if (self.home / "examples.db").exists():
                with ExampleStore(self.home / "examples.db", clock=self.clock) as store:
                    collections, store_bytes, is_encrypted = store.contents(), store.num_bytes(), store.is_encrypted
        for name in ("ledger.jsonl", "choices.json", "examples.db"):
            problems += [f"{p.name}: a broken file that was moved aside" for p in quarantined(self.home / name)]
        found = sessions(entries)
        return Overview(
            is_running=is_held(self.home / "lock"),
            chosen=chosen,
            joined=joined,
            collections=collections,
            store_bytes=store_bytes,
            is_encrypted=is_encrypted,
            totals=totals(found),
            sessions=found,
            acts=list(acts(entries)),
            chain=chain,
            problems=problems,
        )

    def pause(self, for_s: float) -> None:
        """Train nothing for ``for_s`` seconds; infinity: until resumed. A running session ends within a second."""
        until_s = self.clock() + for_s
        self.choices.pause(until_s)
        self._record("paused", reason=f"until {'you resume' if for_s == float('inf') else time_text(until_s)}")

    def resume(self) -> None:
        """End a pause."""
        self.choices.resume()
        self._record("resumed")

    def refuse(self, population: str) -> None:
        """Take no part in a population. A running session with it ends within a second."""
        _check_name(population)
        self.choices.refuse(population)
        self._record("refused", population=population)

    def accept(self, population: str) -> None:
        """Take part in a population again."""
        _check_name(population)
        self.choices.accept(population)
        self._record("accepted", population=population)

    def forget_examples(self, collection: str | None = None) -> int:
        """Delete examples, of one collection or all; return how many went.

        The personal models go with them, and what algorithms keep from session to session, because both were made from
        examples; with all of them go the stores that were moved aside because they were damaged.

        Raises:
            StorageError: another process went on reading: the examples are deleted, their bytes not yet gone.
        """
        count = 0
        if (self.home / "examples.db").exists():
            with ExampleStore.of_home(self.home, clock=self.clock) as store:
                count = store.delete_all() if collection is None else store.delete(collection)
        for path in self.home.glob("personal/*/tuned*"):
            erase(path)
        erase(self.home / "kept")
        if collection is None:
            for path in self.home.glob("examples.db.broken-*"):
                erase(path)
        reason = "all collections" if collection is None else f"collection {collection}"
        self._record("forgot", num_examples=count, reason=reason)
        return count

    def forget_population(self, population: str) -> None:
        """Refuse and leave a population, and delete what the device has of it: credential, plan, checkpoint, model.

        Raises:
            StorageError: a file cannot be written, or the list of joined populations cannot be read; the rest is done.
        """
        self.refuse(population)
        _rewrite(self.home / "credentials.json", lambda known: [c for c in known if c["population"] != population])
        _rewrite(self.home / "schedule.json", lambda known: {k: v for k, v in known.items() if k != population})
        erase(self.home / "blobs", keep_folder=True)  # by content, not by population: what others need comes again
        erase(self.home / "personal" / folder_name(population))
        erase(self.home / "kept" / folder_name(population))
        self._record("forgot", population=population, reason="credential, plan, checkpoint and model")
        with contextlib.suppress(UsageError):  # it was not joined here, but by an application
            Populations(self.home).leave(population)

    def forget_everything(self) -> int:
        """Pause until resumed, and delete all but the ledger and the choices; return how many examples went."""
        self.pause(float("inf"))
        count = self.forget_examples()
        with storage_errors(f"state directory {self.home}"):
            for path in sorted(self.home.iterdir()):
                if not path.name.startswith(_KEPT):
                    erase(path, keep_folder=path.name == "blobs")
        self._record("forgot", reason="everything but this ledger and your choices")
        return count

    def _record(self, kind: str, *, population: str = "", num_examples: int = 0, reason: str = "") -> None:
        self.ledger.append(
            LedgerEntry(at_s=self.clock(), kind=kind, population=population, num_examples=num_examples, reason=reason)
        )


@contextlib.contextmanager
def _told(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except StorageError as e:
        problems.append(str(e))


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; one that cannot be read goes: the agent makes another."""
    with storage_errors(path.name):
        try:
            changed = change(msgspec.json.decode(path.read_bytes()))
        except FileNotFoundError:
            return
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
            erase(path)
            return
        with written_whole(path) as file:
            file.write(msgspec.json.encode(changed))


def _check_name(population: str) -> None:
    if not population or len(population) > 200:
        raise UsageError("population", expected="a name of 1 to 200 characters", got=f"{len(population)} characters")
