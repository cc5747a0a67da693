"""Differential privacy: clipping, exact noise, accounting, and the ledger of what a population has spent.

In the order in which a contribution flows: ``spec`` reads ``--privacy SPEC``, ``mechanism`` says what it means,
``clip`` and ``rounding`` bound one device's integers, ``randomness`` and ``sampler`` make the noise, the files named
after papers say what it protects, ``accounting`` adds that up, ``ledger`` spends it.

Nothing here reads a clock, a file or the operating system: sources of randomness are arguments. Only ``accounting``
needs the extra ``privacy`` (dp-accounting), and only when it is called: a device clips, rounds and adds noise without.
"""
