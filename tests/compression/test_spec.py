import builtins
import re
from pathlib import Path

import pytest

from covey.compression.codec import codec_named
from covey.compression.spec import STAGE_NAMES
from covey.types.errors import CompressionSpecError, MissingExtraError


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("float32", "float32"),
        ("hd", "hd|float32"),
        (" hd | subsample:0.0625 | quantize:2 ", "hd|subsample:0.0625|quantize:2"),
        ("hd|eden:2.0", "hd|eden:2"),
        ("hd|eden:0.05", "hd|subsample:0.05|eden:1"),
        ("topk:1e-2", "topk:0.01|float32"),
        ("uniform:2:stochastic", "uniform:2:stochastic"),
        ("hd|ring:12:100:7.50:3", "hd|ring:12:100:7.5:3"),
        ("hd|ring:12:100:7.5:4", "hd|ring:12:100:7.5"),
        ("mask:0.1|hd|subsample:0.5|ring:12:100:1.5", "mask:0.1|hd|subsample:0.5|ring:12:100:1.5"),
    ],
)
def test_specs_have_one_canonical_form(spec, text):
    assert codec_named(spec).text == text
    assert codec_named(text).text == text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "stages among"),
        ("zip", "stages among"),
        ("edn:2", "did you mean eden"),
        ("eden:2", "hd before eden"),
        ("ring:12:100:1", "hd before eden and ring"),
        ("hd|eden", "eden:B"),
        ("hd|eden:5", "from 1e-06 to 4"),
        ("hd|eden:nan", "from 1e-06 to 4"),
        ("hd|eden:two", "from 1e-06 to 4"),
        ("quantize:2.5", "whole"),
        ("quantize:9", "from 1 to 8"),
        ("subsample:0", "from 1e-06 to 1"),
        ("subsample:2", "from 1e-06 to 1"),
        ("hd|hd|eden:2", "at most once"),
        ("subsample:0.5|hd|eden:0.5", "at most once"),
        ("float32|hd", "one coder, at the end"),
        ("hd|mask:0.1|eden:2", "mask and lowrank first"),
        ("hd|lowrank:4|eden:2", "mask and lowrank first"),
        ("mask:0.1|lowrank:4", "one structure"),
        ("hd|topk:0.1", "topk first"),
        ("lowrank:0", "from 1 to 256"),
        ("lowrank:2.5", "whole"),
        ("hd:sideways", "hd:interleaved"),
        ("topk:0.1|hd|ring:12:100:1", "compose with secure aggregation"),
        ("subsample:0.1|hd|ring:12:100:1", "compose with secure aggregation"),
        ("float32:1", "argument"),
        ("hd|ring:12:100", "ring:B:N:NORM"),
        ("hd|ring:12:100:1:2:3", "ring:B:N:NORM:CLAMP"),
        ("hd|ring:12.5:100:1", "whole"),
        ("hd|ring:8:128:1", "room for one step"),
    ],
)
def test_what_is_wrong_is_named(spec, words):
    with pytest.raises(CompressionSpecError) as caught:
        codec_named(spec)
    assert words in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_code == 2


def test_only_the_ring_composes():
    for spec in ("float32", "quantize:2", "hd|eden:2", "hd|uniform:1", "topk:0.1", "subsample:0.1", "hd"):
        assert not codec_named(spec).composes_with_secagg
    for spec in ("hd|ring:12:100:1", "hd|subsample:0.1|ring:12:100:1", "mask:0.1|hd|ring:12:100:1"):
        assert codec_named(spec).composes_with_secagg


def test_entropy_coding_without_its_package_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def fails(name, *args, **kwargs):
        if name == "constriction":
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **kwargs)

    codec_named.cache_clear()
    monkeypatch.setattr(builtins, "__import__", fails)
    with pytest.raises(MissingExtraError) as caught:
        codec_named("hd|uniform:1")
    assert "covey[entropy]" in caught.value.hint
    codec_named("hd|eden:2")


def test_the_documentation_names_every_stage_and_its_specs_are_specs():
    text = (Path(__file__).parents[2] / "docs" / "compression.md").read_text().replace("\\|", "|")
    for name in STAGE_NAMES:
        assert re.search(rf"`{name}\b", text), name
    specs = [s for s in re.findall(r"[`']([a-z0-9:|.]+)[`']", text) if "|" in s and not re.search(r":[A-Z]", s)]
    assert len(specs) >= 5
    for spec in specs:
        codec_named(spec)
