"""The owner's page as HTML: pure functions from an overview to text. No script, nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources

from covey.device.consent import Overview
from covey.device.statement import SessionRecord, Totals, bytes_text, choices_text, time_text

__all__ = ["STYLE_HASH", "error_page", "render"]

_NUM_SESSIONS = 50

_STYLE = resources.files("covey.device").joinpath("page.css").read_text(encoding="utf-8")
STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""What the content security policy lets through: this style, and nothing else."""


def render(overview: Overview, *, csrf: str, now_s: float, notice: str = "") -> str:
    """Return the page.

    Args:
        overview: what there is to see. Every text in it is escaped: populations choose their own names.
        csrf: goes into every form.
        now_s: seconds since the Unix epoch.
        notice: what the last button did.
    """
    parts = [
        f"<p class='soft' role='status'>{escape(notice)}</p>" if notice else "",
        _problems(overview.problems),
        _state(overview, csrf, now_s),
        _populations(overview, csrf),
        _sessions(overview.sessions),
        _examples(overview),
        _acts(overview),
        _forget(overview, csrf),
    ]
    chain = overview.chain
    footer = (
        f"The ledger has {chain.num_entries} entries and its chain holds. Head: <code>{escape(chain.head)}</code>"
        if chain
        else "The chain of the ledger is broken."
    )
    return _document("".join(parts), footer)


def error_page(title: str, text: str) -> str:
    """Return a page that says what went wrong."""
    return _document(f"<section role='alert'><h2>{escape(title)}</h2><p>{escape(text)}</p></section>", "")


def _document(body: str, footer: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Covey: what this device does</title><style>{_STYLE}</style></head><body>"
        "<header><h1>What this device does</h1>"
        "<p class='soft'>It may learn from your examples while you do not need it. The examples stay here; what left "
        "is listed below. Only this computer can open this page.</p></header>"
        f"<main>{body}</main><footer>{footer}</footer></body></html>"
    )


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{escape(p)}</li>" for p in problems)
    return f"<section class='problems' role='alert'><h2>Something needs your attention</h2><ul>{items}</ul></section>"


def _state(overview: Overview, csrf: str, now_s: float) -> str:
    paused = overview.chosen is None or now_s < overview.chosen.paused_until_s
    text = choices_text(overview.chosen, now_s) if paused else "Training is allowed"
    buttons = (
        _button(csrf, "resume", "Resume", kind="main")
        if paused
        else _button(csrf, "pause", "Pause for 2 hours", for_s="7200") + _button(csrf, "pause", "Pause until I resume")
    )
    agent = "An agent is running." if overview.is_running else "No agent is running."
    facts = [
        ("examples here", f"{sum(c.num_examples for c in overview.collections):,}"),
        ("updates counted", f"{sum(t.num_counted for t in overview.totals):,}"),
        ("sent in all", bytes_text(sum(t.bytes_up for t in overview.totals))),
        ("received in all", bytes_text(sum(t.bytes_down for t in overview.totals))),
    ]
    listed = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts)
    text = escape(text[:1].upper() + text[1:])
    return (
        f"<section aria-label='State'><p class='state{' paused' if paused else ''}'>{text}</p>"
        f"<p class='soft'>{agent}</p><dl class='facts'>{listed}</dl><div class='actions'>{buttons}</div></section>"
    )


def _populations(overview: Overview, csrf: str) -> str:
    refused = overview.chosen.refused if overview.chosen else frozenset()
    known = {t.population: t for t in overview.totals}
    rows = []
    for name in dict.fromkeys([*overview.joined, *known, *sorted(refused)]):
        total = known.get(name, Totals(name))
        is_refused = name in refused
        button = (
            _button(csrf, "accept", "Accept again", population=name)
            if is_refused
            else _button(csrf, "refuse", "Refuse", kind="danger", population=name)
        )
        kind, word = ("bad", "refused") if is_refused else ("good", "joined" if name in overview.joined else "accepted")
        status = f"<span class='tag {kind}'>{word}</span>"
        rows.append(
            (
                f"<strong>{escape(name)}</strong><br>{status}",
                f"{total.num_counted} of {total.num_sessions}",
                bytes_text(total.bytes_down),
                bytes_text(total.bytes_up),
                button,
            )
        )
    heads = ("Population", "Updates counted", "Received", "Sent", "")
    return _section("Populations", _table("", heads, rows, numbers=(1, 2, 3)), "It has taken part in nothing yet.")


def _sessions(records: Sequence[SessionRecord]) -> str:
    rows = [_session_row(r) for r in reversed(records[-_NUM_SESSIONS:])]
    caption = f"The last {len(rows)} of {len(records)} sessions, newest first" if len(rows) < len(records) else ""
    heads = ("When", "For whom, and what was trained", "Examples", "Received", "Sent", "Protection and outcome")
    return _section("What left this device", _table(caption, heads, rows, numbers=(2, 3, 4)), "Nothing has left it.")


def _session_row(record: SessionRecord) -> tuple[str, ...]:
    e = record.entry
    name = f"{e.population}/{e.task}" if e.task else e.population
    outcome = "good" if e.kind == "counted" else "soft"
    return (
        _when(record.began_at_s),
        f"<strong>{escape(name)}</strong>, round {e.round}<br><span class='soft'>{escape(e.summary)}</span>",
        f"{e.num_examples:,}",
        bytes_text(e.bytes_down),
        bytes_text(record.bytes_up),
        f"{escape(record.protection)}<br><span class='{outcome}'>{escape(record.outcome)}</span>",
    )


def _examples(overview: Overview) -> str:
    rows = [
        (escape(c.name), f"{c.num_examples:,}", bytes_text(c.num_bytes), _when(c.oldest_at_s))
        for c in overview.collections
    ]
    sealed = "encrypted" if overview.is_encrypted else "not encrypted by Covey"
    caption = f"{bytes_text(overview.store_bytes)} on the disk, {sealed}"
    heads = ("Collection", "Examples", "Size", "Oldest")
    return _section("Examples on this device", _table(caption, heads, rows, numbers=(1, 2)), "There are none.")


def _acts(overview: Overview) -> str:
    rows = [(_when(a.at_s), escape(a.text), escape(a.detail)) for a in reversed(overview.acts[-_NUM_SESSIONS:])]
    return _section("What you decided", _table("", ("When", "What", "Of what"), rows), "Nothing yet.")


def _forget(overview: Overview, csrf: str) -> str:
    names = [*overview.joined, *(t.population for t in overview.totals)]
    choices = [("examples", "", "Delete all examples, and the models trained on them here")]
    choices += [("population", n, f"Delete what is here of {n}, and refuse it") for n in dict.fromkeys(names)]
    choices += [("everything", "", "Delete everything, and pause")]
    items = "".join(
        f"<details><summary>{escape(text)}</summary>"
        + _form(
            csrf,
            "forget",
            "<label><input type='checkbox' name='sure' value='yes' required> Yes, delete it for good</label>"
            "<button class='danger'>Delete</button>",
            what=what,
            population=name,
        )
        + "</details>"
        for what, name, text in choices
    )
    return (
        "<section><h2>Forget</h2><p class='soft'>What has left cannot be called back: sums hold it among the updates "
        f"of others. The ledger stays, because it is the record of exactly that.</p>{items}</section>"
    )


def _section(title: str, table: str, when_empty: str) -> str:
    inner = table or f"<p class='soft'>{when_empty}</p>"
    return f"<section aria-label='{title}'><h2>{title}</h2>{inner}</section>"


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table, or nothing if it has no rows. Each cell carries its column's name, for narrow screens."""
    if not rows:
        return ""
    kinds = [" class='number'" if i in numbers else "" for i in range(len(heads))]
    head = "".join(f"<th scope='col'{kind}>{name}</th>" for kind, name in zip(kinds, heads, strict=True))
    body = ""
    for row in rows:
        cells = zip(kinds, heads, row, strict=True)
        body += "<tr>" + "".join(f"<td{kind} data-name='{name}'>{cell}</td>" for kind, name, cell in cells) + "</tr>"
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _when(at_s: float) -> str:
    return f"<span class='when'>{time_text(at_s)}</span>"


def _button(csrf: str, act: str, text: str, *, kind: str = "", **fields: str) -> str:
    return _form(csrf, act, f"<button class='{kind}'>{escape(text)}</button>", **fields)


def _form(csrf: str, act: str, inner: str, **fields: str) -> str:
    hidden = "".join(
        f"<input type='hidden' name='{name}' value='{escape(value)}'>"
        for name, value in {"csrf": csrf, **fields}.items()
    )
    return f"<form method='post' action='{act}'>{hidden}{inner}</form>"
