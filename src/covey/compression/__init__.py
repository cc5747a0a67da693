"""How the reals of a segment become bytes. What travels is ``len(encoded)``: sizes are measured, never estimated."""
