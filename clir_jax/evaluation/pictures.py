"""Pictures of a run: the loss of its stages, and how tokens were aligned."""

import base64
import dataclasses
import functools
import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

_LOSS, _INK, _MUTED, _GRID = "#4c566a", "#222831", "#5f6b7a", "#e4e7ec"
# Okabe and Ito's colours, which colour-blind readers tell apart, in an order that starts dark.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#7f7f7f")
_STYLES = ("-", "--", ":")
_FONT = "DejaVu Sans"  # comes with matplotlib, so pictures are the same everywhere
_DPI = 150
_SMOOTHED_FROM = 60  # points
_TABLE_HUE = "37, 99, 190"
_LINK = "#d55e00"

Target = str | os.PathLike[str] | io.BufferedIOBase


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How the tokens of two texts were aligned.

    Args:
      plan: ``[Tx, Ty]`` transported mass, or another weight that is not negative.
      x_pieces: Tx tokens of the first text.
      y_pieces: Ty tokens of the second.
      title: what is shown.
    """

    plan: Float[np.ndarray, "Tx Ty"]
    x_pieces: Sequence[str]
    y_pieces: Sequence[str]
    title: str = ""

    def __post_init__(self) -> None:
        shape = np.shape(self.plan)
        if shape != (len(self.x_pieces), len(self.y_pieces)) or 0 in shape:
            raise ValueError(
                f"plan {self.title!r} is {shape} for {len(self.x_pieces)} and {len(self.y_pieces)} "
                "tokens; give one row for each of the first text and one column for the second"
            )


def loss_plot(
    rows: Sequence[Mapping[str, Any]], path: Target, metrics: Sequence[str] | None = None
) -> None:
    """Draw the loss of every stage, and on a second axis what evaluation measured.

    Args:
      rows: of ``metrics.jsonl``, each with ``stage``, ``step`` and numbers by name. Rows with
        ``loss`` are training; numbers of other rows, and names with ``@``, are evaluation. Where a
        step is logged twice, the later row counts.
      path: the PNG file, or a binary stream.
      metrics: the evaluation series to draw, by their names in ``rows``; None takes the first
        metric, for every collection.

    Raises:
      ValueError: if no row holds a number to draw.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage", "")), []).append(row)
    panels = {stage: _series(of, metrics) for stage, of in stages.items()}
    panels = {stage: found for stage, found in panels.items() if found[0] or found[1]}
    if not panels:
        raise ValueError("loss plot: no row holds a loss or a metric; give rows of metrics.jsonl")
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    # A legend below each panel takes a line for every two or three series.
    legend = max(math.ceil((1 + len(found[1])) / 3) for found in panels.values())
    figure = Figure(
        figsize=(6.4 * columns, (3.5 + 0.24 * legend) * lines),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04),
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (stage, (loss, evaluations)) in zip(axes, panels.items(), strict=False):
        _loss_panel(axis, stage, loss, evaluations)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _save(figure, path)


def plan_picture(
    plan: Float[np.ndarray, "Tx Ty"],
    x_pieces: Sequence[str],
    y_pieces: Sequence[str],
    path: Target,
    title: str = "",
    links: Bool[np.ndarray, "Tx Ty"] | None = None,
) -> None:
    """Draw an alignment as a heat map with the tokens along its sides.

    Args:
      plan: ``[Tx, Ty]`` weights that are not negative.
      x_pieces: Tx tokens, from top to bottom.
      y_pieces: Ty tokens, from left to right.
      path: the PNG file, or a binary stream.
      title: shown above.
      links: ``[Tx, Ty]`` the pairs to frame; None frames none.

    Raises:
      ValueError: if the shapes differ, or matplotlib cannot draw the script; ``plan_html`` can.
    """
    checked = Plan(plan, x_pieces, y_pieces, title)
    for text in (*x_pieces, *y_pieces, title):
        if not drawable(text):
            raise ValueError(
                f"plan {title!r}: {text!r} cannot be drawn in a picture; use plan_html"
            )
    weights = np.asarray(checked.plan, np.float64)
    tall, wide = weights.shape
    cell = min(0.36, max(0.16, 11.0 / max(tall, wide)))
    size = min(10.0, 72 * cell * 0.62)
    inch = size / 72 * 0.62
    left, top = (inch * max(len(p) for p in side) + 0.3 for side in (x_pieces, y_pieces))
    figure = Figure(
        figsize=(max(cell * wide + left + 1.0, 3.4), cell * tall + top + 0.7),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    axis = figure.add_subplot()
    image = axis.imshow(weights, cmap="Blues", vmin=0.0, vmax=weights.max() or 1.0, aspect="equal")
    if links is not None:
        for y, x in np.argwhere(links):
            corner = float(x) - 0.5, float(y) - 0.5
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor=_LINK, linewidth=1.6, zorder=3)
            frame.set_clip_on(False)
            axis.add_patch(frame)
    for ticks, labels, pieces in (
        (axis.set_xticks, axis.set_xticklabels, y_pieces),
        (axis.set_yticks, axis.set_yticklabels, x_pieces),
    ):
        ticks(range(len(pieces)))
        labels(pieces, fontsize=size, color=_INK, family=_FONT, parse_math=False)
    axis.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False, pad=4)
    axis.tick_params(axis="x", rotation=90)
    axis.set_xticks(np.arange(wide + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(tall + 1) - 0.5, minor=True)
    axis.grid(which="minor", color=_GRID, linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_color(_GRID)
    bar = figure.colorbar(image, ax=axis, shrink=min(1.0, 2.2 / (cell * tall)), aspect=14, pad=0.03)
    bar.set_label("weight", fontsize=9, color=_MUTED)
    bar.ax.tick_params(labelsize=8, length=2, colors=_MUTED)
    bar.locator = MaxNLocator(4)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK, family=_FONT, parse_math=False)
    _save(figure, path)


def plan_html(
    plan: Float[np.ndarray, "Tx Ty"],
    x_pieces: Sequence[str],
    y_pieces: Sequence[str],
    links: Bool[np.ndarray, "Tx Ty"] | None = None,
) -> str:
    """Render an alignment as an HTML table, which shows every script the reader's browser shows.

    Args:
      plan: ``[Tx, Ty]`` weights that are not negative; a cell's tint is its share of the largest.
      x_pieces: Tx tokens, from top to bottom.
      y_pieces: Ty tokens, from left to right.
      links: ``[Tx, Ty]`` the pairs to frame; None frames none.

    Returns:
      A ``<table class="plan">`` that needs no style sheet and fits light and dark pages.

    Raises:
      ValueError: if the shapes differ.
    """
    weights = np.asarray(Plan(plan, x_pieces, y_pieces).plan, np.float64)
    top = weights.max() or 1.0
    side = 'style="font-weight:normal;padding:.15em .5em;white-space:nowrap;'
    # Vertical text would turn Arabic into letters on their side; a slim column wraps instead.
    head = "".join(f'<th dir="auto" {side}">{html.escape(piece)}</th>' for piece in y_pieces)
    lines = [f"<tr><td></td>{head}</tr>"]
    frame = f";box-shadow:inset 0 0 0 2px {_LINK}"
    framed = np.zeros(weights.shape, bool) if links is None else links
    for piece, row, marks in zip(x_pieces, weights, framed, strict=True):
        cells = "".join(
            f'<td title="{value:.4f}" style="background:rgba({_TABLE_HUE}, {value / top:.3f});'
            f'border:1px solid rgba(128, 128, 128, .25);min-width:1.6em{frame if mark else ""}">'
            "</td>"
            for value, mark in zip(row, marks, strict=True)
        )
        name = f'<th dir="auto" {side}text-align:right">{html.escape(piece)}</th>'
        lines.append(f"<tr>{name}{cells}</tr>")
    return '<table class="plan" style="border-collapse:collapse">' + "\n".join(lines) + "</table>"


def drawable(text: str) -> bool:
    """Whether a picture can show ``text``: every letter in the font, and none that joins others.

    Example:
      >>> drawable("▁élève"), drawable("مدرسة"), drawable("学校")
      (True, False, False)
    """
    return all(ord(c) in _glyphs() and not _joins(ord(c)) for c in text)


def png_html(draw: Callable[[io.BufferedIOBase], None], description: str) -> str:
    """The picture that ``draw(stream)`` writes, as an HTML image that holds its own data."""
    stream = io.BytesIO()
    draw(stream)
    png = stream.getvalue()
    width = int.from_bytes(png[16:20], "big")  # the first field of the PNG header
    source = base64.b64encode(png).decode("ascii")
    # Three dots of the picture for two of the page: sharp on fine screens, and letters of 11 px.
    return (
        f'<img width="{round(width / 1.5)}" alt="{html.escape(description)}" '
        f'src="data:image/png;base64,{source}">'
    )


_Points = dict[int, float]


def _series(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] | None
) -> tuple[_Points, dict[str, _Points]]:
    """The loss, and the evaluations chosen, each by step."""
    loss: _Points = {}
    evaluations: dict[str, _Points] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("stage", "step") or not isinstance(value, int | float):
                continue
            if name == "loss":
                loss[row["step"]] = value
            elif "loss" not in row or "@" in name:
                evaluations.setdefault(name, {})[row["step"]] = value
    if metrics is None:
        first = next((name.split()[0] for name in evaluations if name.strip()), "")
        metrics = [name for name in evaluations if name.split()[:1] == [first]]
    return loss, {name: evaluations[name] for name in metrics if name in evaluations}


def _loss_panel(axis: Axes, stage: str, loss: _Points, evaluations: dict[str, _Points]) -> None:
    handles = []
    axis.set_title(stage, fontsize=11, color=_INK, loc="left", parse_math=False)
    axis.set_xlabel("step", fontsize=9, color=_MUTED)
    axis.set_ylabel("loss", fontsize=9, color=_LOSS)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if loss:
        steps = np.asarray(sorted(loss))
        values = np.asarray([loss[step] for step in steps.tolist()], np.float64)
        smooth = _smoothed(values)
        raw = len(steps) >= _SMOOTHED_FROM
        if raw:
            axis.plot(steps, values, color=_LOSS, alpha=0.25, linewidth=0.8)
        handles += axis.plot(
            steps, smooth, color=_LOSS, linewidth=1.8, label="loss, smoothed" if raw else "loss"
        )
        seen = values[np.isfinite(values)]
        if len(seen) and seen.min() > 0 and seen.max() > 30 * seen.min():
            axis.set_yscale("log")
    _plain(axis)
    axis.grid(color=_GRID, linewidth=0.8)
    if evaluations:
        other = axis.twinx()
        words = {name.split()[0] for name in evaluations}
        label = words.pop() if len(words) == 1 else "evaluation"
        other.set_ylabel(label, fontsize=9, color=_MUTED)
        for number, (name, points) in enumerate(evaluations.items()):
            ordered = sorted(points)
            handles += other.plot(
                ordered,
                [points[step] for step in ordered],
                color=_SERIES[number % len(_SERIES)],
                linestyle=_STYLES[number // len(_SERIES) % len(_STYLES)],
                marker="o",
                markersize=3.5,
                linewidth=1.5,
                label=name,
            )
        _plain(other)
    legend = axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=min(3, len(handles)),
        fontsize=8.5,
        frameon=False,
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(axis: Axes) -> None:
    axis.spines[["top"]].set_visible(False)
    axis.spines[:].set_color(_GRID)
    axis.tick_params(labelsize=8.5, colors=_MUTED, length=3)
    axis.set_axisbelow(True)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred mean over a thirtieth of the points; gaps stay gaps, short series as they are."""
    if len(values) < _SMOOTHED_FROM:
        return values
    half = max(1, len(values) // 60)
    finite = np.isfinite(values)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    count = np.convolve(finite.astype(np.float64), window, "same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def _save(figure: Figure, path: Target) -> None:
    # Figures made without pyplot belong to no global list, and PNG needs no display.
    # matplotlib asks for typing's IO, which no stream is when types are checked at run time.
    figure.savefig(cast(Any, path), format="png", facecolor="white")


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _joins(code: int) -> bool:
    """Whether a letter is of a script written from right to left, or shaped by its neighbours."""
    return 0x0590 <= code <= 0x109F or 0xFB1D <= code <= 0xFEFE
