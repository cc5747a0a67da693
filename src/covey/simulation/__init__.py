"""The production path on a virtual clock: the same device session and server roles, in one process."""
