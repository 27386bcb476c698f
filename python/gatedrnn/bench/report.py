"""What comes out: the table on the screen, and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatedrnn.bench.shapes import Shape

LABEL_WIDTH = 30  # at least


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
    error: tuple[float, float] | None = None  # largest and root mean square, against float64


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
        seconds = self.ours.seconds if self.entries else None
        return None if seconds is None else self.limit_seconds / seconds

    def fastest(self) -> Entry | None:
        """The quickest peer that was timed (and that is held to the instruction set asked for)."""
        peers = [entry for entry in self.entries[1:] if entry.is_peer and entry.held]
        timed = [entry for entry in peers if entry.ratio is not None]
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
def header(names: Sequence[str], width: int) -> str:
    """The table's two head lines for labels of a width, ours, and these other columns."""
    first = f"{'':{width}} {'gatedrnn':>10}" + "".join(f" | {name:^18}" for name in names)
    second = f"{'':{width}} {'us':>10}" + f" | {'us':>10} {'ratio':>7}" * len(names)
    return f"{first} | {'fastest':>7} {'limit':>6}\n{second} | {'ratio':>7} {'share':>6}"


def line(row: Row, names: Sequence[str], width: int) -> str:
    """A shape's line of the table, and a second one for errors where they are known."""
    text = f"{row.shape.label:{width}}"
    if row.skipped:
        return f"{text} skipped: {row.skipped}"
    entries = {entry.name: entry for entry in row.entries[1:]}
    text += f" {microseconds(row.ours.seconds):>10}"
    text += "".join(f" | {_cell(entries.get(name)):>18}" for name in names)
    fastest, share = row.fastest(), row.share_of_limit
    text += f" | {_ratio(fastest.ratio if fastest else None):>7}"
    text += f" {'-' if share is None else f'{share:.0%}':>6}"
    if row.ours.error is None:
        return text
    errors = "".join(f" | {_error(entries.get(name)):>18}" for name in names)
    return f"{text}\n{'  error: max, rms' + _error(row.ours).rjust(18):>{width + 11}}{errors}"


def _error(entry: Entry | None) -> str:
    return " ".join(f"{size:.1e}" for size in entry.error) if entry and entry.error else "-"


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
def summary(rows: Iterable[Row], names: Sequence[str], *, limit: bool = True) -> dict[str, Any]:
    """Geometric means and smallest ratios per contender and of the fastest, the median share of the limit.

    ``at_the_limit`` has what means and smallest ratio would be if our time were the limit at every shape;
    without ``limit`` there is no such thing.
    """
    timed = [row for row in rows if not row.skipped and row.ours.seconds is not None]
    result: dict[str, Any] = {"shapes": len(timed), "shapes_with": {}}
    for name in names:
        count = sum(_ratio_to(row, name) is not None for row in timed)
        if count:
            result["shapes_with"][name] = count
    result |= _means(timed, result["shapes_with"], lambda row: 1.0)
    shares = [row.share_of_limit for row in timed if row.share_of_limit is not None]
    if shares and limit:
        result["median_share_of_limit"] = statistics.median(shares)
        result["at_the_limit"] = _means(timed, result["shapes_with"], lambda row: row.share_of_limit or 1.0)
    return result


def _ratio_to(row: Row, name: str) -> float | None:
    return next((entry.ratio for entry in row.entries if entry.name == name and entry.ratio), None)


def _means(rows: Sequence[Row], names: Iterable[str], share: Callable[[Row], float]) -> dict[str, Any]:
    """What the ratios come to if our own times were `share(row)` of what they are."""
    ratios = {
        name: [ratio / share(row) for row in rows if (ratio := _ratio_to(row, name)) is not None]
        for name in names
    }
    means = {
        "geometric_mean": {name: statistics.geometric_mean(ratios[name]) for name in ratios},
        "smallest_ratio": {name: min(ratios[name]) for name in ratios},
    }
    fastest = [
        (entry.ratio / share(row), row.shape.label, entry.name)
        for row in rows
        if (entry := row.fastest()) and entry.ratio
    ]
    if not fastest:
        return means
    ratio, label, name = min(fastest)
    return means | {
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
            + f", smallest {result['smallest_ratio'][name]:.2f}"
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write everything, indented."""
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
