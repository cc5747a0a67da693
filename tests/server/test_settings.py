"""How a round goes: what the settings mean, and which of them cannot work."""

import dataclasses

import msgspec
import pytest

from covey.server.settings import (
    RoundSettings,
    TaskSettings,
    check_schedule,
    check_settings,
    decode_settings,
    encode_settings,
    hyper_in,
)
from covey.types.errors import UsageError

from . import parts
from .rounds import BASE


@pytest.mark.parametrize(
    ("goal", "over_selection", "fraction", "selected", "least"),
    [(100, 1.3, 0.7, 130, 70), (10, 1.1, 0.7, 11, 7), (4, 1.0, 1.0, 4, 4), (3, 1.3, 0.7, 4, 3), (2, 1.0, 0.01, 2, 1)],
)
def test_over_selection_and_the_least_are_rounded_up(goal, over_selection, fraction, selected, least):
    settings = RoundSettings(goal=goal, over_selection=over_selection, min_fraction=fraction)
    assert (settings.num_selected, settings.at_least) == (selected, least)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"goal": 0}, "goal"),
        ({"goal": -3}, "goal"),
        ({"goal": 80, "over_selection": 1.3}, "a selection of at most 100"),
        ({"over_selection": 0.9}, "over_selection"),
        ({"over_selection": float("nan")}, "over_selection"),
        ({"over_selection": float("inf")}, "over_selection"),
        ({"min_fraction": 0.0}, "min_fraction"),
        ({"min_fraction": 1.1}, "min_fraction"),
        ({"min_fraction": float("nan")}, "min_fraction"),
        ({"min_fraction": 0.25}, "at least the plan's min_cohort, 2"),
        ({"goal": 1, "min_fraction": 1.0}, "at least the plan's min_cohort, 2"),
        ({"max_rounds": -1}, "max_rounds"),
        ({"patience_s": -1.0}, "patience_s"),
        ({"selection_timeout_s": float("nan")}, "selection_timeout_s"),
        ({"report_timeout_s": float("inf")}, "report_timeout_s"),
        ({"pause_s": -0.1}, "pause_s"),
        ({"hyper": {"learning_rate": 0.1}}, "hyper: expected names among lr, got learning_rate"),
        ({"hyper": {"lr": 1e9}}, r"hyper\.lr: expected 0\.0001 to 100, the plan's bounds"),
        ({"hyper": {"lr": float("nan")}}, r"hyper\.lr"),
        ({"lr_decay": 0.0}, "lr_decay"),
        ({"lr_decay": 1.01}, "lr_decay"),
        ({"lr_decay": float("nan")}, "lr_decay"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, where):
    with pytest.raises(UsageError, match=where):
        check_settings(dataclasses.replace(BASE, **fields), parts.manifest())


def test_a_learning_rate_decays_from_round_to_round_down_to_the_plans_bound():
    manifest = parts.manifest()
    (bound,) = manifest.hyper
    settings = dataclasses.replace(BASE, hyper={"lr": 0.5}, lr_decay=0.5)
    assert [hyper_in(settings, manifest, n)["lr"] for n in (1, 2, 4)] == [0.5, 0.25, 0.0625]
    assert hyper_in(settings, manifest, 100) == {"lr": bound.low}
    assert hyper_in(dataclasses.replace(settings, hyper={}), manifest, 2) == {"lr": 0.5 * bound.default}
    assert hyper_in(dataclasses.replace(BASE, hyper={}), manifest, 9) == {}


def test_only_a_plan_with_a_learning_rate_can_have_one_that_decays():
    with pytest.raises(UsageError, match="lr_decay"):
        check_settings(
            dataclasses.replace(BASE, hyper={}, lr_decay=0.9), msgspec.structs.replace(parts.manifest(), hyper=())
        )


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"every": 0}, "every"),
        ({"start_at": -1.0}, "start_at"),
        ({"until": float("inf")}, "until"),
        ({"start_at": 20.0, "until": 10.0}, "a time after start_at"),
    ],
)
def test_schedules_that_cannot_be_kept_are_refused(fields, where):
    with pytest.raises(UsageError, match=where):
        check_schedule(TaskSettings(BASE, **fields))


def test_settings_come_back_from_storage_and_newer_ones_may_have_more():
    settings = TaskSettings(dataclasses.replace(BASE, hyper={"lr": 0.5}), every=7, start_at=1.5, until=9.0)
    assert decode_settings(encode_settings(settings)) == settings
    assert decode_settings(encode_settings(settings)[:-1] + b',"later":1}') == settings
    for bad in (b"", b"{}", b'{"round":{"goal":"many"}}'):
        with pytest.raises(UsageError, match="the settings of a task"):
            decode_settings(bad)
