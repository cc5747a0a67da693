"""The ends of words, from the keyboard's ``predict`` graph: what an application suggests to somebody who types."""

from collections.abc import Callable, Sequence

import numpy as np

from covey.data.shakespeare import START, VOCABULARY
from covey.recipes.keyboard import CONTEXT
from covey.types.tensors import Tensors

Predict = Callable[[Tensors], Tensors]

__all__ = ["suggest"]

_LONGEST_WORD = 16


def suggest(predict: Predict, text: str, *, count: int = 3) -> list[str]:
    """Return the ``count`` most likely ends of the word at hand, or whole next words after a space.

    ``predict`` takes an example's inputs: :meth:`covey.device.personal.PersonalModel.predict`.

    A beam search: the ``2 * count`` likeliest beginnings are carried on, character by character, until a word ends.
    """
    beams, ended = [(0.0, "")], list[tuple[float, str]]()
    for _ in range(_LONGEST_WORD):
        grown = []
        for score, tail in beams:
            for symbol, log_p in _likeliest(predict, text + tail, 2 * count):
                character = VOCABULARY.decode([symbol])
                if not character:
                    continue
                if character.isalpha() or (character == "'" and tail):
                    grown.append((score + log_p, tail + character))
                elif tail or (text and text[-1].isalpha()):
                    ended.append((score + log_p, tail))
        beams = sorted(grown, reverse=True)[: 2 * count]
        best = sorted(ended, reverse=True)[:count]
        if not beams or (len(best) == count and best[-1][0] >= beams[0][0]):
            break  # what is still open can only become less likely
    out: list[str] = []
    for _, tail in sorted(ended, reverse=True):
        if tail not in out:
            out.append(tail)
    return out[:count]


def _likeliest(predict: Predict, text: str, count: int) -> Sequence[tuple[int, float]]:
    symbols = np.concatenate([[START], VOCABULARY.encode(text)])[-CONTEXT:]
    window = np.zeros(CONTEXT, np.int32)
    window[CONTEXT - len(symbols) :] = symbols
    probabilities = np.asarray(predict({"x": window})["probabilities"], np.float32)
    top = np.argsort(-probabilities)[:count]
    return [(int(s), float(np.log(max(probabilities[s], 1e-12)))) for s in top]
