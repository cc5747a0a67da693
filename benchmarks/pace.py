"""Does pace steering keep the check-in rate flat, and do rounds find their devices?

A population whose share of free devices swings by a factor of four over each day, on a virtual clock: one million
devices for the flat rate, and 300 for a secure sum of 100 that have to be there at once. Beside it a server that tells
every device the same. On the last day the large server is away for an hour at noon.
"""

import math
import random
from typing import Any

import numpy as np

from benchmarks.report import Report
from covey.server.pace import DAY_S, PaceSettings, PaceSteering
from covey.simulation.checkins import Activity, CheckIns, CheckInSettings, FixedRetry, Steering

_AWAY_S = 3600.0
_COLUMNS = (
    "steering", "check-ins/s", "hour: least/mean", "hour: most/mean", "minute: most/mean", "rounds/day", "wait p50, s",
    "wait p99, s", "round time p99/p50", "after the outage: most/mean",
)  # fmt: skip


def run(settings: CheckInSettings, steering: Steering, days: int) -> CheckIns:
    """Return the record of so many days."""
    activity = Activity(mean=0.4, highest_to_lowest=4.0)
    out = CheckIns(settings, activity, steering, np.random.default_rng(0), random.Random(0))
    out.run(days)
    return out


def figures(record: CheckIns, first_day: int, last_day: int) -> dict[str, Any]:
    """Return what the days from ``first_day`` up to ``last_day``, without it, were like."""
    minutes = np.asarray(record.per_minute[first_day * 1440 : last_day * 1440], np.float64)
    hours, mean = minutes.reshape(-1, 60).mean(axis=1), minutes.mean()
    began, waited = np.asarray(record.began_s), np.asarray(record.waited_s)
    inside = (began >= first_day * DAY_S) & (began < last_day * DAY_S)
    num_rounds = int(inside.sum())
    p50, p99 = np.quantile(waited[inside], (0.5, 0.99)).tolist() if num_rounds else (None, None)
    return {
        "rate": mean / 60,
        "low": hours.min() / mean,
        "high": hours.max() / mean,
        "minute": minutes.max() / mean,
        "rounds": num_rounds / (last_day - first_day),
        "p50": p50,
        "p99": p99,
        "spread": (p99 + record.settings.round_s) / (p50 + record.settings.round_s) if num_rounds else None,
        "echo": _echo(record, mean),
    }


def _echo(record: CheckIns, mean: float) -> float | None:
    """Return the busiest minute from ten minutes after the outage on; those who came back at once are gone then."""
    end_s = record.settings.away_s[1]
    after = record.per_minute[int(end_s // 60) + 10 :] if math.isfinite(end_s) else []
    return max(after) / mean if after else None


def large(report: Report) -> None:
    """One million devices."""
    quick = report.args.quick
    num_devices, wanted, days = (200_000, 52, 7) if quick else (1_000_000, 260, 9)
    rows, kept = [], {}
    for name, steering, num_days in (
        ("appointments", PaceSteering(PaceSettings(wanted=wanted)), days),
        ("every 3 h", FixedRetry(3 * 3600.0), 3),
    ):
        noon_s = (num_days - 1) * DAY_S + DAY_S / 2
        settings = CheckInSettings(num_devices, wanted, away_s=(noon_s, noon_s + _AWAY_S))
        kept[name] = f = figures(run(settings, steering, num_days), num_days - 2, num_days - 1)
        rows.append((name, *f.values()))
        report.note(f"{name}: {report.elapsed_s:.0f} s")
    report.table(f"{num_devices:,} devices, {wanted} selected a round, the last whole day", _COLUMNS, rows)
    f = kept["appointments"]
    needed = wanted * 1.3 / 25.0
    report.goal("busiest hour / mean hour", f["high"], "<= 1.3 (free devices: 1.6)", f["high"] <= 1.3)
    report.goal(
        "check-ins / those that rounds need with the margin", f["rate"] / needed, "<= 1.1", f["rate"] <= 1.1 * needed
    )
    report.goal("wait for the devices of a round, p99, s", f["p99"], "<= 10", f["p99"] <= 10)
    report.goal("busiest minute after the outage / mean", f["echo"], "<= 2", f["echo"] <= 2)


def small(report: Report) -> None:
    """Three hundred devices, of which a hundred have to come together."""
    days, rows, kept = 6, [], {}
    for name, steering in (
        ("appointments", PaceSteering(PaceSettings(wanted=100))),
        ("every 60 s", FixedRetry(60.0)),
        ("every 15 min", FixedRetry(900.0)),
    ):
        kept[name] = f = figures(run(CheckInSettings(300, 100), steering, days), 2, days)
        rows.append((name, *f.values()))
    report.table("300 devices (48 to 192 are free), 100 at once for a round, four days", _COLUMNS, rows)
    more = kept["appointments"]["rounds"]
    report.goal("rounds a day", more, ">= 100 (others: none)", more >= 100)


def main() -> None:
    report = Report(__doc__)
    report.facts(free="16 to 64 % over a day, for an hour or so at a time", poll="25 s", round="120 s", seeds="0")
    large(report)
    small(report)
    report.finish()


if __name__ == "__main__":
    main()
