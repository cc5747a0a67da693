"""A session that is killed at every step, and started again: run as a script by test_killed.py, needs no JAX.

``python kill_everywhere.py FOLDER`` finds the plan, the checkpoint, the owner's key and signature in FOLDER. It counts
the steps of an undisturbed session (every request, every chunk of a download or of training, and every sync of a file,
before and after), then forks for each step a device that kills itself there, and one that starts again in the
same home. What every device ends up with is printed as one JSON object a line.
"""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.pace import Pace
from covey.device.policy import OwnerPolicy
from covey.device.trainer import OnnxTrainer
from covey.wire.messages import Abandoned, Assignment, BlobRef, Enrolled, Reported

FOLDER = Path(sys.argv[1])
PACE = Pace(first_s=0.001, most_s=0.002, jitter=0.0)


class Steps:
    """Counts steps; at the one that was chosen the process is gone, as by a power cut."""

    def __init__(self, kill_at=0):
        self.count, self.kill_at = 0, kill_at

    def step(self):
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def stepped(*args):
            self.step()
            result = function(*args)
            self.step()
            return result

        return stepped


class Server:
    """Notes every upload in a file that outlives the device."""

    def __init__(self, folder, steps):
        self.steps, self.uploads = steps, folder / "uploads"
        self.blobs = {}
        for name in ("plan", "checkpoint"):
            data = (FOLDER / name).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            self.blobs[digest] = data
            setattr(self, name, BlobRef(sha256=digest, num_bytes=len(data), path=f"/{digest}"))

    def enroll(self, message):
        return Enrolled(credential="c", expires_in_s=1e6)

    def check_in(self, message, credential):
        return Assignment(
            session=os.urandom(8).hex(),
            round=1,
            phase=0,
            plan=self.plan,
            signature=(FOLDER / "signature").read_text(),
            checkpoint=self.checkpoint,
            report_within_s=60.0,
        )

    def fetch(self, ref, credential, start=0):
        data = self.blobs[ref.sha256]
        for at in range(start, len(data), len(data) // 3 + 1):
            self.steps.step()
            yield data[at : at + len(data) // 3 + 1]

    def report(self, session, body, credential):
        with self.uploads.open("a") as file:
            print(session, hashlib.sha256(body).hexdigest(), file=file, flush=True)
        self.steps.step()  # it has arrived; the answer has not
        return Reported(counted=True, retry_after_s=0.0)

    def abandon(self, session, message, credential):
        return Abandoned(retry_after_s=0.0)

    def abort(self):
        pass

    close = abort


class Stepping:
    """Wraps a server so that every request is a step before and after."""

    def __init__(self, server, steps):
        for name in ("enroll", "check_in", "report", "abandon"):
            setattr(self, name, steps.around(getattr(server, name)))
        self.fetch, self.abort, self.close = server.fetch, server.abort, server.close


def device(folder, kill_at=0):
    """Take part once; return how many steps that were."""
    steps = Steps(kill_at)
    os.fsync = steps.around(os.fsync)
    trainer = OnnxTrainer()
    run = trainer.run

    def stepped(job, examples, should_stop):
        return run(job, examples, lambda: steps.step() or should_stop())

    trainer.run = stepped
    key = Ed25519PublicKey.from_public_bytes((FOLDER / "key").read_bytes())
    policy = OwnerPolicy(key, "tests", accept_plain=True, min_cohort=2)
    with DeviceHome(folder / "home") as home:
        transport = Stepping(Server(folder, steps), steps)
        DeviceAgent(home, "https://server", policy, transport=transport, trainer=trainer, pace=PACE).run(once=True)
    return steps.count


def forked(work, *args):
    """Do it in a process of its own; return what it wrote and how it ended."""
    source, sink = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(source)
        try:
            os.write(sink, json.dumps(work(*args)).encode())
            os._exit(0)
        except BaseException as e:
            os.write(sink, json.dumps(repr(e)).encode())
            os._exit(1)
    os.close(sink)
    with os.fdopen(source, "rb") as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else None, os.waitstatus_to_exitcode(status)


def state(folder):
    """Return what a device ended up with."""
    with DeviceHome(folder / "home") as home:
        examples = home.examples.count("points")
        left = sorted(p.name for p in (folder / "home" / "blobs").iterdir())
    database = sqlite3.connect(folder / "home" / "examples.db")
    intact = database.execute("PRAGMA integrity_check").fetchall()
    database.close()
    ledger = Ledger.of_home(folder / "home")
    ledger.verify()
    return {
        "examples": examples,
        "intact": intact == [("ok",)],
        "blobs": left,
        "uploads": [line.split() for line in (folder / "uploads").read_text().splitlines()],
        "entries": [[e.kind, e.session, e.body_sha256, e.reason] for e in ledger.entries()],
    }


def fresh(number):
    folder = FOLDER / f"run-{number}"
    shutil.copytree(FOLDER / "filled", folder / "home")
    return folder


def main():
    undisturbed = fresh(0)
    count, code = forked(device, undisturbed)
    assert code == 0, count
    for number in range(1, count + 1):
        folder = fresh(number)
        killed, code = forked(device, folder, number)
        assert code == -signal.SIGKILL, (number, code, killed)
        again, code = forked(device, folder)
        assert code == 0, again
        found, code = forked(state, folder)
        assert code == 0, found
        print(json.dumps({"step": number, "of": count, **found}))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
