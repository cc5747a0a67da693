"""A device that is killed with -9 at a step of a secure session: URL CA HOME POPULATION OWNER_KEY STEP before|after."""

import os
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.policy import OwnerPolicy
from covey.device.transport import HttpTransport


class Dying(HttpTransport):
    def send_step(self, session, step, body, credential):
        if (step, "before") == (STEP, WHEN):
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().send_step(session, step, body, credential)
        if (step, "after") == (STEP, WHEN):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


URL, CA, HOME, POPULATION, KEY, STEP, WHEN = sys.argv[1:]
policy = OwnerPolicy(Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY)), POPULATION, min_cohort=3)
with DeviceHome(Path(HOME)) as home:
    agent = DeviceAgent(
        home, URL, policy, transport=Dying(URL, Path(CA)), pace=Pace(first_s=0.05, most_s=0.2, jitter=0.0)
    )
    agent.run(once=True)
