"""A keyboard for the terminal that learns from what is typed on it, together with others, and sends none of it.

    python examples/terminal_keyboard.py --server https://HOST:PORT --owner-key owner.pub --ca ca.pem --home DIR

Type; the grey text is a suggestion, Tab takes it, Enter stores the line as examples, Ctrl-D ends. In a pipe it answers
each line with its suggestions instead. Training happens while the device is idle, charging and on an unmetered network;
`covey device ledger --home DIR` shows what left.
"""

import argparse
import os
import sys
from pathlib import Path

from covey.data.shakespeare import lines_as_windows
from covey.device.agent import AgentEvent
from covey.device.application import Application
from covey.device.policy import OwnerPolicy
from covey.plans.signing import load_public_key
from covey.recipes.keyboard import CONTEXT, EXAMPLES
from covey.recipes.typing import suggest

TAB, ENTER, BACKSPACE, END = "\t", ("\r", "\n"), ("\x7f", "\b"), ("\x03", "\x04", "")


def suggestions(app: Application, text: str) -> list[str]:
    """Return what may come next; nothing before the first release."""
    return suggest(app.model.predict, text) if app.model.version else []


def store(app: Application, line: str) -> None:
    """Keep a line as examples: each character, and the eight before it."""
    if line.strip():
        app.examples.add_many("typed", lines_as_windows([line], CONTEXT), EXAMPLES)


def in_a_pipe(app: Application) -> None:
    """Answer each line with its suggestions, and store it."""
    for line in sys.stdin:
        text = line.rstrip("\n")
        print(" | ".join(suggestions(app, text)) or "-", flush=True)
        store(app, text)


def at_a_terminal(app: Application) -> None:
    """Show a suggestion behind the cursor while a person types."""
    import termios
    import tty

    before, line = termios.tcgetattr(0), ""
    try:
        tty.setraw(0)
        while True:
            found = suggestions(app, line)[:1]
            rest = found[0] if found else ""
            back = f"\x1b[{len(rest)}D" if rest else ""
            print(f"\r\x1b[K> {line}\x1b[2m{rest}\x1b[0m{back}", end="", flush=True)
            key = os.read(0, 4).decode(errors="ignore")
            if key in END:
                return
            if key in ENTER:
                store(app, line)
                print("\r\n", end="")
                line = ""
            elif key in BACKSPACE:
                line = line[:-1]
            elif key == TAB:
                line += f"{rest} " if rest else ""
            elif key.isprintable():
                line += key
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        print()


def main() -> None:
    """Run until Ctrl-D."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--server", "--owner-key", "--ca", "--home"):
        parser.add_argument(name, required=True)
    parser.add_argument("--population", default="keyboard")
    parser.add_argument("--min-cohort", type=int, default=100, help="the fewest devices in a sum")
    parser.add_argument("--verbose", action="store_true", help="tell on stderr what the device does")
    args = parser.parse_args()
    key = load_public_key(Path(args.owner_key).read_bytes(), args.owner_key)
    policy = OwnerPolicy(key, args.population, min_cohort=args.min_cohort)

    def tell(event: AgentEvent) -> None:
        if args.verbose:
            print(f"[{event.kind}] {event.text}", file=sys.stderr, flush=True)

    with Application(Path(args.home), args.server, policy, ca_file=Path(args.ca), on_event=tell) as app:
        app.examples.declare(EXAMPLES)
        (at_a_terminal if sys.stdin.isatty() else in_a_pipe)(app)


if __name__ == "__main__":
    main()
