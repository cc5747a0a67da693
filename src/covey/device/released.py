"""The release that a device serves: fetched, verified from the owner's key down, kept, and served without a network.

::

    HOME/personal/<population>/newest          the newest version ever accepted: what is older is refused
    HOME/personal/<population>/release.json    that release; written last
    HOME/personal/<population>/<sha256>        its plan and its checkpoint, verified whenever they are read

``<population>`` is a hash of the name. A release that is forged, expired, for another population, older than one that
was accepted before, or of a plan that the owner did not sign is refused; the one before it goes on serving.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from covey.device.files import file_lock, folder_name, set_aside, storage_errors, written_whole
from covey.device.verified import Verified
from covey.plans.plan import MAX_PLAN_BYTES, Plan
from covey.plans.release import Release, decode_release, encode_release, verify_release
from covey.types.errors import BlobHashError, LayoutError, PlanError, PlanRefusedError, ReleaseRefusedError
from covey.types.tensors import Tensors, packed_num_bytes, sha256_hex
from covey.wire.messages import BlobRef

__all__ = ["ReleaseSource", "ReleaseStore", "Served"]


class ReleaseSource(Protocol):
    """What fetching a release needs of a server: :class:`covey.device.transport.HttpTransport` has it."""

    def release(self, population: str) -> bytes:
        """Return the newest release as JSON; nothing is verified here. Raises NotFoundError before the first."""
        ...

    def fetch(self, ref: BlobRef, credential: str) -> Iterator[bytes]:
        """Yield a blob's bytes as they arrive. Nothing is verified here."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A verified release: what it is, the plan whose graphs serve it, and the parameters."""

    release: Release
    plan: Plan
    params: Tensors


class ReleaseStore:
    """The releases of one population on this device. Several processes may use one."""

    def __init__(
        self,
        home: Path,
        owner_key: Ed25519PublicKey,
        population: str,
        *,
        max_memory_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
        verified: Verified | None = None,
    ) -> None:
        """Name the folder; it is made by the first release.

        Args:
            home: the device's state directory.
            owner_key: the key that the device pins.
            population: whose model.
            max_memory_bytes: the largest checkpoint, and the largest memory budget of a plan, that is accepted.
            clock: gives seconds since the Unix epoch.
            verified: plans that this process has already checked.
        """
        self.folder = home / "personal" / folder_name(population)
        self._owner_key, self._population = owner_key, population
        self._max_bytes, self._clock = max_memory_bytes, clock
        self._verified = verified or Verified()
        self._path = self.folder / "release.json"

    @property
    def is_wanted(self) -> bool:
        """Whether an application on this device serves this population's model."""
        return self.folder.is_dir()

    def want(self) -> None:
        """Say that an application serves this population's model: the device's agent fetches releases from now on."""
        with storage_errors("release"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def stamp(self) -> object:
        """Return what changes when another process stores a newer release; quick."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def load(self) -> Served | None:
        """Return the release that was accepted last; None if there is none.

        What does not verify any more (a damaged file) is moved aside, and there is none until the next refresh.

        Raises:
            StorageError: a file cannot be read.
        """
        try:
            with storage_errors("release"):
                release = decode_release(self._path.read_bytes()) if self._path.exists() else None
            if release is None:
                return None
            # It was in time when it was accepted. A device that is offline for months goes on serving it.
            in_time = min(self._clock(), release.delegation.expires_at - 1)
            self._verify(release, in_time, newest_seen=0)
            with storage_errors("release"):
                plan, params = (self._file(h).read_bytes() for h in (release.plan, release.checkpoint))
            return self._served(release, plan, params)
        except (ReleaseRefusedError, BlobHashError, PlanError, LayoutError):
            set_aside(self._path)
            return None

    def refresh(self, source: ReleaseSource) -> Served | None:
        """Fetch the newest release, verify it and keep it; return it, or None where it is the one that is here.

        Raises:
            NotFoundError: there is no release yet.
            ReleaseRefusedError: forged, expired, of another population, or older than one accepted before.
            PlanSignatureError: of a plan that the owner never signed; it is not even fetched.
            PlanError, BlobHashError: a plan or checkpoint that is not what the release names, or cannot be served.
            TransportError, StorageError: it did not arrive, or could not be kept; the one before goes on serving.
        """
        release = decode_release(source.release(self._population))
        self.want()
        with file_lock(self.folder / "lock"):
            before = self._kept()
            self._verify(release, self._clock(), newest_seen=max(self._floor(), before.version if before else 0))
            if before is not None and before.version == release.version:
                if (before.plan, before.checkpoint) != (release.plan, release.checkpoint):
                    raise ReleaseRefusedError(
                        "release", expected="one model for one version", got="another under a version that was seen"
                    )
                if self._has_files(release):
                    return None
            plan = self._fetch(source, "plans", release.plan, at_most=MAX_PLAN_BYTES)
            params = self._fetch(source, "checkpoints", release.checkpoint, at_most=release.num_bytes)
            served = self._served(release, plan, params)
            self._keep(release, plan, params)
        return served

    def _verify(self, release: Release, now_s: float, newest_seen: int) -> None:
        verify_release(self._owner_key, release, population=self._population, now_s=now_s, newest_seen=newest_seen)
        if not 0 < release.num_bytes <= self._max_bytes:
            raise ReleaseRefusedError(
                "release: num_bytes", expected=f"1 to {self._max_bytes}", got=str(release.num_bytes)
            )

    def _served(self, release: Release, plan_bytes: bytes, params_bytes: bytes) -> Served:
        """Check a release's files against it, and that this device can serve them."""
        ref = BlobRef(sha256=release.plan, num_bytes=len(plan_bytes), path="")
        plan = self._verified.plan(ref, plan_bytes)
        manifest = plan.manifest
        if packed_num_bytes(manifest.params) != release.num_bytes or len(params_bytes) != release.num_bytes:
            raise BlobHashError("release", expected=f"a checkpoint of {release.num_bytes} bytes", got="another size")
        if manifest.budget.memory_bytes > self._max_bytes:
            raise PlanRefusedError(
                "plan: budget.memory_bytes",
                expected=f"at most {self._max_bytes}",
                got=str(manifest.budget.memory_bytes),
            )
        if "predict" not in plan.graphs:
            raise PlanRefusedError("plan", expected="a graph 'predict'", got=", ".join(sorted(plan.graphs)))
        checkpoint = BlobRef(sha256=release.checkpoint, num_bytes=len(params_bytes), path="")
        return Served(release, plan, self._verified.tensors(checkpoint, manifest.params, params_bytes, "release"))

    def _kept(self) -> Release | None:
        """Return the release that was accepted last, if its record can be read."""
        try:
            with storage_errors("release"):
                return decode_release(self._path.read_bytes()) if self._path.exists() else None
        except ReleaseRefusedError:
            return None

    def _floor(self) -> int:
        """Return the newest version ever accepted: it outlives a damaged record."""
        try:
            return int((self.folder / "newest").read_text())
        except (OSError, ValueError):
            return 0

    def _has_files(self, release: Release) -> bool:
        return all(
            self._file(h).is_file() and sha256_hex(self._file(h).read_bytes()) == h
            for h in (release.plan, release.checkpoint)
        )

    def _keep(self, release: Release, plan: bytes, params: bytes) -> None:
        files = {
            self._file(release.plan): plan,
            self._file(release.checkpoint): params,
            self.folder / "newest": str(release.version).encode(),
            self._path: encode_release(release),  # last: until then the one before is served
        }
        with storage_errors("release"):
            for path, data in files.items():
                with written_whole(path) as file:
                    file.write(data)
            for path in self.folder.iterdir():
                if len(path.name) == 64 and path.name not in (release.plan, release.checkpoint):
                    path.unlink(missing_ok=True)

    def _file(self, sha256: str) -> Path:
        return self.folder / sha256

    def _fetch(self, source: ReleaseSource, kind: str, sha256: str, *, at_most: int) -> bytes:
        """Return a blob: from the folder if it is there, else from the server."""
        with storage_errors("release"):
            if self._file(sha256).is_file() and sha256_hex(data := self._file(sha256).read_bytes()) == sha256:
                return data
        received = bytearray()
        for chunk in source.fetch(BlobRef(sha256=sha256, num_bytes=at_most, path=f"/v1/{kind}/{sha256}"), ""):
            received += chunk
            if len(received) > at_most:
                raise BlobHashError("release", expected=f"at most {at_most} bytes", got="more")
        if sha256_hex(received) != sha256:
            raise BlobHashError(
                "release", expected=f"sha256 {sha256[:12]}…", got="other bytes", hint="nothing was kept"
            )
        return bytes(received)
