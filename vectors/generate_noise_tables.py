"""Write ``noise_tables.json``: the thresholds of the integer noise, from mpmath at 60 digits and not from Covey's code.

``python vectors/generate_noise_tables.py``. Each table lists, for ``k`` from ``-bound`` to ``bound - 1``, the 128-bit
threshold ``floor(2^128 P[X <= k])`` in hex; a sample is ``-bound`` plus the number of thresholds at or below a uniform
128-bit number. An implementation may differ by at most 4 in each: 2^-126 of probability.
"""

import json
from pathlib import Path

import mpmath

mpmath.mp.dps = 60
BOUNDS = {("discrete-gaussian", 2): 28, ("discrete-gaussian", 5): 68, ("skellam", 2): 42, ("skellam", 5): 79}


def probability(kind: str, sigma: int, k: int) -> mpmath.mpf:
    """Return P[X = k]."""
    if kind == "skellam":
        return mpmath.exp(-(sigma**2)) * mpmath.besseli(abs(k), sigma**2)
    q = mpmath.exp(-1 / mpmath.mpf(2 * sigma**2))
    return q ** (k * k) / mpmath.jtheta(3, 0, q)


def main() -> None:
    """Write the file beside this one."""
    tables = []
    for (kind, sigma), bound in BOUNDS.items():
        below = mpmath.mpf(0)
        thresholds = []
        for k in range(-bound, bound):
            below += probability(kind, sigma, k)
            thresholds.append(f"{int(mpmath.floor(below * mpmath.mpf(2) ** 128)):032x}")
        tables.append({"kind": kind, "sigma": sigma, "bound": bound, "thresholds": thresholds})
    path = Path(__file__).with_name("noise_tables.json")
    about = "128-bit thresholds floor(2^128 P[X <= k]) for k = -bound .. bound - 1, hex; by generate_noise_tables.py"
    path.write_text(json.dumps({"about": about, "tolerance": 4, "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
