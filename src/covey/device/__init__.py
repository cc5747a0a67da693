"""The device: example store, trainer, session, transport and the agent that drives them."""
