"""The device halves, in JAX: traced into a plan's graphs when it is built, never imported by a device or a server."""
