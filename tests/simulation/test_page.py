"""The pages hold what was measured, in one file that asks nothing of the network."""

import html.parser
import re

import pytest

from covey.simulation.comparison import common_target, compare
from covey.simulation.page import comparison_page, run_page
from covey.simulation.report import RoundRow, RunReport

pytest.importorskip("matplotlib", reason="needs covey[report]")

SETTINGS = {"algorithm": "fedavg", "lr": 0.1, "cohort": 5}


def report(name="fedavg", accuracies=(0.2, 0.6, None, 0.9), lr=0.1, **more):
    rows = [
        RoundRow(
            round=i, accuracy=a, loss=None if a is None else 1 - a, bytes_up=1000, bytes_down=3000, selected=5,
            reported=5, lost=0, seconds=1.0, at_s=10.0 * i,
        )
        for i, a in enumerate(accuracies, start=1)
    ]  # fmt: skip
    fields = {
        "recipe": "a<b>.py", "algorithm": name, "seed": 0, "mode": "plain", "settings": {**SETTINGS, "lr": lr},
        "versions": {"python": "3"}, "plan": "p" * 64, "checkpoint": "c" * 64, "rounds": rows, "target": 0.75,
        "target_round": None, "client_steps": 7, "seconds": 4.0, "bytes_up": 4000, "bytes_down": 12000,
    }  # fmt: skip
    return RunReport(**{**fields, **more})


class Checked(html.parser.HTMLParser):
    """Collects what a page would load, and that its elements close."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.stack, self.tags = [], [], []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "br", "link", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_a_runs_page_is_whole_and_loads_nothing():
    traffic = {"up: model": 900, "up: header": 100, "down: plan": 3000}
    page = run_page(report(traffic=traffic, device_accuracy=[0.5, 0.9, 0.95], device_examples="held out"))
    checked = Checked(page)
    assert checked.loads == [] and "script" not in checked.tags and checked.tags.count("svg") == 3
    assert "url(http" not in page and "@import" not in page
    shown = [
        *("90.00 %", "up: model", "prefers-color-scheme:dark", "a&lt;b&gt;.py"),
        *("Accuracy by round", "Accuracy by bytes moved", "Accuracy by virtual time"),
        "3 devices, on their own examples (held out)",
    ]
    for text in shown:
        assert text in page, text
    assert "<b>.py" not in page


SPENT = {"download": 10.0, "training": 60.0, "upload": 20.0, "waiting": 10.0, "lost": 0.0}


def test_a_page_shows_where_the_devices_time_went_unless_all_of_it_was_training():
    options = {"up_mbit_per_s": 1.5, "availability": "always"}
    page = run_page(report(device_s=SPENT, options=options))
    assert Checked(page).tags.count("svg") == 2
    for text in ("Where the devices' time went".replace("'", "&#x27;"), "up_mbit_per_s", ">download<", ">waiting<"):
        assert text in page, text
    assert ">lost<" not in page  # nothing was
    alone = run_page(report(device_s={**dict.fromkeys(SPENT, 0.0), "training": 60.0}))
    assert "time went" not in alone


def test_a_comparison_shows_networks_that_differ_and_what_they_cost():
    runs = [report(device_s=SPENT, options={"up_mbit_per_s": 1.0}), report(options={"up_mbit_per_s": 0.0})]
    rows = compare(["a", "b"], runs, None)
    assert [r.differs for r in rows] == [{"up_mbit_per_s": 1.0}, {"up_mbit_per_s": 0.0}]
    page = comparison_page(rows, runs, None)
    assert Checked(page).tags.count("svg") == 2 and "time went" in page and "up_mbit_per_s" in page


def test_colours_are_the_pages_own():
    page = run_page(report())
    assert set(re.findall(r"#0000\d\d|#0001\d\d", page)) == set()
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", page))
    defined = set(re.findall(r"(--[a-z0-9]+):#", page))
    assert used <= defined


def test_a_page_does_not_change_from_one_making_to_the_next():
    assert run_page(report()) == run_page(report())


def test_a_run_that_stopped_says_why():
    assert "Stopped early" in run_page(report(stopped="round 3: it diverged"))
    assert "Stopped early" not in run_page(report())


def test_a_comparison_by_hand():
    runs = [report(), report("fedprox", (0.1, 0.3, 0.5, 0.6), lr=0.2)]
    assert common_target(runs) == 0.75
    first, second = compare(["a", "b"], runs, 0.75)
    # 0.6 in round 2, 0.9 in round 4: 0.75 is halfway, in rounds, bytes (8,000 to 16,000) and time.
    assert (first.target_round, first.target_bytes, first.target_s) == pytest.approx((3.0, 12_000.0, 30.0))
    assert (second.target_round, second.best_accuracy) == (None, 0.6)
    assert first.differs == {"lr": 0.1} and second.differs == {"lr": 0.2}
    page = comparison_page([first, second], runs, 0.75)
    checked = Checked(page)
    assert checked.loads == [] and "rounds to target" in page and "fedprox" in page and "3.0" in page


def test_many_runs_share_the_colours():
    runs = [report() for _ in range(10)]
    rows = compare([f"run-{i}" for i in range(10)], runs, None)
    page = comparison_page(rows, runs, None)
    assert page.count("run-9") >= 2 and "stroke-dasharray" in page
