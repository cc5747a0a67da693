"""How a contestant of benchmarks/simulation.py is timed: it stays alive, and runs rounds for a while when told to.

Every contestant can so be started once and measured in turns, a second or so each: whatever else slows the machine
down slows all of them alike. Protocol: the contestant prints ``{"ready": ...}`` after its warm-up; each line on stdin
is a number of seconds, answered, after the first round that ends past them, by ``{"steps_per_s": ...}``.
"""

import argparse
import json
import os
import sys
import time


class Finished(BaseException):
    """There is no more to do. No ``Exception``, so that no framework swallows it."""


class Gate:
    """Stops the clock, and the contestant, between two turns."""

    def __init__(self, warmup=1):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else is printed must not end up between the answers
        self._warmup = warmup
        self._rounds = self._steps = 0
        self._seconds = 0.0
        self._started = time.perf_counter()

    def round_done(self, steps, versions):
        """Note a finished round of ``steps`` client steps; wait for the next turn if this one is over."""
        self._rounds += 1
        self._steps += steps
        took = time.perf_counter() - self._started
        if self._warmup:
            if self._rounds < self._warmup:
                return
            self._warmup = 0
            answer = {"ready": True, "versions": versions, "steps": steps}
        elif took < self._seconds:
            return
        else:
            answer = {"steps_per_s": self._steps / took, "rounds": self._rounds}
        print(json.dumps(answer), file=self._out, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise Finished
        self._seconds = float(line)
        self._rounds = self._steps = 0
        self._started = time.perf_counter()


def arguments():
    """Return the arguments that every contestant takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="x [clients, n, ...] and y [clients, n, ...] as .npz")
    parser.add_argument("--model", choices=["2nn", "cnn", "lstm"], required=True)
    parser.add_argument("--cohort", type=int, required=True)
    parser.add_argument("--variant", default="")
    return parser.parse_args()
