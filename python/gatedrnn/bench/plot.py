"""The picture of the ratios: a dot for each peer at each shape."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatedrnn.bench.report import Row

_COLORS = {
    "PyTorch": "#D55E00",
    "ONNX Runtime": "#0072B2",
    "OpenVINO": "#009E73",
}  # apart for the colour-blind too
_OTHER_COLORS = ("#CC79A7", "#56B4E9", "#E69F00")
_INK, _MUTED, _GRID, _BAND = "#1f2430", "#6b7280", "#d9dce3", "#f4f5f8"
_TOP, _BOTTOM = 0.8, 0.4  # inches for title and legend, and for the explanation
_EXPLANATION = (
    "time of the other library / time of gatedrnn: right of 1x gatedrnn is faster;"
    " full dot and number: the fastest peer of the shape"
)


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """A PNG: a line per shape, a dot per peer at its ratio (logarithmic axis), a panel per set and cell."""
    importlib.import_module("matplotlib").use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row.skipped and row.fastest():
            panels.setdefault((row.set, row.shape.cell), []).append(row)
    if not panels:
        return
    columns = min(len(panels), 3)
    depth = -(-len(panels) // columns)
    tallest = max(len(group) for group in panels.values())
    height = depth * (0.27 * tallest + 0.62) + _TOP + _BOTTOM
    figure, axes = plt.subplots(
        depth,
        columns,
        figsize=(4.4 * columns + 1.2, height),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    middle = (0, _BOTTOM / height, 1, 1 - (_TOP + _BOTTOM) / height)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06, rect=middle)
    colors = _colors(rows)
    several_sets = len({name for name, _ in panels}) > 1
    for axis, ((set_name, cell), group) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, group, colors)
        name = cell.replace("GRU_BEFORE", "GRU, reset before the product").replace("RNN_RELU", "RNN, ReLU")
        axis.set_title(
            f"{name} ({set_name})" if several_sets else name,
            loc="left",
            color=_INK,
            weight="bold",
            fontsize=11,
        )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    _finish(figure, axes, colors, title)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


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
        axis.plot([1, fastest.ratio], [height, height], color=colors[fastest.name], linewidth=2.2, zorder=2)
        for entry in row.entries[1:]:
            if entry.ratio is not None:
                first = entry is fastest
                axis.scatter(
                    [entry.ratio],
                    [height],
                    s=46 if first else 26,
                    color=colors[entry.name] if first else "white",
                    edgecolors=colors[entry.name],
                    linewidths=1.4,
                    zorder=4 if first else 3,
                )
        axis.annotate(
            f"{fastest.ratio:.1f}x" if fastest.ratio >= 1.05 else f"{fastest.ratio:.2f}x",
            (1.0, height),
            xytext=(6, 0),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=8,
            weight="bold",
            color=colors[fastest.name],
            annotation_clip=False,
        )
    axis.set_yticks(range(len(group)), _sizes(group), fontsize=8, color=_INK)
    axis.set_ylim(len(group) - 0.5, -0.5)
    axis.axvline(1, color=_INK, linewidth=1.2, zorder=1.5)
    axis.set_xscale("log")
    axis.grid(axis="x", which="major", color=_GRID, linewidth=0.7, zorder=1)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _sizes(group: Sequence[Row]) -> list[str]:
    shapes = [row.shape for row in group]
    steps = [f"{shape.T}" if shape.shortest is None else f"{shape.shortest}..{shape.T}" for shape in shapes]
    columns = [[f"{shape.H}" for shape in shapes], [f"{shape.B}" for shape in shapes], steps]
    for column in columns:
        width = max(map(len, column))
        column[:] = [
            text.rjust(width, "\u2007") for text in column
        ]  # as wide as a digit: numbers stand in columns
    return [f"H {hidden}   B {rows}   T {count}" for hidden, rows, count in zip(*columns, strict=True)]


def _finish(figure: Any, axes: Any, colors: Mapping[str, str], title: str) -> None:
    axis = axes.flat[0]
    low, high = axis.get_xlim()
    low, high = min(low, 0.85), max(high, 2.2)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200) if low <= tick <= high]
    if high / low > 60:
        ticks = [tick for tick in ticks if tick != 3]
    for each in axes.flat:
        each.set_xlim(low, high)
        each.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8, color=_MUTED)
        each.minorticks_off()
        each.tick_params(labelbottom=True)
    line2d = importlib.import_module("matplotlib.lines").Line2D
    handles = [
        line2d([], [], marker="o", linestyle="", markersize=6.5, color=color, label=name)
        for name, color in colors.items()
    ]
    height = figure.get_size_inches()[1]
    figure.text(0.012, 1 - 0.27 / height, title, va="center", fontsize=12.5, weight="bold", color=_INK)
    figure.text(0.012, 0.2 / height, _EXPLANATION, va="center", fontsize=8.5, color=_MUTED)
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0.002, 1 - 0.6 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9.5,
        labelcolor=_INK,
        handletextpad=0.1,
    )
