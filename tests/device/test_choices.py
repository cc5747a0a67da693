"""The person's choices: they last, they count at once, and what cannot be read allows nothing."""

import math
import threading

import pytest

from covey.device.choices import Choices, Chosen
from covey.types.errors import StorageError


@pytest.fixture
def choices(tmp_path):
    return Choices(tmp_path / "choices.json")


def test_who_chose_nothing_allows_everything(choices):
    assert choices.read() == Chosen()
    assert choices.allows("p", 0.0)
    assert not choices.path.exists()


def test_a_pause_ends_by_itself_or_by_resume(choices):
    choices.pause(100.0)
    assert not choices.allows("p", 99.9) and choices.allows("p", 100.0)
    choices.pause()
    assert not choices.allows("p", 1e15) and Choices(choices.path).read().paused_until_s == math.inf
    choices.resume()
    assert choices.allows("p", 0.0)


def test_a_refusal_concerns_one_population_and_survives_a_pause(choices):
    choices.refuse("p")
    choices.refuse("q\n\"'é")
    choices.pause(5.0)
    choices.resume()
    assert not choices.allows("p", 9.0) and not choices.allows("q\n\"'é", 9.0) and choices.allows("r", 9.0)
    choices.accept("p")
    choices.accept("never refused")
    assert choices.read().refused == {"q\n\"'é"}
    assert choices.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"refused": 3}', b"\xff\xfe"])
def test_choices_that_cannot_be_read_allow_nothing_until_the_person_chooses_again(choices, content):
    choices.path.write_bytes(content)
    assert not choices.allows("p", 1e12)
    with pytest.raises(StorageError, match=r"choices choices\.json: expected the choices") as caught:
        choices.read()
    assert "covey device resume" in caught.value.hint
    assert choices.path.read_bytes() == content
    choices.resume()
    assert choices.allows("p", 0.0)
    assert choices.path.with_name("choices.json.broken-1").read_bytes() == content


def test_choices_made_at_the_same_time_all_count(choices):
    names = [f"p{n}" for n in range(12)]
    threads = [threading.Thread(target=Choices(choices.path).refuse, args=(name,)) for name in names]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert choices.read().refused == set(names)
