"""The picture of the ratios: a dot for each peer at each shape."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatedrnn.bench.report import Row

_COLORS = {"PyTorch": "#D55E00", "ONNX Runtime": "#0072B2", "OpenVINO": "#009E73"}
_OTHER_COLORS = ("#CC79A7", "#56B4E9", "#E69F00")  # apart for the colour-blind too, as those above
_INK, _MUTED, _BAND = "#1f2430", "#6b7280", "#f4f5f8"
_STYLE = {
    "text.color": _INK,
    "font.size": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#d9dce3",
    "grid.linewidth": 0.7,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handletextpad": 0.1,
}
_NAMES = {"GRU_BEFORE": "GRU, reset before the product", "RNN_RELU": "RNN, ReLU"}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200)
_TOP, _BOTTOM = 0.8, 0.4  # inches for title and legend, and for the explanation
_EXPLANATION = (
    "time of the other library / time of gatedrnn: right of 1x gatedrnn is faster;"
    " full dot and number: the fastest peer of the shape"
)


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """A PNG: a line per shape, a dot per peer at its ratio (logarithmic axis), a panel per set and cell."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.skipped and row.fastest():
            panels.setdefault((row.set, row.shape.cell), []).append(row)
    if panels:
        importlib.import_module("matplotlib").use("Agg")
        plt = importlib.import_module("matplotlib.pyplot")
        with plt.rc_context(_STYLE):
            figure = _figure(plt, panels, _colors(rows), title)
            figure.savefig(path, dpi=160, facecolor="white")
            plt.close(figure)


def _figure(
    plt: Any, panels: Mapping[tuple[str, str], Sequence[Row]], colors: Mapping[str, str], title: str
) -> Any:
    columns = min(len(panels), 3)
    depth = -(-len(panels) // columns)
    tallest = max(len(group) for group in panels.values())
    height = depth * (0.27 * tallest + 0.62) + _TOP + _BOTTOM
    size = 4.4 * columns + 1.2, height
    figure, axes = plt.subplots(
        depth, columns, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    middle = (0, _BOTTOM / height, 1, 1 - (_TOP + _BOTTOM) / height)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06, rect=middle)
    several_sets = len({name for name, _ in panels}) > 1
    for axis, ((set_name, cell), group) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, group, colors)
        axis.set_title(_NAMES.get(cell, cell) + (f" ({set_name})" if several_sets else ""))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    _ratios(axes)
    figure.text(0.012, 1 - 0.27 / height, title, va="center", fontsize=12.5, weight="bold")
    figure.text(0.012, 0.2 / height, _EXPLANATION, va="center", fontsize=8.5, color=_MUTED)
    line2d = importlib.import_module("matplotlib.lines").Line2D
    dots = [line2d([], [], marker="o", linestyle="", color=colors[name], label=name) for name in colors]
    place = (0.002, 1 - 0.6 / height)
    figure.legend(handles=dots, loc="center left", bbox_to_anchor=place, ncols=len(dots))
    return figure


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    names = {entry.name: None for row in rows for entry in row.entries[1:] if entry.ratio is not None}
    spare = iter(_OTHER_COLORS * len(names))
    return {name: _COLORS.get(name) or next(spare) for name in names}


def _panel(axis: Any, group: Sequence[Row], colors: Mapping[str, str]) -> None:
    for height, row in enumerate(group):
        if height % 2 == 0:
            axis.axhspan(height - 0.5, height + 0.5, color=_BAND, zorder=0, linewidth=0)
        fastest = row.fastest()
        if fastest is None or fastest.ratio is None:
            continue
        color = colors[fastest.name]
        axis.plot([1, fastest.ratio], [height, height], color=color, linewidth=2.2, zorder=2)
        for entry in row.entries[1:]:
            if entry.ratio is not None:
                own, first = colors[entry.name], entry is fastest
                area, inside, order = (46, own, 4) if first else (26, "white", 3)
                dot = {"s": area, "color": inside, "zorder": order, "edgecolors": own, "linewidths": 1.4}
                axis.scatter([entry.ratio], [height], **dot)
        text = f"{fastest.ratio:.1f}x" if fastest.ratio >= 1.05 else f"{fastest.ratio:.2f}x"
        right = axis.get_yaxis_transform()
        axis.text(1.02, height, text, transform=right, va="center", weight="bold", color=color)
    axis.set_yticks(range(len(group)), _sizes(group))
    axis.set_ylim(len(group) - 0.5, -0.5)
    axis.axvline(1, color=_INK, linewidth=1.2, zorder=1.5)
    axis.set_xscale("log")


def _sizes(group: Sequence[Row]) -> list[str]:
    shapes = [row.shape for row in group]
    steps = [f"{shape.T}" if shape.shortest is None else f"{shape.shortest}..{shape.T}" for shape in shapes]
    columns = [[f"{shape.H}" for shape in shapes], [f"{shape.B}" for shape in shapes], steps]
    for column in columns:
        width = max(map(len, column))
        # With a blank as wide as a digit, so that numbers stand in columns.
        column[:] = [text.rjust(width, "\u2007") for text in column]
    return [f"H {hidden}   B {rows}   T {count}" for hidden, rows, count in zip(*columns, strict=True)]


def _ratios(axes: Any) -> None:
    """Give all panels the same axis of ratios."""
    low, high = axes.flat[0].get_xlim()
    low, high = min(low, 0.85), max(high, 2.2)
    ticks = [tick for tick in _TICKS if low <= tick <= high and not (tick == 3 and high / low > 60)]
    for axis in axes.flat:
        axis.set_xlim(low, high)
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.minorticks_off()
        axis.tick_params(labelbottom=True)
