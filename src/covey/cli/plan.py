"""``covey plan``: build, look at, check and compare the artifact that devices execute."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.options import (
    active_option,
    authority_key_option,
    authority_named,
    devices_option,
    file_path,
    privacy_option,
    promised,
    read_file,
    recipe_argument,
    settings_from,
    training_options,
)
from covey.cli.output import StatusLine, bytes_text, print_table, write_file

if TYPE_CHECKING:
    from covey.plans.manifest import Manifest
    from covey.plans.plan import Plan

__all__ = ["command"]

_PLAN = click.argument("plan", type=file_path, metavar="PLAN")


@click.group("plan")
def command() -> None:
    """Build, inspect, check and compare plans: all that a device executes."""


@command.command()
@recipe_argument
@click.option("-o", "--out", required=True, type=file_path, metavar="FILE", help="Where the plan goes.")
@click.option("--checkpoint", type=file_path, metavar="FILE", help="Where the first parameters go.")
@click.option(
    "--sign-with", type=file_path, metavar="KEY", help="The owner's private key; FILE.sig gets the signature."
)
@click.option("--population", metavar="P", help="With --sign-with: the population that may execute the plan.")
@click.option("--min-cohort", type=int, default=100, show_default=True, help="The fewest devices in a sum.")
@click.option(
    "--secure", is_flag=True, help="For secure aggregation, in groups of the size of --cohort and its spares."
)
@active_option
@authority_key_option
@click.option("--n-max", type=int, default=10_000, show_default=True, help="The most devices selected for a sum.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first parameters.")
@privacy_option
@click.option("--rounds", type=int, default=0, metavar="R", help="With --privacy: how many rounds are planned.")
@devices_option
@training_options
def build(
    recipe: str,
    out: Path,
    checkpoint: Path | None,
    sign_with: Path | None,
    population: str | None,
    min_cohort: int,
    secure: bool,
    active: bool,
    authority_key: Path | None,
    n_max: int,
    seed: int,
    privacy: str | None,
    rounds: int,
    devices: int | None,
    **training: Any,
) -> None:
    """Trace a recipe's task, lower it to ONNX, check every graph against JAX, and write the plan.

    Without --secure it is a plan for plain mode: devices refuse it unless their owner accepts that updates travel
    unmasked.
    """
    from covey.cli.init import secure_terms
    from covey.plans.manifest import PrivacyTerms
    from covey.privacy.spec import is_noised
    from covey.recipes.prepare import prepare
    from covey.recipes.recipe import load_recipe

    sign, authority = _signing(sign_with, population), authority_named(active, authority_key, plain=not secure)
    found = load_recipe(recipe)
    settings = settings_from(found, training)
    status = StatusLine()
    dataset = found.data(settings, seed)
    terms = (
        secure_terms(min_cohort, settings, authority) if secure else PrivacyTerms(min_cohort=min_cohort, n_max=n_max)
    )
    prepared = prepare(
        found, recipe, settings, terms, dataset, seed=seed, noised=is_noised(privacy),
        on_build=lambda: status.show("tracing, lowering and checking against JAX ..."),
    )  # fmt: skip
    status.clear()
    if privacy is not None:
        prepared = promised(prepared, privacy, settings.cohort, rounds, devices)
    write_file(out, prepared.plan_bytes)
    if checkpoint is not None:
        write_file(checkpoint, prepared.checkpoint)
    mode = prepared.plan.manifest.privacy.mode
    click.echo(f"{out}: {bytes_text(len(prepared.plan_bytes))}, mode {mode}, sha256 {prepared.plan.hash}")
    sign(out, prepared.plan.hash)


@command.command()
@_PLAN
@click.option("-o", "--out", required=True, type=file_path, metavar="FILE", help="Where the evaluation plan goes.")
@click.option("--compares", default="loss", show_default=True, metavar="METRIC", help="By what models are compared.")
@click.option(
    "--against",
    type=click.Choice(["release", "personal"]),
    default="release",
    show_default=True,
    help="The second model: one that the server broadcasts, or the tuned one of each device that uses one.",
)
@click.option(
    "--sign-with", type=file_path, metavar="KEY", help="The owner's private key; FILE.sig gets the signature."
)
@click.option("--population", metavar="P", help="With --sign-with: the population that may execute the plan.")
def evaluation(
    plan: Path, out: Path, compares: str, against: str, sign_with: Path | None, population: str | None
) -> None:
    """Make the plan that evaluates a training plan's checkpoints on the devices' held-out examples."""
    from covey.plans.evaluation import evaluation_plan
    from covey.plans.manifest import PERSONAL
    from covey.types.tensors import sha256_hex

    sign = _signing(sign_with, population)
    data = evaluation_plan(_open(plan), compares=compares, against=PERSONAL if against == PERSONAL else "")
    write_file(out, data)
    click.echo(f"{out}: {bytes_text(len(data))}, compares {compares}, sha256 {sha256_hex(data)}")
    sign(out, sha256_hex(data))


@command.command()
@_PLAN
def inspect(plan: Path) -> None:
    """Show what a plan holds and what it would have a device do."""
    from covey.plans.lint import lint_plan

    opened = _open(plan)
    click.echo(f"{plan}: {bytes_text(opened.num_bytes)}, sha256 {opened.hash}")
    print_table([(k, v) for k, v in _facts(opened.manifest).items()])
    click.echo("graphs:")
    print_table(
        [("graph", "bytes", "nodes", "operators")]
        + [
            (name, f"{len(opened.graphs[name]):,}", f"{sum(summary.ops.values()):,}", " ".join(sorted(summary.ops)))
            for name, summary in lint_plan(opened).items()
        ],
        right=(1, 2),
    )


@command.command()
@_PLAN
@click.option("--owner-key", type=file_path, metavar="FILE", help="Check the signature by this public key.")
@click.option("--population", metavar="P", help="With --owner-key: for this population.")
@click.option("--signature", type=file_path, metavar="FILE", help="With --owner-key; PLAN.sig unless told.")
def check(plan: Path, owner_key: Path | None, population: str | None, signature: Path | None) -> None:
    """Check a plan as a device does: canonical bytes, schema, operators, sums that cannot overflow, signature."""
    from covey.compression.checkpoint import download_num_bytes
    from covey.compression.codec import codec_for
    from covey.plans.lint import lint_plan
    from covey.plans.signing import load_public_key, verify_plan
    from covey.types.errors import PlanSignatureError, UsageError

    if (owner_key is None) != (population is None):
        raise UsageError("--owner-key and --population", expected="both or neither", got="one")
    opened = _open(plan)
    lint_plan(opened)
    terms = opened.manifest.privacy
    for index, phase in enumerate(opened.manifest.phases):
        opened.manifest.layout(index)
        for segment in phase.segments:
            codec_for(segment.codec, terms.mode, terms.most_in_sum, noised=terms.noise is not None)
    download_num_bytes(opened.manifest.download, opened.manifest.params)
    click.echo(f"{plan}: canonical, schema {opened.manifest.schema}, {len(opened.graphs)} graphs of allowed operators")
    if owner_key is None or population is None:
        click.echo("signature: not checked (give --owner-key and --population)")
        return
    key = load_public_key(read_file(owner_key, "--owner-key"), f"--owner-key {owner_key}")
    text = read_file(signature or plan.with_name(plan.name + ".sig"), "--signature")
    try:
        raw = bytes.fromhex(text.decode("ascii").strip())
    except ValueError as e:
        raise PlanSignatureError("--signature", expected="a signature in hex", got="something else") from e
    verify_plan(key, population, opened.hash, raw)
    click.echo(f"signature: good, for population {population!r}")


@command.command()
@click.argument("before", type=file_path)
@click.argument("after", type=file_path)
def diff(before: Path, after: Path) -> int:
    """Show what differs between two plans; exit with 1 if anything does."""
    import msgspec

    old, new = _open(before), _open(after)
    if old.hash == new.hash:
        click.echo("identical")
        return 0
    rows = [
        (path, str(a), str(b))
        for path, a, b in _differences("", msgspec.to_builtins(old.manifest), msgspec.to_builtins(new.manifest))
    ]
    print_table([("what", str(before), str(after)), *rows])
    return 1


def _signing(key_file: Path | None, population: str | None) -> Callable[[Path, str], None]:
    """Return what writes a plan's signature beside it; it does nothing where nothing shall be signed."""
    from covey.plans.signing import load_private_key, sign_plan
    from covey.types.errors import UsageError

    if key_file is None or population is None:
        if key_file is not None or population is not None:
            raise UsageError("--sign-with and --population", expected="both or neither", got="one")
        return lambda out, digest: None
    key = load_private_key(read_file(key_file, "--sign-with"), f"--sign-with {key_file}")

    def sign(out: Path, digest: str) -> None:
        signature = out.with_name(out.name + ".sig")
        write_file(signature, sign_plan(key, population, digest).hex().encode())
        click.echo(f"{signature}: signed for population {population!r}")

    return sign


def _open(path: Path) -> "Plan":
    from covey.plans.plan import unpack_plan

    return unpack_plan(read_file(path, "plan"))


def _facts(m: "Manifest") -> dict[str, str]:
    from covey.compression.checkpoint import download_num_bytes

    terms, query = m.privacy, m.examples.query
    facts = {
        "task": m.task,
        "algorithm": f"{m.algorithm.name} {m.algorithm.settings or ''}".strip(),
        "parameters": f"{sum(t.size for t in m.params):,} in {len(m.params)} tensors",
        "examples": f"collection {query.collection!r}, split {query.split!r}, {m.min_examples} to {m.max_examples}",
    }
    for f in m.examples.fields:
        facts[f"  {f.name}"] = f"{f.role}, {f.dtype} {list(f.shape)}: {f.source}"
    for p in m.phases:
        facts[f"phase {p.name}"] = (
            f"batches of {p.batch_size}, {p.epochs} epoch(s), at most {p.max_steps} steps, {p.chunk_steps} in a chunk"
        )
        if p.compares:
            which = "the model with the device's own tuned one" if p.against else "two models"
            facts["  compares"] = f"{which} by their {p.compares}, and sends metric sums alone"
        for s in p.segments:
            facts[f"  sends {s.name}"] = f"{s.length:,} values by {s.codec}, changes up to {s.max_delta:g}"
    if m.download:
        facts["downloads"] = f"checkpoints by {m.download}, {bytes_text(download_num_bytes(m.download, m.params))}"
    for h in m.hyper:
        facts[f"per round {h.name}"] = f"{h.default:g} ({h.low:g} to {h.high:g})"
    facts["metrics"] = ", ".join(m.metrics)
    facts["privacy"] = (
        f"mode {terms.mode}, at least {terms.min_cohort} and at most {terms.n_max} devices, weight up to "
        f"{terms.max_weight}"
    )
    if (secure := terms.secure) is not None:
        facts["sums"] = (
            f"of groups of up to {secure.group_size} devices, opened over at least {terms.min_cohort} or not at all; "
            f"up to {secure.adversary:.0%} may collude with the server and {secure.dropout:.0%} drop out; "
            f"integers modulo 2^{'/2^'.join(sorted({str(s.ring_bits) for s in m.layout(0)[1:]}))}"
        )
        facts["server"] = (
            f"sums hold against a server that lies; devices certified by {secure.authority[:12]}…"
            if secure.is_active
            else "assumed to follow the protocol, and to be curious"
        )
    if terms.noise is not None:
        n = terms.noise
        facts["noise"] = (
            f"{n.kind}, sigma {n.noise_multiplier:g} x clip, delta {n.delta:.2g}, {n.num_rounds} rounds planned, "
            f"budget {'none' if n.budget is None else f'epsilon {n.budget:g}'}"
        )
    facts["budget"] = f"{bytes_text(m.budget.memory_bytes)}, {m.budget.time_s:g} s"
    wanted = [n for n in ("idle", "charging", "unmetered") if getattr(m.eligibility, n)]
    facts["when"] = ", ".join(wanted) or "always"
    facts["built with"] = ", ".join(f"{k} {v}" for k, v in sorted(m.built_with.items()))
    return facts


def _differences(path: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for key in sorted({*a, *b}):
            out += _differences(f"{path}.{key}" if path else key, a.get(key, "-"), b.get(key, "-"))
        return out
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _differences(f"{path}[{i}]", x, y)]
    return [] if a == b else [(path, a, b)]
