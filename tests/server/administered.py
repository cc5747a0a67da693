"""A coordinator with an administrator, whose messages and answers are the test's."""

import dataclasses

from device import world

from covey.plans.evaluation import evaluation_plan
from covey.server.messages import ChangeTask, CreateTask
from covey.server.settings import TaskSettings, encode_settings
from covey.storage.interface import TaskRecord

from .rounds import BASE, P, Rounds


def record(name="second", kind="train", plan=None, rounds=BASE, checkpoint="", **schedule):
    def made(storage):
        data = world.plan_bytes() if plan is None else plan
        settings = encode_settings(TaskSettings(rounds, **schedule))
        return TaskRecord(P, name, kind, storage.put_blob(data), "5160", settings, "created", checkpoint=checkpoint)

    return made


def evaluation(name="measure", **fields):
    plain = dataclasses.replace(BASE, hyper={})
    return record(name, "evaluate", evaluation_plan(world.plan()), plain, **fields)


class Administered(Rounds):
    """Rounds with an administrator; answers are taken out of what is sent."""

    def ask(self, message, now_s=0.0):
        """Return the answer, and what else was sent."""
        out = self.send(message, now_s)
        (answer,) = [e.message.message for e in out if e.to == "device/ticket"]
        return answer, [e.message for e in out if e.to != "device/ticket"]

    def create(self, made, now_s=0.0):
        return self.ask(CreateTask("ticket", made(self.storage)), now_s)

    def change(self, action, name="train", now_s=0.0, number=0):
        return self.ask(ChangeTask("ticket", name, action, number), now_s)

    def stored(self, name="train"):
        return next(t for t in self.storage.tasks(P) if t.name == name)
