"""How the reals of a segment become bytes. What travels is ``len(encoded)``: sizes are measured, never estimated.

One file for each paper's stage, :mod:`~covey.compression.spec` for the grammar that names them,
:mod:`~covey.compression.codec` for ``encode`` and ``decode``, :mod:`~covey.compression.secure` for what is summed under
a mask, :mod:`~covey.compression.ring` for how wide its ring must be.
"""
