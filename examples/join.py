"""An application that joins a federation: python join.py https://HOST:PORT owner.pub ca.pem HOME < what-was-typed."""

import sys
from pathlib import Path

from covey.data.shakespeare import lines_as_windows
from covey.device.application import Application
from covey.device.policy import OwnerPolicy
from covey.plans.signing import load_public_key
from covey.recipes.keyboard import CONTEXT, EXAMPLES
from covey.recipes.typing import suggest

server, owner, ca, home = sys.argv[1:5]
key = load_public_key(Path(owner).read_bytes(), owner)
policy = OwnerPolicy(key, population="keyboard", min_cohort=3)  # what this device's owner accepts

with Application(Path(home), server, policy, ca_file=Path(ca)) as app:  # trains when nobody minds, in its own thread
    for line in sys.stdin:  # what the person types stays here, and is what the device learns from
        app.examples.add_many("typed", lines_as_windows([line.rstrip("\n")], CONTEXT), EXAMPLES)
        if app.model.version:  # the newest release, or a personal model that is better: at once, and offline
            print(suggest(app.model.predict, line.rstrip("\n")))
