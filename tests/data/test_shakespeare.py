import numpy as np
import pytest

from covey.data.registry import load
from covey.data.shakespeare import PAD, START, VOCABULARY, lines_as_sequences, lines_as_windows, roles
from covey.types.errors import NotFoundError, UsageError


def test_every_role_is_one_device_and_none_is_empty():
    found = roles()
    assert len(found) == 1256 and len({r.client for r in found}) == 1256
    assert all(len(r.lines) >= 2 and all(r.lines) for r in found)


def test_the_first_four_fifths_train_and_nothing_is_in_both():
    for role in roles()[:200]:
        assert role.train_lines + role.test_lines == role.lines
        assert role.train_lines and role.test_lines
        assert abs(len(role.train_lines) - 0.8 * len(role.lines)) < 1


def test_every_character_is_predicted_once_from_what_is_before_it():
    lines = ["To be", "or"]
    examples = lines_as_windows(lines, 4)
    assert VOCABULARY.decode(examples["y"].tolist()) == "To be\nor\n"
    first, fourth = examples["x"][0], examples["x"][3]
    assert first.tolist() == [PAD, PAD, PAD, START]
    assert VOCABULARY.decode(fourth.tolist()) == "To "  # the start of the line decodes to nothing
    assert examples["x"].dtype == examples["y"].dtype == np.int32


def test_sequences_are_shifted_by_one_and_padding_predicts_nothing():
    examples = lines_as_sequences(["abcdef"], 4)
    assert examples["y"].shape == (2, 4)
    assert VOCABULARY.decode(examples["y"].ravel().tolist()) == "abcdef\n"
    assert examples["x"].ravel()[1:7].tolist() == examples["y"].ravel()[:6].tolist()
    assert examples["x"][1, 3] == examples["y"][1, 3] == PAD


def test_unknown_characters_are_one_symbol():
    assert VOCABULARY.decode(VOCABULARY.encode("a\u2603b").tolist()) == "a\ufffdb"
    assert VOCABULARY.encode("a\u2603").max() < VOCABULARY.size


@pytest.mark.parametrize("form", ["windows", "sequences"])
def test_the_largest_roles_are_taken_and_counted_without_making_them(form):
    dataset = load("shakespeare", num_clients=5, form=form, length=8)
    assert len(dataset.client_ids) == 5
    for client in dataset.client_ids:
        assert dataset.num_examples(client) == len(dataset.train(client)["y"])
    pooled = dataset.pooled_test()
    assert len(pooled["y"]) == sum(len(dataset.test(c)["y"]) for c in dataset.client_ids)


def test_wrong_requests_are_errors():
    with pytest.raises(UsageError):
        load("shakespeare", num_clients=2000)
    with pytest.raises(UsageError):
        load("shakespeare", partition="iid")
    with pytest.raises(UsageError, match="shakespeare"):
        load("shakespere")
    with pytest.raises(NotFoundError):
        load("shakespeare").train("hamlet/NOBODY")
