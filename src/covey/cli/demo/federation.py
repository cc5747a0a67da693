"""The demo's run: set up, watch the rounds, compare with models trained elsewhere, report."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path

import click

from covey.cli.demo.comparison import Comparison, compare
from covey.cli.demo.filling import NUM_GROUPS, Filling
from covey.cli.demo.fleet import Fleet
from covey.cli.device import fill_home
from covey.cli.init import write_population
from covey.cli.output import StatusLine, bytes_text, percent, print_table
from covey.data.dataset import Examples, pooled
from covey.device.evaluate import Evaluator
from covey.device.transport import HttpTransport
from covey.plans.plan import unpack_plan
from covey.recipes.recipe import Settings, load_recipe
from covey.simulation.report import RoundRow, RunReport, accuracy_and_loss, versions
from covey.types.errors import CoveyError, TransportError
from covey.types.rng import generator
from covey.types.tensors import sha256_hex, unpack_tensors
from covey.wire.messages import PopulationStatus, RoundSummary

__all__ = ["RECIPE", "Demo", "DemoReport"]

RECIPE = "keyboard"
_SAMPLE = 10_000
_POLL_S = 0.1
_STALLED_S = 60.0
_MIN_COHORT = 6


class DemoReport(RunReport, frozen=True, kw_only=True):
    """A run's report with the demo's end.

    Attributes:
        table: top-1 accuracies (fractions) on the held-out lines; see :class:`covey.cli.demo.comparison.Comparison`.
        first_round_s: from the command to the end of the first round.
        restarts: how many processes died and were started again.
    """

    table: dict[str, float]
    first_round_s: float
    restarts: int


class Demo:
    """One run. Use as a context manager: at its end no process is left."""

    def __init__(self, folder: Path, *, num_rounds: int, num_devices: int, secure: bool, quiet: bool) -> None:
        """Begin the clock.

        Args:
            folder: an empty directory; everything is kept in it.
            num_rounds: how many rounds to train.
            num_devices: how many roles take part.
            secure: whether updates are masked.
            quiet: print nothing on stdout.
        """
        self._started_s = time.monotonic()
        self._folder = folder
        self._num_rounds = num_rounds
        self._num_devices = num_devices
        self._secure = secure
        self._say: Callable[[str], None] = (lambda text: None) if quiet else click.echo
        self._quiet = quiet
        self._status = StatusLine()
        self._fleet = Fleet(folder)
        self._filling: Filling | None = None
        self._rows: list[RoundRow] = []
        self._first_round_s = 0.0

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *error: object) -> None:
        self._status.clear()
        if self._filling is not None:
            self._filling.stop()
        self._fleet.close()

    def run(self) -> DemoReport:
        """Do everything, and return what came of it.

        Raises:
            TransportError: a process does not start, or the rounds stand still.
        """
        self._set_up()
        self._start_server()
        self._start_devices()
        self._watch()
        self.params = unpack_tensors(self.plan.manifest.params, self._newest())
        self._fleet.look_after()
        restarts = self._fleet.restarts
        self._fleet.close()
        comparison = self._compare()
        self._print_table(comparison)
        return DemoReport(
            recipe=RECIPE,
            algorithm=self._settings.algorithm,
            seed=0,
            mode=self.plan.manifest.privacy.mode,
            settings=dataclasses.asdict(self._settings),
            versions=versions(),
            plan=self.plan.hash,
            checkpoint=sha256_hex(self._checkpoint),
            rounds=self._rows,
            target=None,
            target_round=None,
            client_steps=sum(self._fleet.steps.values()),
            seconds=time.monotonic() - self._started_s,
            bytes_up=sum(r.bytes_up for r in self._rows),
            bytes_down=sum(r.bytes_down for r in self._rows),
            table=comparison.table(),
            first_round_s=self._first_round_s,
            restarts=restarts,
        )

    def _set_up(self) -> None:
        recipe = load_recipe(RECIPE)
        self._settings: Settings = dataclasses.replace(recipe.settings, num_clients=self._num_devices)
        self._dataset = recipe.data(self._settings, 0)
        self._status.show("preparing the plan ...")
        write_population(
            self._folder,
            RECIPE,
            self._settings,
            population=RECIPE,
            min_cohort=_MIN_COHORT,
            secure=self._secure,
            host="localhost",
            port=0,
            max_rounds=self._num_rounds,
            report_timeout_s=15.0,
            step_timeout_s=4.0,
            candidate_every=0,  # two dozen devices in half a minute are no evidence
        )
        self._status.clear()
        self._server_dir = self._folder / "server"
        self._checkpoint = (self._server_dir / "checkpoint.bin").read_bytes()
        self.plan = unpack_plan((self._server_dir / "plan.covey").read_bytes())
        self.evaluator = Evaluator(self.plan)
        self._say(
            f"{self._num_devices} devices, one of Shakespeare's roles each; a model of "
            f"{sum(t.size for t in self.plan.manifest.params):,} parameters; plan {self.plan.hash[:12]}, signed"
        )

    def _start_server(self) -> None:
        self._status.show("starting the server ...")
        child = self._fleet.start("server", ["serve", "--dir", str(self._server_dir), "--stop-with-stdin"])
        line = self._fleet.wait_for(child, "serving ")
        match = re.search(r"https://\S+:(\d+)", line)
        assert match is not None, "a server says where it listens"
        self._url = match.group().rstrip(",")
        # A server that is started again must be found where it was.
        config = self._server_dir / "server.toml"
        config.write_text(config.read_text().replace("port = 0 ", f"port = {match.group(1)} "))
        self._ca = self._server_dir / "authority" / "ca.pem"
        self._transport = HttpTransport(self._url, self._ca)
        self._status.clear()
        self._say(f"server on {self._url} (TLS 1.3, an authority made for this run); mode {self._mode}")

    @property
    def _mode(self) -> str:
        privacy = self.plan.manifest.privacy
        if privacy.mode == "plain":
            return "plain: updates are folded on arrival and never stored, yet not masked"
        return f"secure: it can open the sum of at least {privacy.min_cohort} devices, and no update"

    def _start_devices(self) -> None:
        """Fill and start one process of devices after the other, in a thread: the first train while others are filled.

        The smallest come first, so that the first round begins early.
        """
        clients = sorted(self._dataset.client_ids, key=self._dataset.num_examples)
        self._homes = {f"device-{i + 1:02d}": client for i, client in enumerate(clients)}
        self._filling = Filling(list(self._homes), self._fill, self._launch)
        self._filling.start()
        self._say(f"{len(clients)} devices in {NUM_GROUPS} processes, each with a state directory of its own\n")
        self._say("round  selected  reported  lost  accuracy        up      down  seconds")

    def _fill(self, name: str) -> None:
        fill_home(
            self._folder / "devices" / name, self.plan.manifest.examples, self._dataset.train(self._homes[name]), {}
        )

    def _launch(self, number: int, names: list[str]) -> None:
        self._fleet.start(f"devices-{number}", self._device_args(names))

    def _device_args(self, names: list[str]) -> list[str]:
        homes = [part for n in names for part in ("--home", str(self._folder / "devices" / n))]
        owner = self._folder / "owner" / "owner.pub"
        where = ["--server", self._url, "--population", RECIPE, "--owner-key", str(owner), "--ca", str(self._ca)]
        plain = [] if self._secure else ["--accept-plain"]
        terms = [*plain, "--min-cohort", str(_MIN_COHORT), "--json", "--stop-with-stdin"]
        # These devices are played: whether the machine that plays them is idle or busy says nothing about them.
        played = ["--assume", "idle,charging,battery", "--priority", "normal"]
        return ["device", "run", *where, *terms, *played, *homes]

    def _watch(self) -> None:
        """Show rounds as they happen, and start again what died, until all rounds are done."""
        held_out = pooled([self._dataset.test(c) for c in self._dataset.client_ids])
        count = len(held_out["y"])
        rows = generator(0, "sample").permutation(count)[: min(_SAMPLE, count)]
        sample = {k: v[rows] for k, v in held_out.items()}
        self._held_out, seen, changed_s = held_out, 0, time.monotonic()
        while True:
            assert self._filling is not None
            self._filling.check()
            if not self._rows:
                self._status.bar("devices filled and started", self._filling.done, self._num_devices)
            for name in self._fleet.look_after():
                self._say(f"       ({name} died and was started again)")
            status = self._ask(seen)
            if status is not None and status.rounds:
                seen, changed_s = seen + len(status.rounds), time.monotonic()
                self._show(status, sample)
                if status.round >= self._num_rounds:
                    return
            elif time.monotonic() - changed_s > _STALLED_S:
                raise TransportError(
                    "rounds",
                    expected=f"one within {_STALLED_S:g} s",
                    got="none",
                    hint=f"the logs may say why; run with --dir to keep them ({self._folder})",
                )
            else:
                time.sleep(_POLL_S)

    def _ask(self, seen: int) -> PopulationStatus | None:
        try:
            return self._transport.status(RECIPE, after=seen)
        except TransportError:
            return None  # the server is being started again

    def _show(self, status: PopulationStatus, sample: Examples) -> None:
        """Print the new rounds; evaluate the newest checkpoint, whichever round it is of."""
        sums: dict[str, float] = {}
        try:
            self._checkpoint = b"".join(self._transport.fetch(status.checkpoint, ""))
            params = unpack_tensors(self.plan.manifest.params, self._checkpoint)
            sums = self.evaluator.evaluate(params, sample)
        except CoveyError:
            pass  # the server was killed meanwhile, or the checkpoint was replaced: the next one is evaluated
        self._status.clear()
        for summary in status.rounds:
            if summary.status == "committed":
                newest = summary.checkpoint == status.checkpoint.sha256
                self._add(summary, *(accuracy_and_loss(sums) if newest else (None, None)))
            else:
                self._say(f"{summary.round:5d}  abandoned: {summary.reason}")

    def _newest(self) -> bytes:
        """Return the last round's checkpoint, which may be newer than the one that was evaluated."""
        checkpoint = self._transport.status(RECIPE, after=1 << 30).checkpoint
        self._checkpoint = b"".join(self._transport.fetch(checkpoint, ""))
        return self._checkpoint

    def _add(self, summary: RoundSummary, accuracy: float | None, loss: float | None) -> None:
        if not self._rows:
            self._first_round_s = time.monotonic() - self._started_s
        row = RoundRow(
            round=summary.round,
            accuracy=accuracy,
            loss=loss,
            bytes_up=summary.bytes_up,
            bytes_down=summary.bytes_down,
            selected=summary.selected,
            reported=summary.reported,
            lost=summary.lost,
            seconds=summary.seconds,
        )
        self._rows.append(row)
        self._say(
            f"{row.round:5d}  {row.selected:8d}  {row.reported:8d}  {row.lost:4d}  {percent(accuracy):>8}  "
            f"{bytes_text(row.bytes_up):>8}  {bytes_text(row.bytes_down):>8}  {row.seconds:7.2f}"
        )

    def _compare(self) -> Comparison:
        steps = {client: self._fleet.steps[name] for name, client in self._homes.items()}
        federated = self.evaluator.evaluate(self.params, self._held_out)
        return compare(
            RECIPE,
            self._server_dir,
            steps,
            num_devices=self._num_devices,
            federated=accuracy_and_loss(federated)[0] or 0.0,
            held_out=self._held_out,
            train=[self._dataset.train(c) for c in self._dataset.client_ids],
            on_progress=lambda done, total: self._status.bar("training the models to compare with", done, total),
        )

    def _print_table(self, comparison: Comparison) -> None:
        self._status.clear()
        if self._quiet:
            return
        click.echo(
            f"\nRight next characters, of {len(self._held_out['y']):,} in the held-out lines of all "
            f"{self._num_devices} devices:"
        )
        print_table([(label, percent(value)) for label, value in comparison.rows()], right=(1,))
        click.echo(
            f"{sum(self._fleet.steps.values()):,} local steps; up "
            f"{bytes_text(sum(r.bytes_up for r in self._rows))}, down "
            f"{bytes_text(sum(r.bytes_down for r in self._rows))}; first round after {self._first_round_s:.1f} s, "
            f"all in {time.monotonic() - self._started_s:.0f} s"
        )
