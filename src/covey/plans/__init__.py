"""Plans: the artifact a device executes, how it is packed, signed and checked, and how a task in JAX becomes one."""
