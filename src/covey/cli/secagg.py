"""``covey secagg``: what secure aggregation needs to know before a plan is written."""

import dataclasses
import math
from typing import Any

import click

from covey.cli.options import json_option
from covey.cli.output import print_table, write_json

__all__ = ["command"]


@click.group("secagg")
def command() -> None:
    """Secure aggregation: the server learns the sum over enough devices, or nothing."""


@command.command()
@click.option("--parties", type=int, required=True, metavar="N", help="The most devices selected for a round.")
@click.option("--adversary", type=float, required=True, metavar="X", help="Share that may collude with the server.")
@click.option("--dropout", type=float, required=True, metavar="X", help="Share that may vanish after training.")
@click.option("--active", is_flag=True, help="The server may deviate from the protocol.")
@json_option
def parameters(parties: int, adversary: float, dropout: float, active: bool, json_file: str | None) -> None:
    """Find the number of neighbours k and the threshold t.

    Prints the published table's numbers, and those that a session uses: with at least one adversary, a complete graph
    up to 128 devices, and against an active server groups of at most 512 with a quorum.
    """
    from covey.secagg.parameters import Bits, find_parameters

    found = find_parameters(parties, adversary, dropout, active=active)
    if json_file is not None:
        write_json(_finite(dataclasses.asdict(found)), json_file)
        if json_file == "-":
            return

    def row(name: str, k: int | None, t: int | None, bits: Bits | None) -> list[str]:
        numbers = [bits.isolation_bits, bits.exposure_bits, bits.failure_bits] if bits else [None] * 3
        return [name, *("-" if n is None else str(n) for n in (k, t)), *map(_bits_text, numbers)]

    click.echo(f"mode: {found.mode}; {found.num_groups} group(s) of up to {found.group_size}, in each up to")
    click.echo(f"{found.num_adversaries} adversaries and {found.num_dropouts} dropouts; bits: a failure has 2^-bits")
    rows = [["", "k", "t", "isolation bits", "exposure bits", "failure bits"]]
    rows += [row("table", found.k, found.t, found.bits), row("used", found.k_used, found.t_used, found.bits_used)]
    print_table(rows, right=(1, 2, 3, 4, 5))


def _bits_text(bits: float | None) -> str:
    return "-" if bits is None else "never" if math.isinf(bits) else f"{bits:.1f}"


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON does not have, by null: a failure that cannot happen."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value
