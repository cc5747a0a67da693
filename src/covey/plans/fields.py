"""What an example holds, and which of a device's examples a plan trains on."""

import msgspec

__all__ = ["ExampleSchema", "FieldSpec", "Query"]


class FieldSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One field of an example: name, shape and dtype without the batch dimension, and what fills it.

    ``role`` is ``input`` or ``label``; ``source`` says in words where the value comes from in the person's own
    interaction ("the next character typed"). Integers lie in ``[0, num_values)`` where that is given: a device refuses
    an example outside it, which would index past the end of a table.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    role: str = "input"
    source: str = ""
    num_values: int | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the device's examples a plan trains on. Data, never SQL: ``where`` is ``[[field, op, value], ...]``."""

    collection: str
    where: tuple[tuple[str, str, str | int | float | bool], ...] = ()
    order: str = "oldest"
    limit: int | None = None
    split: str = "train"


class ExampleSchema(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one example and the query that selects them."""

    fields: tuple[FieldSpec, ...]
    query: Query
