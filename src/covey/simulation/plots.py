"""Figures of runs as inline SVG, drawn by matplotlib (the extra ``report``).

Colours are written as CSS variables, so that one figure serves a light and a dark page; text stays text.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.simulation.report import RunReport
from covey.types.errors import MissingExtraError

__all__ = ["Curve", "curves", "device_histogram", "require_plots", "time_bars", "traffic_bars"]

NUM_COLOURS = 8
"""So many series have colours of their own; further ones begin again, with dashes."""

# Stand-ins that nothing else in a figure uses; see _inline.
_INK, _MUTED, _GRID = "#000001", "#000002", "#000003"
_SERIES = tuple(f"#00010{i}" for i in range(NUM_COLOURS))
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    c: f"var(--s{i})" for i, c in enumerate(_SERIES)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's accuracy: where each evaluation stands on the three axes."""

    label: str
    rounds: Sequence[float]
    num_bytes: Sequence[float]
    at_s: Sequence[float]
    accuracy: Sequence[float]
    loss: Sequence[float]

    @classmethod
    def of(cls, label: str, report: RunReport) -> "Curve":
        """Return the curve of a run's evaluated rounds."""
        total, points = 0.0, list[tuple[float, ...]]()
        for row in report.rounds:
            total += row.bytes_up + row.bytes_down
            if row.loss is not None:
                accuracy = float("nan") if row.accuracy is None else row.accuracy
                points.append((row.round, total, row.at_s, accuracy, row.loss))
        rounds, num_bytes, at_s, accuracies, losses = ([p[i] for p in points] for i in range(5))
        return cls(label, rounds, num_bytes, at_s, accuracies, losses)


def require_plots() -> None:
    """Raise MissingExtraError unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingExtraError(
            "--report", expected="matplotlib", got="no such package", hint="pip install 'covey[report]'"
        ) from e


def curves(runs: Sequence[Curve], target: float | None = None) -> str:
    """Return accuracy against rounds, bytes and virtual time, and the loss against rounds, as one SVG."""
    with _styled() as make:
        figure = make(11.0, 6.2)
        axes = figure.subplots(2, 2)
        figure.get_layout_engine().set(hspace=0.08, wspace=0.06)
        byte_unit, byte_scale = _byte_unit(max((c.num_bytes[-1] for c in runs if c.num_bytes), default=1.0))
        time_unit, time_scale = _time_unit(max((c.at_s[-1] for c in runs if c.at_s), default=1.0))
        panels: tuple[tuple[str, str, Callable[[Curve], Sequence[float]], float], ...] = (
            ("Accuracy by round", "round", lambda c: c.rounds, 1.0),
            ("Accuracy by bytes moved", byte_unit, lambda c: c.num_bytes, byte_scale),
            ("Accuracy by virtual time", time_unit, lambda c: c.at_s, time_scale),
        )
        for axis, (title, unit, values, scale) in zip(axes.flat, panels, strict=False):
            axis.set_title(title)
            axis.set_xlabel(unit)
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            for i, c in enumerate(runs):
                axis.plot([v / scale for v in values(c)], c.accuracy, **_line(i, c.label, len(c.rounds)))
            if target is not None:
                axis.axhline(target, color=_MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
                where: Any = ("axes fraction", "data")  # on the right: the title is on the left
                axis.annotate("target", (0.99, target), xycoords=where, ha="right", va="bottom", color=_MUTED)
        last = axes.flat[3]
        last.set_title("Held-out loss by round")
        last.set_xlabel("round")
        for axis in (axes.flat[0], last):
            axis.xaxis.get_major_locator().set_params(integer=True)
        for i, c in enumerate(runs):
            last.plot(c.rounds, c.loss, **_line(i, c.label, len(c.rounds)))
        if len(runs) > 1:
            handles, labels = last.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(runs)))
        return _inline(figure, "curves")


def device_histogram(accuracies: Sequence[float]) -> str:
    """Return how many devices have which accuracy."""
    with _styled() as make:
        figure = make(5.4, 3.0)
        axis = figure.subplots()
        axis.hist(accuracies, bins=[i / 20 for i in range(21)], color=_SERIES[0], rwidth=0.92)
        axis.set_xlabel("accuracy on a device's own examples")
        axis.set_ylabel("devices")
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.yaxis.get_major_locator().set_params(integer=True)
        return _inline(figure, "devices")


def traffic_bars(traffic: Mapping[str, int]) -> str:
    """Return where the bytes went: a bar for each kind, the largest first."""
    kinds = sorted((k for k, n in traffic.items() if n), key=lambda k: traffic[k])
    unit, scale = _byte_unit(max((traffic[k] for k in kinds), default=1))
    with _styled({"axes.grid.axis": "x"}) as make:
        figure = make(5.4, 0.9 + 0.35 * max(1, len(kinds)))
        axis = figure.subplots()
        values = [traffic[k] / scale for k in kinds]
        colours = [_SERIES[0] if k.startswith("up") else _SERIES[1] for k in kinds]
        bars = axis.barh(kinds, values, color=colours, height=0.7)
        axis.bar_label(bars, labels=[f"{v:.3g}" for v in values], padding=4, color=_INK)
        axis.margins(x=0.12)
        axis.set_xlabel(unit)
        return _inline(figure, "traffic")


_SPENT = {
    "training": _SERIES[2],
    "download": _SERIES[1],
    "upload": _SERIES[0],
    "waiting": _SERIES[4],
    "lost": _SERIES[7],
}


def time_bars(shares: Mapping[str, Mapping[str, float]], width: float = 5.4) -> str:
    """Return where the devices' time went: for each run, by name, one bar of the shares of its kinds."""
    names = list(shares)[::-1]
    with _styled({"axes.grid.axis": "x"}) as make:
        figure = make(width, 1.1 + 0.3 * len(names))
        axis = figure.subplots()
        begin = [0.0] * len(names)
        for kind, colour in _SPENT.items():
            widths = [shares[n].get(kind, 0.0) for n in names]
            if any(widths):
                axis.barh(names, widths, left=begin, color=colour, height=0.7, label=kind)
                begin = [b + w for b, w in zip(begin, widths, strict=True)]
        axis.set_xlim(0.0, 1.0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        if len(names) == 1:
            axis.set_yticks([])
        figure.legend(loc="outside lower center", ncols=len(_SPENT), columnspacing=1.0, handlelength=1.0)
        return _inline(figure, "time")


class _styled:
    """Draw within Covey's style, and without touching the process's own settings of matplotlib."""

    def __init__(self, more: Mapping[str, Any] | None = None) -> None:
        import matplotlib

        style: Any = {**_STYLE, **(more or {})}
        self._context = matplotlib.rc_context(style)

    def __enter__(self) -> Any:
        from matplotlib.figure import Figure

        self._context.__enter__()
        return lambda width, height: Figure(figsize=(width, height), layout="constrained")

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _line(index: int, label: str, num_points: int) -> dict[str, Any]:
    style = "-" if index < NUM_COLOURS else "--"
    marker = "o" if num_points <= 12 else ""
    return {"color": _SERIES[index % NUM_COLOURS], "linestyle": style, "marker": marker, "ms": 4, "label": label}


def _inline(figure: Any, salt: str) -> str:
    """Return a figure as an SVG element whose colours are the page's."""
    import matplotlib

    out = io.StringIO()
    # A salt of its own for each figure: ids must differ within a page, and not from run to run.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text


def _byte_unit(largest: float) -> tuple[str, float]:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= scale:
            return unit, scale
    return "bytes", 1.0


def _time_unit(largest: float) -> tuple[str, float]:
    for unit, scale in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if largest >= 3 * scale:
            return unit, scale
    return "seconds", 1.0
