"""A server in memory that holds releases, as the real one hands them out."""

from covey.plans.release import delegate, encode_release, sign_release
from covey.plans.signing import generate_owner_key, sign_plan
from covey.types.errors import NotFoundError
from covey.types.tensors import sha256_hex

from . import world

RELEASE_KEY = generate_owner_key()
EXPIRES_AT = 10_000


class ReleaseServer:
    """Holds blobs, and the newest release."""

    def __init__(self):
        self.blobs, self.release_bytes, self.num_fetches = {}, None, 0

    def publish(self, version, checkpoint, *, owner=world.OWNER, population=world.POPULATION, **fields):
        plan = fields.pop("plan_bytes", world.plan_bytes())
        self.blobs |= {sha256_hex(plan): plan, sha256_hex(checkpoint): checkpoint}
        delegation = delegate(owner, population, RELEASE_KEY.public_key(), fields.pop("expires_at", EXPIRES_AT))
        signature = sign_plan(world.OWNER, population, sha256_hex(plan)).hex()
        base = {"num_bytes": len(checkpoint), "created_at": 5, "plan": sha256_hex(plan), "plan_signature": signature}
        names = {"version": version, "checkpoint": sha256_hex(checkpoint)}
        release = sign_release(RELEASE_KEY, delegation, **{**base, **names, **fields})
        self.release_bytes = encode_release(release)
        return release

    def release(self, population):
        if self.release_bytes is None:
            raise NotFoundError("release", expected="one", got="none")
        return self.release_bytes

    def fetch(self, ref, credential):
        self.num_fetches += 1
        assert ref.path in (f"/v1/plans/{ref.sha256}", f"/v1/checkpoints/{ref.sha256}") and credential == ""
        data = self.blobs[ref.sha256]
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]
