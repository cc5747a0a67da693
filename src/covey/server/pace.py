"""Pace steering: when a device shall come back (1902.01046, section 2.3), as a book of appointments.

Time is cut into slots. A device that is sent away gets an appointment in the earliest slot that still has room, and
room is made for as many devices as the rounds need, with a margin. That one rule serves populations of any size:

- a **small** one fits into a slot, so that all its devices come at the same time, when the next round wants them: a
  secure sum needs many at once. Hours in which too few are free to make up a round are passed over;
- a **large** one fills slot after slot, evenly over each: the check-in rate is what the rounds need and no herd comes,
  not after an outage either. Where a whole day is booked up, devices are spread over it.

Devices do not always come when they are told to: at night they are free, by day they come late, and those who come late
add to the next hours. So the share of the appointments that each hour of the day gets is learnt from day to day.

Only counts are kept, a fixed number of them; nothing is known of any device. Nothing here reads a clock.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["DAY_S", "Chance", "PaceSettings", "PaceSteering"]

DAY_S = 86_400.0
_HOURS = 24
_HOUR_S = DAY_S / _HOURS
_MOST_SLOTS = 1440
_MEMORY_DAYS = 1.5
"""An hour of the day that was not seen for so long may have changed, and is tried again."""
_GAIN = 0.5
"""How far an hour's share is corrected each day. Some of those who are sent to one hour come in the next ones, so that
more would make the days swing against each other (see ``docs/pace.md``)."""
_SHARES = (0.02, 5.0)
_LEAST_BETWEEN_S = 0.05
_SET_RIGHT = 5
"""A clock may go back by so many slots; until it has caught up, the present one lasts."""


class Chance(Protocol):
    """The randomness of a moment within a window."""

    def random(self) -> float:
        """Return a number of [0, 1), uniformly."""
        ...


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """How devices are paced.

    Attributes:
        wanted: how many devices a round selects, until :meth:`PaceSteering.observe_round` says otherwise.
        poll_s: how long a check-in is held open: those who come within it wait together.
        margin: how many times the wanted number is asked to come, because some will not.
        least_s: no device is asked to come sooner.
        most_s: nor later; at most a day, which is how often the swing repeats.
    """

    wanted: int
    poll_s: float = 25.0
    margin: float = 1.3
    least_s: float = 60.0
    most_s: float = DAY_S

    def __post_init__(self) -> None:
        """Check the ranges; they come from a configuration that was checked before."""
        assert self.wanted >= 1 and self.poll_s > 0 and self.margin >= 1
        assert 0 < self.least_s <= self.most_s <= DAY_S


@dataclass(slots=True)
class _Hour:
    """An hour of the day.

    Attributes:
        share: of the appointments, relative to the mean hour.
        came: how many came to a slot, in the mean, when the hour was last seen whole.
        most: how many came to the slot to which most came.
        seen_s: when that was.
    """

    share: float = 1.0
    came: float = 0.0
    most: int = 0
    seen_s: float = -math.inf

    def known(self, now_s: float) -> bool:
        return now_s - self.seen_s < _MEMORY_DAYS * DAY_S


@dataclass(slots=True)
class _Seen:
    """What was seen of the present hour: slots to which devices were sent, and who came to them."""

    number: int = 0
    num_slots: int = 0
    came: int = 0
    most: int = 0


@dataclass(slots=True)
class _Book:
    """Appointments by slot, from the present one on, in a ring; slots are numbered from the epoch."""

    num_slots: int
    first: int = 0
    booked: list[int] = field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.booked = [0] * self.num_slots

    def turn_to(self, slot: int) -> None:
        """Drop the slots that have passed; a clock that jumped empties the book, one that was set right does not."""
        if not self.first - _SET_RIGHT <= slot < self.first + self.num_slots:
            self.first, self.total, self.booked = slot, 0, [0] * self.num_slots
        while self.first < slot:
            self.total -= self.booked[self.first % self.num_slots]
            self.booked[self.first % self.num_slots] = 0
            self.first += 1

    def at(self, slot: int) -> int:
        return self.booked[slot % self.num_slots]

    def add(self, slot: int) -> None:
        self.booked[slot % self.num_slots] += 1
        self.total += 1


class PaceSteering:
    """Gives every device that is sent away its time to come back.

    Laws: an answer is between ``least_s`` and ``most_s``, whatever the clock does; memory does not grow; no slot
    before the last of the day is booked beyond its room while another has some.
    """

    def __init__(self, settings: PaceSettings) -> None:
        """Begin with an empty book and nothing learnt."""
        self._settings = settings
        self._slot_s = max(settings.least_s, settings.most_s / _MOST_SLOTS)
        # One slot more than are handed out: the present one is never booked.
        self._book = _Book(max(2, math.floor(settings.most_s / self._slot_s)))
        self._hours = [_Hour() for _ in range(_HOURS)]
        self._seen = _Seen()
        self._came = 0
        self._open_from = 0
        self._wanted = self._at_least = settings.wanted
        self._next_round_s = self._lasts_s = 0.0
        self._between_s = settings.poll_s
        self._observed_s: float | None = None

    def observe_checkin(self, now_s: float) -> None:
        """Note that a device checked in."""
        self._turn_to(now_s)
        self._came += 1

    def observe_round(self, now_s: float, *, wanted: int, at_least: int, lasts_s: float) -> None:
        """Note that a selection begins or is about to, once for each.

        Args:
            now_s: the time.
            wanted: how many devices it selects; at least 1.
            at_least: how many of them are enough to begin.
            lasts_s: in how long they are wanted, as far as is known.
        """
        self._wanted, self._at_least = max(1, wanted), at_least
        self._lasts_s = min(max(0.0, lasts_s), self._settings.most_s)
        self._next_round_s = now_s + self._lasts_s
        if self._observed_s is not None:
            between_s = min(max(now_s - self._observed_s, _LEAST_BETWEEN_S), self._settings.poll_s)
            self._between_s += 0.5 * (between_s - self._between_s)
        self._observed_s = now_s

    def reconnect_after_s(self, now_s: float, chance: Chance) -> float:
        """Return in how many seconds a device shall check in again, and count it in."""
        self._turn_to(now_s)
        slot = self._slot_with_room(now_s, chance) if self._is_large() else self._slot_for_all(now_s)
        self._book.add(slot)
        # Those of a small population wait for each other, so they come well within the time that a check-in is held.
        width_s = self._slot_s if self._is_large() else min(self._slot_s, 0.5 * self._settings.poll_s)
        at_s = slot * self._slot_s + width_s * chance.random()
        return min(max(at_s - now_s, self._settings.least_s), self._settings.most_s)

    @property
    def _per_slot(self) -> float:
        """How many come in a slot, so that as many as a round needs always wait, or come from one round to the next."""
        return self._wanted * self._settings.margin * self._slot_s / self._between_s

    def _is_large(self) -> bool:
        # A device comes two slots after it was told to, in the mean: so many are under way where the flow is what it
        # should be. With fewer, the slots would hardly fill, and those who come would not meet.
        return self._book.total >= 2 * self._per_slot

    def _slot_with_room(self, now_s: float, chance: Chance) -> int:
        book, slot = self._book, max(self._open_from, self._earliest(now_s))
        last = book.first + book.num_slots - 1
        while slot <= last and book.at(slot) >= self._room(slot):
            slot += 1
        self._open_from = slot
        if slot <= last:
            return slot
        # The day is booked up: of two slots, the one with less in it for its room, which keeps all of them even.
        first = self._earliest(now_s)
        two = [first + int(chance.random() * (last - first + 1)) for _ in range(2)]
        return min(two, key=lambda s: (book.at(s) + 1) / self._room(s))

    def _slot_for_all(self, now_s: float) -> int:
        """Return the next slot that all can share: when a round wants devices, in an hour in which enough are free."""
        next_round_s = min(self._next_round_s, now_s + self._lasts_s)  # the clock may have gone back since
        slot = max(self._earliest(now_s), math.ceil(next_round_s / self._slot_s))
        last = self._book.first + self._book.num_slots - 1
        for number in range(self._hour(slot), self._hour(last) + 1):
            hour = self._hours[number % _HOURS]
            if not hour.known(now_s) or hour.most >= self._at_least:
                return min(max(slot, math.ceil(number * _HOUR_S / self._slot_s)), last)
        return min(slot, last)  # not within the day, as far as is known: so one finds out

    def _earliest(self, now_s: float) -> int:
        earliest = math.ceil((now_s + self._settings.least_s) / self._slot_s)
        return min(max(earliest, self._book.first + 1), self._book.first + self._book.num_slots - 1)

    def _room(self, slot: int) -> float:
        """How many appointments a slot takes, so that the wanted number comes."""
        return self._per_slot * self._hours[self._hour(slot) % _HOURS].share

    def _hour(self, slot: int) -> int:
        return int(slot * self._slot_s // _HOUR_S)

    def _turn_to(self, now_s: float) -> None:
        """Learn from the slot that has ended, and go on to the present one."""
        book, slot = self._book, math.floor(now_s / self._slot_s)
        if book.first - _SET_RIGHT <= slot <= book.first:
            return
        seen, ended = self._seen, book.first
        if slot == ended + 1 and book.at(ended):  # a slot that nobody was sent to, or not seen whole, tells nothing
            seen.num_slots += 1
            seen.came += self._came
            seen.most = max(seen.most, self._came)
        if self._hour(slot) != seen.number:
            if self._hour(slot) == seen.number + 1 and seen.num_slots:
                self._learn(self._hours[seen.number % _HOURS], seen, now_s)
            self._seen = _Seen(self._hour(slot))
        self._came, self._open_from = 0, slot
        book.turn_to(slot)

    def _learn(self, hour: _Hour, seen: _Seen, now_s: float) -> None:
        """Promise less for an hour in which more come than in the mean of a day, and more for one in which fewer do."""
        hour.came, hour.most, hour.seen_s = seen.came / seen.num_slots, seen.most, now_s
        day = [h.came for h in self._hours if h.known(now_s)]
        if len(day) < _HOURS or not self._is_large():
            return
        mean = sum(day) / _HOURS
        low, high = _SHARES
        hour.share = min(max(hour.share * ((mean + 1) / (hour.came + 1)) ** _GAIN, low), high)
        total = sum(h.share for h in self._hours)
        for h in self._hours:
            h.share *= _HOURS / total
