import dataclasses

import pytest

from covey.privacy.accounting import epsilon
from covey.privacy.guarantee import guarantee_of
from covey.privacy.mechanism import KINDS
from covey.privacy.spec import KEYS, RingRoom, Setting, is_noised, parse_spec
from covey.types.errors import (
    ClipMissingError,
    DeltaError,
    NoiseError,
    PrivacyError,
    PrivacySpecError,
    UsageError,
)

SETTING = Setting(cohort=100, min_survivors=70, num_selected=130, rounds=50, population=10_000, dim=100_000)


def test_none_is_no_privacy():
    assert parse_spec("none") is parse_spec(" none ") is None


@pytest.mark.parametrize(
    "text, expected, hint",
    [
        ("gausian:clip=1,noise=1", "one of gaussian", "did you mean gaussian"),
        ("skelam:clip=1,noise=1", "one of gaussian", "did you mean skellam"),
        ("discrete:clip=1,noise=1", "discrete-gaussian", "discrete-gaussian"),
        ("", "one of gaussian", "grammar"),
        ("gaussian:clip=1,nosie=1", "one of clip, noise", "did you mean noise"),
        ("gaussian:clip=1,noise=1,bits=16", "one of clip, noise", ""),  # bits are for noise of devices
        ("tree:clip=1,noise=1,max_partcipation=3", "max_participation", "did you mean max_participation"),
        ("gaussian:clip=1,noise=1,sampling=poison", "one of none, poisson", "did you mean poisson"),
        ("gaussian:clip=adaptve,noise=1", "a number above 0 or adaptive", "did you mean adaptive"),
        ("gaussian:clip=1,noise", "noise=VALUE", ""),
        ("gaussian:clip=1,noise=", "noise=VALUE", ""),
        ("gaussian:clip=1,noise=abc", "a number above 0", ""),
        ("gaussian:clip=1,noise=-1", "a number above 0", ""),
        ("gaussian:clip=1,noise=nan", "a number above 0", ""),
        ("gaussian:clip=1,noise=inf", "a number above 0", ""),
        ("gaussian:clip=0,noise=1", "a number above 0 or adaptive", ""),
        ("gaussian:clip=1,noise=1,units=1.5", "a whole number", ""),
        ("gaussian:clip=1,noise=1,clip=2", "each key once", ""),
        ("gaussian:clip=1,,noise=1", "one of clip", ""),
        ("gaussian:", "one of clip", ""),
        ("gaussian:clip=1", "noise=MULTIPLIER or epsilon=TARGET", ""),
        ("gaussian:clip=1,noise=1,epsilon=2", "noise=MULTIPLIER or epsilon=TARGET", ""),
        ("gaussian:clip=1,noise=1,quantile=0.5", "quantile with clip=adaptive only", ""),
        ("tree:clip=adaptive,noise=1", "a fixed clip under a tree", ""),
    ],
)
def test_malformed_specs_name_what_is_known_and_the_near_misses(text, expected, hint):
    with pytest.raises(PrivacySpecError) as caught:
        parse_spec(text)
    assert expected in caught.value.expected
    assert hint in caught.value.hint
    assert isinstance(caught.value, UsageError) and caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["gaussian", "gaussian:noise=1", "skellam:epsilon=3"])
def test_noise_without_a_clip_is_refused(text):
    with pytest.raises(ClipMissingError, match="without a clip"):
        parse_spec(text)


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_and_noise_are_inverse(kind):
    mechanism = parse_spec(f"{kind}:clip=0.5,epsilon=6").resolve(SETTING)
    assert 5.9 < epsilon(mechanism.spent(SETTING.dim, SETTING.rounds), mechanism.delta) <= 6
    same = parse_spec(f"{kind}:clip=0.5,noise={mechanism.noise_multiplier!r}").resolve(SETTING)
    assert same == mechanism


@pytest.mark.parametrize("kind", ["gaussian", "discrete-gaussian", "skellam"])
def test_an_adapting_clip_spends_no_more(kind):
    mechanism = parse_spec(f"{kind}:clip=adaptive,start=0.3,quantile=0.7,epsilon=6").resolve(SETTING)
    assert mechanism.clip == 0.3 and mechanism.quantile == 0.7 and mechanism.clip_low < 0.3 < mechanism.clip_high
    assert 5.9 < epsilon(mechanism.spent(SETTING.dim, SETTING.rounds), mechanism.delta) <= 6


def test_every_key_arrives():
    text = (
        "skellam:clip=adaptive,noise=2,delta=1e-6,budget=9,population=500000,units=512,sampling=poisson,start=0.2,"
        "quantile=0.6,clip_lr=0.1,count_noise=7,bits=28,colluders=5,min_survivors=50"
    )
    spec = parse_spec(text)
    assert set(spec.values) == set(KEYS["skellam"]) - {"epsilon"}
    m = spec.resolve(SETTING)
    assert (m.clip, m.noise_multiplier, m.delta, m.budget, m.population) == (0.2, 2, 1e-6, 9, 500_000)
    assert (m.clip_units, m.sampling, m.quantile, m.clip_lr, m.count_noise) == (512, "poisson", 0.6, 0.1, 7)
    assert (m.colluders, m.min_survivors, spec.bits(SETTING), m.denominator, m.num_rounds) == (5, 50, 28, 100, 50)
    tree = parse_spec("tree:clip=1,noise=2,max_participation=3,min_separation=4").resolve(SETTING)
    assert (tree.max_participation, tree.min_separation) == (3, 4)


def test_units_are_the_finest_that_the_ring_holds():
    fine, coarse = (parse_spec(f"discrete-gaussian:clip=1,noise=1,bits={b}").resolve(SETTING) for b in (32, 20))
    assert coarse.clip_units < fine.clip_units
    for m, bits in ((fine, 32), (coarse, 20)):
        assert 130 * (m.coordinate_bound() + 1) < 1 << (bits - 1)
    with pytest.raises(NoiseError, match="cannot wrap"):
        parse_spec("discrete-gaussian:clip=1,noise=1,bits=12").resolve(SETTING)


def test_units_that_float32_cannot_carry_are_refused():
    with pytest.raises(NoiseError, match="below 16777216 units"):
        parse_spec(f"gaussian:clip=1,noise=1,units={1 << 24}").resolve(SETTING)


def test_delta_of_one_over_the_population_is_refused():
    with pytest.raises(DeltaError, match="1/10000"):
        parse_spec("gaussian:clip=1,noise=1,delta=1e-4").resolve(SETTING)


def test_sigma_local_under_two_units_is_refused():
    with pytest.raises(NoiseError, match="2 integer units"):
        parse_spec("skellam:clip=1,noise=0.1,units=100").resolve(SETTING)


def test_every_figure_is_printed_with_its_assumptions():
    m = parse_spec("discrete-gaussian:clip=0.5,noise=3,colluders=9,sampling=poisson").resolve(SETTING)
    g = guarantee_of(m, SETTING.dim, SETTING.rounds, private=True)
    text = "\n".join(g.assumptions)
    for word in ("adjacency", "participation", "cohort", "public constant 100", "70 or more", "9 of them", "delta"):
        assert word in text
    assert "no amplification" in text and "probability 0.01" in text and "metrics absent" in text
    assert f"{g.epsilon:.4g}" in g.headline and f"{g.amplified_epsilon:.4g} if sampling were Poisson" in g.headline
    assert g.amplified_epsilon < g.epsilon and "not private" not in g.headline
    plain = guarantee_of(parse_spec("gaussian:clip=0.5,noise=3").resolve(SETTING), 10, 5, private=False)
    assert plain.amplified_epsilon is None and "Poisson" not in plain.headline and "not private" in plain.headline
    tree = parse_spec("tree:clip=1,noise=7,max_participation=6,min_separation=3").resolve(SETTING)
    assert "at most 6 of 50 rounds" in "\n".join(guarantee_of(tree, 10, 50, private=True).assumptions)


def in_ring(bits, n_max=100, clamp=4.0, **fields):
    return dataclasses.replace(SETTING, ring=RingRoom(bits, n_max, clamp), **fields)


@pytest.mark.parametrize("kind", ["gaussian", "discrete-gaussian", "skellam"])
@pytest.mark.parametrize("bits", [20, 24, 28])
def test_in_a_ring_the_units_are_the_finest_that_cannot_wrap(kind, bits):
    """n_max devices, each at its clamp and with the most noise that the sampler gives, are below half of the ring."""
    spec, setting = parse_spec(f"{kind}:clip=1,noise=1"), in_ring(bits)
    m = spec.resolve(setting)
    limit = m.limit(setting.dim, 4.0)
    assert limit == -(-4 * m.clip_units // 100_000**0.5) or limit == m.clip_units + 1
    assert 100 * (m.coordinate_bound(limit) + 1) < 2 ** (bits - 1)
    finer = dataclasses.replace(m, clip_units=2 * m.clip_units)
    assert (
        m.clip_units == 1 << 14
        or 100 * (finer.limit(setting.dim, 4.0) + 2 + finer.distributed * (14 * finer.share_units + 160))
        >= 2 ** (bits - 1) - 100
    )
    assert spec.bits(setting) == bits


def test_a_ring_saves_what_a_clamp_saves():
    """Central noise: without a rotation one coordinate may be the whole clip, with it 4 deviations of 1e5."""
    m = parse_spec("gaussian:clip=1,noise=1").resolve(in_ring(16))
    assert m.coordinate_bound(m.limit(100_000, 4.0)) < m.coordinate_bound() / 50


@pytest.mark.parametrize("spec", ["skellam:clip=1,noise=1", "discrete-gaussian:clip=1,noise=1,units=4096"])
def test_a_ring_without_room_for_the_noise_is_refused(spec):
    with pytest.raises(NoiseError) as caught:
        parse_spec(spec).resolve(in_ring(12))
    assert "wider ring" in caught.value.hint


def test_a_ring_has_one_width():
    assert parse_spec("skellam:clip=1,noise=1,bits=24").resolve(in_ring(24)).clip_units > 1
    with pytest.raises(PrivacyError, match="the codec's 24"):
        parse_spec("skellam:clip=1,noise=1,bits=20").resolve(in_ring(24))


def test_a_target_is_met_in_a_ring():
    m = parse_spec("skellam:clip=1,epsilon=8").resolve(in_ring(20))
    found = epsilon(m.spent(SETTING.dim, SETTING.rounds), m.delta)
    assert found <= 8
    with pytest.raises(NoiseError):
        parse_spec("skellam:clip=1,epsilon=0.01").resolve(in_ring(20))


def test_whether_a_spec_asks_for_noise():
    assert [is_noised(t) for t in (None, "none", "gaussian:clip=1,noise=1")] == [False, False, True]
