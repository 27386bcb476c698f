"""What the benchmark found: a text table that grows row by row, a summary, JSON, and a plot."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatedrnn.bench.shapes import Shape

_LABEL_WIDTH = 30


@dataclass
class Entry:
    """How one contender did at a shape; `seconds` and `ratio` (to ours) are None where `problem` says why."""

    name: str
    seconds: float | None = None
    ratio: float | None = None
    rounds: list[float] = field(default_factory=list)
    note: str = ""
    problem: str = ""  # "", or a word or two for the table
    detail: str = ""  # the whole sentence
    is_peer: bool = True
    held: bool = True


@dataclass
class Row:
    """One shape. `entries[0]` is ours."""

    set: str
    shape: Shape
    limit_seconds: float
    entries: list[Entry] = field(default_factory=list)
    skipped: str = ""

    @property
    def ours(self) -> Entry:
        """Our own entry."""
        return self.entries[0]

    @property
    def share_of_limit(self) -> float | None:
        """Limit time / our time."""
        return (
            None if not self.entries or self.ours.seconds is None else self.limit_seconds / self.ours.seconds
        )

    def fastest(self) -> Entry | None:
        """The quickest peer that was timed (and that is held to the instruction set asked for)."""
        timed = [
            entry for entry in self.entries[1:] if entry.is_peer and entry.held and entry.ratio is not None
        ]
        return min(timed, key=lambda entry: entry.ratio or 0.0, default=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fastest = self.fastest()
        return {
            "set": self.set,
            "label": self.shape.label,
            "shape": asdict(self.shape),
            "limit_seconds": self.limit_seconds,
            "share_of_limit": self.share_of_limit,
            "fastest_peer": fastest.name if fastest else None,
            "fastest_ratio": fastest.ratio if fastest else None,
            "entries": [asdict(entry) for entry in self.entries],
            "skipped": self.skipped,
        }


# ----------------------------------------------------------------------------------------------------
def header(names: Sequence[str]) -> str:
    """The table's two head lines for ours and these other columns."""
    first = f"{'':{_LABEL_WIDTH}} {'gatedrnn':>10}" + "".join(f" | {name:^18}" for name in names)
    second = f"{'':{_LABEL_WIDTH}} {'us':>10}" + f" | {'us':>10} {'ratio':>7}" * len(names)
    return f"{first} | {'fastest':>7} {'limit':>6}\n{second} | {'ratio':>7} {'share':>6}"


def line(row: Row, names: Sequence[str]) -> str:
    """A shape's line of the table."""
    text = f"{row.shape.label:{_LABEL_WIDTH}}"
    if row.skipped:
        return f"{text} skipped: {row.skipped}"
    entries = {entry.name: entry for entry in row.entries[1:]}
    text += f" {microseconds(row.ours.seconds):>10}"
    text += "".join(f" | {_cell(entries.get(name)):>18}" for name in names)
    fastest, share = row.fastest(), row.share_of_limit
    text += f" | {_ratio(fastest.ratio if fastest else None):>7}"
    return f"{text} {'-' if share is None else f'{share:.0%}':>6}"


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    if entry.problem:
        return entry.problem
    star = "" if entry.held else "*"
    return f"{microseconds(entry.seconds):>10} {_ratio(entry.ratio) + star:>7}"


def microseconds(seconds: float | None) -> str:
    """A time with about four digits."""
    if seconds is None:
        return "-"
    value = seconds * 1e6
    return f"{value:.2f}" if value < 100 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


# ----------------------------------------------------------------------------------------------------
def summary(rows: Iterable[Row], names: Sequence[str]) -> dict[str, Any]:
    """Geometric means per contender and of the fastest, the smallest ratio, the median share of the limit.

    ``at_the_limit`` has what means and smallest ratio would be if our time were the limit at every shape.
    """
    timed = [row for row in rows if not row.skipped and row.ours.seconds is not None]
    result: dict[str, Any] = {"shapes": len(timed), "shapes_with": {}}
    for name in names:
        count = sum(_ratio_to(row, name) is not None for row in timed)
        if count:
            result["shapes_with"][name] = count
    result |= _means(timed, result["shapes_with"], lambda row: 1.0)
    shares = [row.share_of_limit for row in timed if row.share_of_limit is not None]
    if shares:
        result["median_share_of_limit"] = statistics.median(shares)
        result["at_the_limit"] = _means(timed, result["shapes_with"], lambda row: row.share_of_limit or 1.0)
    return result


def _ratio_to(row: Row, name: str) -> float | None:
    return next((entry.ratio for entry in row.entries if entry.name == name and entry.ratio), None)


def _means(rows: Sequence[Row], names: Iterable[str], share: Callable[[Row], float]) -> dict[str, Any]:
    """What the ratios come to if our own times were `share(row)` of what they are."""
    means = {
        name: statistics.geometric_mean(
            ratio / share(row) for row in rows if (ratio := _ratio_to(row, name)) is not None
        )
        for name in names
    }
    fastest = [
        (entry.ratio / share(row), row.shape.label, entry.name)
        for row in rows
        if (entry := row.fastest()) and entry.ratio
    ]
    if not fastest:
        return {"geometric_mean": means}
    ratio, label, name = min(fastest)
    return {
        "geometric_mean": means,
        "geometric_mean_fastest": statistics.geometric_mean(entry[0] for entry in fastest),
        "smallest": {"ratio": ratio, "shape": label, "peer": name},
    }


def summary_text(result: Mapping[str, Any]) -> str:
    """The lines below a table."""
    count, limit = result["shapes"], result.get("at_the_limit", {})
    lines = [f"{count} shapes; ratio = the other's time / gatedrnn's, so above 1 gatedrnn is faster"]
    if limit:
        lines.append("in brackets what it would be if gatedrnn reached the machine's limit at every shape")
    for name, mean in result["geometric_mean"].items():
        part = result["shapes_with"][name]
        lines.append(
            f"  geometric mean against {name:<18} {mean:6.2f}"
            + _in_brackets(limit.get("geometric_mean", {}).get(name))
            + (f"  ({part} shapes)" if part < count else "")
        )
    if "smallest" in result:
        mean, best = result["geometric_mean_fastest"], _in_brackets(limit.get("geometric_mean_fastest"))
        lines.append(f"  geometric mean against the fastest peer {mean:4.2f}{best}")
        smallest, best = result["smallest"], _in_brackets(limit.get("smallest", {}).get("ratio"))
        where = f"{smallest['shape']}, {smallest['peer']}"
        lines.append(f"  smallest ratio {smallest['ratio']:.2f}{best}: {where}")
    if "median_share_of_limit" in result:
        lines.append(f"  median share of the machine's limit {result['median_share_of_limit']:.0%}")
    return "\n".join(lines)


def _in_brackets(ratio: float | None) -> str:
    return "" if ratio is None else f" ({ratio:.2f})"


def details(rows: Iterable[Row]) -> str:
    """Every reason for a missing number, once, with how often it came up."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for entry in row.entries:
            if entry.problem:
                reasons.setdefault(f"{entry.name}: {entry.detail}", []).append(row.shape.label)
    lines = []
    for reason, labels in reasons.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        lines.append(f"  {reason} [{labels[0]}{more}]")
    return "\n".join(lines)


def self_line(row: Mapping[str, Any]) -> str:
    """A line of a measure of ourselves against ourselves."""
    times = f"{microseconds(row['measured_seconds']):>10} {microseconds(row['base_seconds']):>10}"
    scale = f" * {row['scale']:.3f}" if row["scale"] != 1 else ""
    return f"{row['label']:{_LABEL_WIDTH}} {times}{scale} {row['ratio']:>8.3f}"


def self_summary(measure: Mapping[str, Any]) -> str:
    """The line below it."""
    means = f"geometric mean {measure['geometric_mean']:.3f}, largest {measure['largest']:.3f}"
    return f"  {means}; aim: {measure['held_to']} <= {measure['allowed']:g}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write everything, indented."""
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------------
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
