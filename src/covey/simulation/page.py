"""A run, or several, as one self-contained HTML page: inline SVG, no script, nothing from the network."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from covey.simulation.comparison import ComparedRun
from covey.simulation.plots import Curve, curves, device_histogram, require_plots, time_bars, traffic_bars
from covey.simulation.report import RunReport, time_shares

__all__ = ["comparison_page", "require_plots", "run_page"]

_CSS = """
:root{color-scheme:light dark;--paper:#fbfbf9;--card:#fff;--ink:#1d2126;--muted:#5b6470;--grid:#d9dcdf;
--s0:#1f6fb2;--s1:#c4562f;--s2:#2b8a5a;--s3:#8a5aa8;--s4:#a07a00;--s5:#0f8a94;--s6:#b83a6b;--s7:#66707c}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--card:#1d2126;--ink:#e8eaed;--muted:#a3acb8;--grid:#3a4149;
--s0:#6cb2ee;--s1:#f0895f;--s2:#63c896;--s3:#c498e0;--s4:#dcb640;--s5:#58c6d0;--s6:#ef7fae;--s7:#a9b3bf}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1.2rem 3rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.05rem;margin:0 0 .6rem}
.sub{color:var(--muted);margin:0 0 1.4rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(125px,1fr));gap:.7rem;margin:0 0 1.2rem}
.fact,section{background:var(--card);border:1px solid var(--grid);border-radius:8px}
.fact{padding:.6rem .8rem}
.fact b{display:block;font-size:1.1rem;font-weight:600;white-space:nowrap;font-variant-numeric:tabular-nums}
.fact span{color:var(--muted);font-size:.85rem}
section{padding:1rem 1.1rem;margin:0 0 1.2rem;overflow-x:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:0 1.2rem}
svg{width:100%;height:auto;display:block}svg text{font-family:inherit!important}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{color:var(--muted);font-weight:500}td.n,th.n{text-align:right}
.note{color:var(--muted);font-size:.88rem;margin:.7rem 0 0}.warn{border-left:4px solid var(--s1)}
i.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.5em}
"""


_TIME = """Virtual time of all sessions, summed over devices. Waiting: from a device's report to the close of its round.
Lost: sessions that were not counted."""


def run_page(report: RunReport) -> str:
    """Return a run's page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    parts = [_facts(report)]
    if report.stopped:
        parts.append(f'<section class="warn"><h2>Stopped early</h2>{_text(report.stopped)}</section>')
    parts.append(f"<section>{curves([Curve.of(report.algorithm, report)], report.target)}</section>")
    pair = []
    if report.device_accuracy:
        note = f"{len(report.device_accuracy)} devices, on their own examples ({report.device_examples})."
        pair.append(_section("Accuracy from device to device", device_histogram(report.device_accuracy), note))
    if report.traffic:
        note = "Payloads of all sessions that were run; a plan is downloaded once, a checkpoint in every session."
        pair.append(_section("Where the bytes went", traffic_bars(report.traffic), note))
    if shares := time_shares(report.device_s):
        pair.append(_section("Where the devices' time went", time_bars({report.algorithm: shares}), _TIME))
    pair += [_pairs("Made with", _made(report)), _pairs("Settings", report.settings)]
    if report.options:
        pair.append(_pairs("Devices and rounds", report.options))
    if report.privacy is not None:
        lines = "".join(f"<li>{_text(line)}</li>" for line in report.privacy.assumptions)
        parts.append(_section("Privacy", f"<p>{_text(report.privacy.headline)}</p><ul>{lines}</ul>"))
    parts.append(f'<div class="pair">{"".join(pair)}</div>')
    subtitle = f"{report.algorithm}, seed {report.seed}, mode {report.mode}"
    return _page(f"{report.recipe}: a simulated federation", subtitle, parts)


def comparison_page(runs: Sequence[ComparedRun], reports: Sequence[RunReport], target: float | None) -> str:
    """Return one page with the curves of all runs and their table.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    picture = curves([Curve.of(run.name, r) for run, r in zip(runs, reports, strict=True)], target)
    held = "no common target" if target is None else f"target {100 * target:.3g} %"
    shares = {run.name: s for run in runs if (s := time_shares(run.device_s))}
    parts = [f"<section>{picture}</section>", _section("Side by side", _comparison_table(runs, target))]
    if shares:
        parts.append(_section("Where the devices' time went", time_bars(shares, width=11.0), _TIME))
    recipes = ", ".join(sorted({r.recipe for r in reports}))
    return _page(f"{recipes}: {len(runs)} runs", held, parts)


def _facts(report: RunReport) -> str:
    accuracies = [r.accuracy for r in report.rounds if r.accuracy is not None]
    facts = [
        (_percent(max(accuracies, default=None)), "best accuracy"),
        (str(len(report.rounds)), "rounds"),
        (_bytes(report.bytes_up), "up"),
        (_bytes(report.bytes_down), "down"),
        (_duration(report.rounds[-1].at_s if report.rounds else 0.0), "virtual time"),
        (f"{report.client_steps:,}", "local steps"),
    ]
    if report.target is not None:
        reached = "not reached" if report.target_round is None else f"round {report.target_round:.1f}"
        facts.append((reached, f"target {_percent(report.target)}"))
    cells = "".join(f'<div class="fact"><b>{_text(b)}</b><span>{_text(s)}</span></div>' for b, s in facts)
    return f'<div class="facts">{cells}</div>'


def _comparison_table(runs: Sequence[ComparedRun], target: float | None) -> str:
    differs = [k for k in (runs[0].differs if runs else {}) if k != "algorithm"]
    to = [] if target is None else ["rounds to target", "bytes to target", "time to target"]
    head = ["run", "algorithm", *differs, "best", "rounds", *to, "bytes"]
    rows = []
    for i, run in enumerate(runs):
        cells = [_percent(run.best_accuracy), str(run.rounds)]
        if target is not None:
            cells.append("-" if run.target_round is None else f"{run.target_round:.1f}")
            cells.append("-" if run.target_bytes is None else _bytes(run.target_bytes))
            cells.append("-" if run.target_s is None else _duration(run.target_s))
        cells.append(_bytes(run.bytes))
        key = f'<i class="key" style="background:var(--s{i % 8})"></i>'
        first = f"<td>{key}{_text(run.name)}</td><td>{_text(run.algorithm)}</td>"
        own = "".join(f"<td>{_text(run.differs[k])}</td>" for k in differs)
        rows.append(f"<tr>{first}{own}{''.join(f'<td class=n>{_text(c)}</td>' for c in cells)}</tr>")
    numeric = len(head) - 2 - len(differs)
    header = "".join(f"<th{' class=n' if i >= len(head) - numeric else ''}>{_text(h)}</th>" for i, h in enumerate(head))
    return f"<table><tr>{header}</tr>{''.join(rows)}</table>"


def _made(report: RunReport) -> dict[str, Any]:
    return {
        **report.versions,
        "seconds": f"{report.seconds:.1f}",
        "plan": report.plan[:16],
        "checkpoint": report.checkpoint[:16],
    }


def _pairs(title: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in values.items())
    return _section(title, f"<table>{rows}</table>")


def _section(title: str, content: str, note: str = "") -> str:
    after = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{content}{after}</section>"


def _page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    body = f'<main><h1>{_text(title)}</h1><p class="sub">{_text(subtitle)}</p>{"".join(parts)}</main>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{_CSS}</style></head><body>{body}</body></html>\n'


def _text(value: Any) -> str:
    return html.escape("-" if value is None else str(value))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _bytes(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _duration(seconds: float) -> str:
    for unit, scale in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.0f} s"
