"""The files in ``vectors/secagg`` are what the code does, and each negative vector fails for its one stated reason."""

import json

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from covey.secagg import Step
from covey.types.errors import SecAggError
from secagg.test_packing import slow_packed
from secagg.vector_files import FOLDER, GONE, RUNS, files, reach, text

MADE = files()
NEGATIVE = sorted(f for f in MADE if f.startswith("negative/"))


def test_the_folder_holds_these_files_and_no_others():
    assert {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.json")} == set(MADE)


@pytest.mark.parametrize("file", sorted(MADE))
def test_a_file_is_what_the_code_does(file):
    assert (FOLDER / file).read_text() == text(MADE[file])


@pytest.mark.parametrize("file", NEGATIVE)
def test_a_negative_vector_fails_as_it_says(file):
    vector = json.loads((FOLDER / file).read_text())
    run, message = reach(vector["run"], Step[vector["step"].upper()]), bytes.fromhex(vector["message"])
    honest = run.answer(0) if vector["to"].startswith("server") else run.told[0]
    assert message != honest
    with pytest.raises(SecAggError) as caught:
        if vector["to"].startswith("server"):
            run.server.accept(0, message)
        else:
            run.answer(0, message)
    assert caught.value.code == vector["expect"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_can_be_replayed_from_its_file(name):
    """Sums, survivors and inputs fit each other without any of the code that made them."""
    vector = json.loads((FOLDER / f"{name}.json").read_text())
    alive = [i for i in range(vector["session"]["n_max"]) if GONE[name].get(i, Step.OPEN) > Step.MASK]
    assert vector["survivors"] == alive
    for number, total in enumerate(vector["sums"]):
        inputs = [vector["parties"][str(i)]["inputs"][number] for i in alive]
        assert total == [sum(column) for column in zip(*inputs, strict=True)]


@pytest.mark.parametrize("name", RUNS)
def test_a_slow_client_makes_the_same_masked_inputs(name):
    """Seeds from the file, AES one block at a time from the library, sums and packing in plain integers."""
    vector = json.loads((FOLDER / f"{name}.json").read_text())
    segments = vector["session"]["segments"]
    for index, party in vector["parties"].items():
        sent = party["messages"].get("mask", {}).get("sent")
        if sent is None:
            continue
        body, i = b"", int(index)
        for number, segment in enumerate(segments):
            values = [*party["inputs"], [1]][number]
            total = list(values)
            size = 2 if segment["ring_bits"] <= 16 else 4 if segment["ring_bits"] <= 32 else 8
            masks = [(1, party["self_mask_seeds"][number])]
            for pair in vector["pairs"]:
                if i in pair["parties"]:
                    masks.append((1 if i == pair["parties"][0] else -1, pair["mask_seeds"][number]))
            for sign, seed in masks:
                stream = slow_stream(bytes.fromhex(seed), len(values) * size)
                words = [int.from_bytes(stream[k : k + size], "little") for k in range(0, len(stream), size)]
                total = [a + sign * b for a, b in zip(total, words, strict=True)]
            body += slow_packed([x % (1 << segment["ring_bits"]) for x in total], segment["ring_bits"])
        assert bytes.fromhex(sent)[40:] == body


def slow_stream(seed: bytes, num_bytes: int) -> bytes:
    if num_bytes <= 32:
        return seed[:num_bytes]
    block = Cipher(algorithms.AES(seed[:16]), modes.ECB()).encryptor()
    out, counter = b"", int.from_bytes(seed[16:], "big")
    while len(out) < num_bytes:
        out += block.update((counter % (1 << 128)).to_bytes(16, "big"))
        counter += 1
    return out[:num_bytes]


def test_every_failure_class_has_a_vector():
    codes = {json.loads((FOLDER / f).read_text())["expect"] for f in NEGATIVE}
    assert codes >= {
        "secagg_message", "secagg_threshold", "secagg_public_key", "secagg_enrolment", "secagg_share",
        "secagg_consistency",
    }  # fmt: skip
