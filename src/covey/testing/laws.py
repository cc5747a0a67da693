"""How a check of a contract says that a law is broken."""

from collections.abc import Callable

__all__ = ["expect", "expect_error"]


def expect(holds: bool, law: str) -> None:
    """Raise AssertionError that names the law unless it holds."""
    if not holds:
        raise AssertionError(f"broken law: {law}")


def expect_error(kind: type[Exception], call: Callable[[], object], law: str) -> None:
    """Raise AssertionError that names the law unless the call raises ``kind``."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"broken law: {law}: expected {kind.__name__}")
