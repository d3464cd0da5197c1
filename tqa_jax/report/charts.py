"""Charts as SVG that is written by hand: lines, dots, histograms, ranges, matrices.

The one thing to know: colours are classes (`s0`.. for series, `q0`.. for a scale) that
the page's style sheet fills in, so that one chart suits a light page, a dark one and
paper. Every name is escaped here, and nothing has an id, so that the page takes any
number of charts as they are.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

_SERIES = 12
"""Number of series that can be told apart: 6 colours, whole and dashed."""

STEPS = 5
"""Number of colours of a scale."""

MINUS = "\N{MINUS SIGN}"

_CROWDED = 400  # Points from which neighbours are drawn as one larger dot.


@dataclasses.dataclass
class Chart:
    """Axes with data on them, in a box of `width` x `height` units.

    Attributes:
        label: what the chart shows, for who cannot see it.
        x: range of the horizontal axis.
        y: range of the vertical axis; of logarithms when `log` is set.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        log: whether the vertical axis is logarithmic.
        rows: names of the rows of a chart that has no vertical axis.
        percent: whether the horizontal axis is in percent.
        left: where the axes begin; 0 for the usual place.
    """

    label: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    log: bool = False
    rows: Sequence[str] = ()
    percent: bool = False
    width: int = 340
    height: int = 220
    left: int = 0

    def __post_init__(self) -> None:
        """Lays out the box; the height of a chart with rows follows from them."""
        self._parts: list[str] = []
        if self.rows:
            self.height = 42 + 34 * len(self.rows)
        self._left = self.left or (14 if self.rows else 42)
        self._right = self.width - 19
        self._top, self._bottom = (4 if self.rows else 22), self.height - 32

    def line(self, x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], kind: str):
        """Draws a line with gaps where a value is NaN; `kind` is classes."""
        there = np.isfinite(x) & np.isfinite(y)
        path, pen = [], "M"
        for px, py, known in zip(self._px(x), self._py(y), there, strict=True):
            if known:
                path.append(f"{pen}{px:.1f} {py:.1f}" + ("h0" if pen == "M" else ""))
            pen = "L" if known else "M"
        self._add(f'<path class="line {kind}" d="{"".join(path)}"/>')

    def dots(
        self, x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], kind: str
    ) -> None:
        """Draws a dot a point; in a crowd one larger dot for neighbours.

        The class `ring` makes them hollow.
        """
        there = np.isfinite(x) & np.isfinite(y)
        places = np.stack([self._px(x)[there], self._py(y)[there]], axis=1)
        counts = np.ones(len(places), int)
        if len(places) > _CROWDED:
            places, counts = np.unique(
                np.round(places / 5) * 5, axis=0, return_counts=True
            )
        sizes = np.minimum(np.log2(counts).astype(int), 5)
        for size in np.unique(sizes):
            path = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in places[sizes == size])
            wide = (6.5 if len(counts) < 150 else 3.8) + 1.3 * size
            self._add(
                f'<path class="dots {kind}" stroke-width="{wide:.1f}" d="{path}"/>'
            )
            if "ring" in kind:
                self._add(f'<path class="dots hole" stroke-width="3" d="{path}"/>')

    def area(
        self,
        x: Float[np.ndarray, " N"],
        low: Float[np.ndarray, " N"],
        high: Float[np.ndarray, " N"],
        kind: str,
    ) -> None:
        """Fills what is between two lines."""
        px = np.concatenate([x, x[::-1]])
        py = np.concatenate([high, low[::-1]])
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(self._px(px), self._py(py), strict=True)
        )
        self._add(f'<polygon class="area {kind}" points="{points}"/>')

    def bars(
        self, edges: Float[np.ndarray, " N1"], heights: Float[np.ndarray, " N"]
    ) -> None:
        """Draws a histogram."""
        px, py, base = self._px(edges), self._py(heights), self._py(np.zeros(1))[0]
        path = "".join(
            f"M{a + 0.5:.1f} {base:.1f}V{top:.1f}H{b - 0.5:.1f}V{base:.1f}z"
            for a, b, top in zip(px[:-1], px[1:], py, strict=True)
            if top < base
        )
        self._add(f'<path class="bar" d="{path}"/>')

    def vertical(self, x: float, kind: str, note: str = "") -> None:
        """Draws a line across the chart at one place, with a note above it."""
        if not self.x[0] <= x <= self.x[1]:
            return
        place = self._px(np.array([x]))[0]
        self._add(f'<path class="{kind}" d="M{place:.1f} {self._top}V{self._bottom}"/>')
        if note:
            left = place > (self._left + self._right) / 2
            self._text(place, self._top - 6, note, "end" if left else "")

    def diagonal(self) -> None:
        """Draws the line on which both axes are the same."""
        low, high = max(self.x[0], self.y[0]), min(self.x[1], self.y[1])
        if low < high:
            self.line(np.array([low, high]), np.array([low, high]), "same")

    def interval(
        self, row: int, value: float, low: float | None, high: float | None
    ) -> None:
        """Draws a value with its interval in a row of the chart."""
        height = self._row(row)
        if low is not None and high is not None:
            a, b = self._px(np.array([low, high]))
            self._add(f'<path class="whisker" d="M{a:.1f} {height}H{b:.1f}"/>')
        place = self._px(np.array([value]))[0]
        self._add(
            f'<path class="dots s0" stroke-width="9" d="M{place:.1f} {height}h0"/>'
        )

    def mark(self, row: int, value: float, kind: str) -> None:
        """Draws a hollow dot in a row of the chart; `kind` is classes."""
        place, height = self._px(np.array([value]))[0], self._row(row)
        for classes, wide in ((kind, 9), ("hole", 4.5)):
            self._add(
                f'<path class="dots {classes}" stroke-width="{wide}" '
                f'd="M{place:.1f} {height}h0"/>'
            )

    def shade(
        self, row: int, x: Float[np.ndarray, " N1"], steps: Int[np.ndarray, " N"]
    ) -> None:
        """Fills a row from edge to edge: -1 is left out, 0 to 4 get darker."""
        height, px = self._row(row), self._px(x)
        for step in range(STEPS):
            path = "".join(
                f"M{a:.1f} {height - 6}H{b:.1f}v12H{a:.1f}z"
                for a, b in zip(
                    px[:-1][steps == step], px[1:][steps == step], strict=True
                )
            )
            if path:
                self._add(f'<path class="shade h{step}" d="{path}"/>')

    def strip(self, row: int, values: Float[np.ndarray, " N"]) -> None:
        """Draws a tick for each value in a row of the chart."""
        height = self._row(row)
        path = "".join(
            f"M{place:.1f} {height - 6}v12"
            for place in self._px(values[np.isfinite(values)])
        )
        self._add(f'<path class="tick s0" d="{path}"/>')

    def svg(self) -> str:
        """The chart as an element of a page."""
        frame: list[str] = []
        body, self._parts = self._parts, frame
        for tick in ticks(*self.x):
            place = self._px(np.array([tick]))[0]
            self._add(
                f'<path class="grid" d="M{place:.1f} {self._top}V{self._bottom}"/>'
            )
            text = f"{number(100 * tick)} %" if self.percent else number(tick)
            self._text(place, self._bottom + 13, text, "middle")
        if not self.rows:
            for tick in _log_ticks(*self.y) if self.log else ticks(*self.y):
                place = self._py(np.array([10.0**tick if self.log else tick]))[0]
                self._add(
                    f'<path class="grid" d="M{self._left} {place:.1f}H{self._right}"/>'
                )
                text = number(10.0**tick if self.log else tick)
                self._text(self._left - 5, place + 4, text, "end")
        for number_, name in enumerate(self.rows):
            self._text(self._left, self._row(number_) - 10, _short(name, 44), "row")
        self._text(self._right, self._bottom + 27, self.x_label, "end name")
        self._text(4, 12, self.y_label, "name")
        self._add(
            f'<path class="axis" d="M{self._left} {self._bottom}H{self._right}"/>'
        )
        return _svg(self.label, self.width, self.height, frame + body)

    def _px(self, x: np.ndarray) -> np.ndarray:
        share = (np.asarray(x, float) - self.x[0]) / (self.x[1] - self.x[0])
        return self._left + np.clip(share, 0, 1) * (self._right - self._left)

    def _py(self, y: np.ndarray) -> np.ndarray:
        y = np.asarray(y, float)
        if self.log:
            y = np.log10(np.where(y > 0, y, np.nan))
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self._bottom - np.clip(share, 0, 1) * (self._bottom - self._top)

    def _row(self, row: int) -> int:
        return self._top + 34 * row + 22

    def _add(self, part: str) -> None:
        self._parts.append(part)

    def _text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self._add(_text(x, y, text, kind))


def series(index: int) -> str:
    """Classes of a line or an area by its number."""
    return f"s{index % _SERIES}"


def matrix(label: str, values: Float[np.ndarray, "K K"], names: Sequence[str]) -> str:
    """Draws correlations as a table of coloured cells; rows carry the names.

    Args:
        label: what the chart shows, for who cannot see it.
        values: from -1 to 1, NaN where undefined.
        names: of rows and columns; columns show their number.
    """
    size, left, top = len(values), 112, 18
    side = (340 - left) / size
    high = min(side, 34.0)
    parts = []
    for i, name in enumerate(names):
        middle = top + high * (i + 0.5)
        parts.append(_text(0, middle + 4, f"{i + 1} {_short(name, 15)}"))
        parts.append(_text(left + side * (i + 0.5), 12, str(i + 1), "middle"))
        for j, value in enumerate(values[i]):
            known = math.isfinite(value)
            kind = ("plus" if value >= 0 else "minus") if known else "unknown"
            strength = min(abs(value), 1.0) * 0.8 if known else 1
            parts.append(
                f'<rect class="{kind}" x="{left + side * j:.1f}" '
                f'y="{top + high * i:.1f}" width="{side - 1:.1f}" '
                f'height="{high - 1:.1f}" fill-opacity="{strength:.2f}"/>'
            )
            if size <= 8:
                text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".")
                text = text.replace("-", MINUS) if known else "–"
                parts.append(_text(left + side * (j + 0.5), middle + 4, text, "middle"))
    return _svg(label, 340, round(top + high * size + 4), parts)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def span(
    *values: Float[np.ndarray, " N"], zero: bool = False, log: bool = False
) -> tuple[float, float] | None:
    """Range of an axis that holds all values; None when none is finite.

    Args:
        *values: what is drawn.
        zero: whether 0 must be on the axis.
        log: whether the axis is logarithmic; only positive values count then.
    """
    found = np.concatenate([np.ravel(one) for one in values])
    found = found[np.isfinite(found)]
    if log:
        found = np.log10(found[found > 0])
    if not found.size:
        return None
    low, high = float(found.min()), float(found.max())
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.04 * (high - low)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = max(0.05 * abs(low), 1e-9) if not log else 0.5
    return (
        low if zero and low == 0 else low - margin,
        high if zero and high == 0 else high + margin,
    )


def binned(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], most: int
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Means over runs of neighbouring points, at most `most` of them; NaN is left out.

    A run without any value is NaN.
    """
    run = max(1, math.ceil(len(x) / most))
    starts = np.arange(0, len(x), run)
    known: Bool[np.ndarray, " N"] = np.isfinite(y)
    count = np.add.reduceat(known.astype(float), starts)
    total = np.add.reduceat(np.where(known, y, 0.0), starts)
    size = np.add.reduceat(np.ones(len(x)), starts)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return np.add.reduceat(x, starts) / size, mean


def number(value: float) -> str:
    """A tick's number, short: 0.05, 12, 25k, 1e-5."""
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, power = f"{value:.0e}".split("e")
        text = f"{mantissa}e{int(power)}"
    else:
        text = f"{value / 1000:.4g}k" if size >= 1e4 else f"{round(value, 9):.4g}"
    return text.replace("-", MINUS)


def _log_ticks(low: float, high: float) -> list[float]:
    whole = list(range(math.ceil(low), math.floor(high) + 1))
    if len(whole) > 6:
        return whole[:: math.ceil(len(whole) / 6)]
    if len(whole) >= 3:
        return whole
    decades = range(math.floor(low), math.floor(high) + 1)
    fine = [d + math.log10(m) for d in decades for m in (1, 2, 5)]
    return [tick for tick in fine if low <= tick <= high] or [(low + high) / 2]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{html.escape(text)}</text>'


def _svg(label: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )
