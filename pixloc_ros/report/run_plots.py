# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Plots of runs side by side, as PNG images. Narrow ones are drawn so that their letters can be read on a phone; which colour is
whose stands on the page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy.special import chdtri

from ..evaluation.metrics import NEES_95, RECALL_LEVELS, Errors, Evaluation
from ..evaluation.runs import odometry_in_map
from ..io.trajectory import Trajectory
from .style import DARK_GREY, GREEN, GREY, INK, LIGHT_GREY, ORANGE, STATE_COLOURS, VERMILION, note, plt, png, run_style, styled

NARROW, WIDE = 4.8, 10.4
"""Widths of plots in inches."""
_MOST_POINTS = 40_000
_DASHED = (0, (4, 2))
_ODOMETRY = {"color": ORANGE, "linestyle": _DASHED, "label": "odometry alone"}
_STATE_HEIGHTS = {"TRACKING": 0.3, "DEGRADED": 0.55, "INITIALIZING": 0.55, "RELOCALIZING": 0.8, "LOST": 1.0}
"""Of the bars: what the colours say, said once more."""
_KINDS = {"translation": ("m", 1e-5), "rotation": ("°", 1e-4)}
"""Unit, and the least that is drawn: a logarithmic axis has no zero."""
_PLAIN = FuncFormatter(lambda value, _: f"{value:.5f}".rstrip("0").rstrip(".") if value < 1 else f"{value:g}")


@styled
def plot_paths(
    runs: Sequence[Evaluation], points: np.ndarray | None = None, keyframes: np.ndarray | None = None, inches: float = WIDE
) -> bytes:
    """The drive from above (map x to the right, y up).

    Args:
        runs: What is compared.
        points: Of the map [P, 3], where it is at hand.
        keyframes: Places of the map's images [K, 3], where they are at hand.
        inches: Width of the plot.
    """
    truth = next((e.run.truth for e in runs if len(e.run.truth)), Trajectory.from_poses([]))
    odometry = odometry_in_map(runs[0].run.odometry, runs[0].run.truth)
    tracks = [_positions(track) for track in (truth, odometry, *(e.run.estimate for e in runs)) if len(track)]
    if not tracks:
        tracks = [keyframes if keyframes is not None and len(keyframes) else np.zeros((1, 3))]
    # A single wild pose must not shrink the rest to a dot: of the runs, the outermost hundredth does not count.
    extent = np.concatenate([tracks[0], *(np.clip(t, *np.percentile(t, (1, 99), axis=0)) for t in tracks[1:])])
    low, high = extent[:, :2].min(0), extent[:, :2].max(0)
    margin = max(0.1 * float((high - low).max()), 0.5)
    width, height = high - low + 2 * margin
    # A street is long and thin: let the page's width decide, within reason.
    wide = inches >= WIDE
    across = inches - (2.6 if wide else 0.8)
    tall = float(np.clip(across * height / width + (0.5 if wide else 1.6), 3.2, 6.8))
    figure, axes = plt.subplots(figsize=(inches, tall), layout="constrained")
    if points is not None:
        shown = points[:: max(1, len(points) // _MOST_POINTS)]
        axes.scatter(shown[:, 0], shown[:, 1], s=1.2, c=LIGHT_GREY, alpha=0.8, linewidths=0, label="map points")
    if keyframes is not None:
        axes.scatter(keyframes[:, 0], keyframes[:, 1], s=14, marker="x", c=GREY, linewidths=0.8, label="map images")
    if len(truth):
        look = {} if runs[0].run.ordered else {"linestyle": "none", "marker": "o", "markersize": 6}
        look |= {"color": INK, "linewidth": 4.0, "alpha": 0.35, "solid_capstyle": "round"}
        axes.plot(*_positions(truth)[:, :2].T, label="truth", **look)
    if len(odometry):
        axes.plot(*_positions(odometry)[:, :2].T, linewidth=1.6, **_ODOMETRY)
    for index, evaluation in enumerate(runs):
        xyz, breaks = _with_breaks(evaluation)
        style = run_style(index) | ({} if evaluation.run.ordered else {"linestyle": "none"})
        axes.plot(*xyz[:, :2].T, linewidth=1.3, marker="o", markersize=2.0, label=_shortened(evaluation.name, 26), **style)
        axes.plot(*breaks[:, :2].T, "X", markersize=9, color=style["color"], markeredgecolor="white")
    start = {"color": "white", "markeredgecolor": INK, "markersize": 8, "markeredgewidth": 1.6, "label": "start"}
    axes.plot(*tracks[0][0, :2], "o", **start)
    axes.set(xlabel="x in the map (m)", ylabel="y in the map (m)")
    axes.set_xlim(low[0] - margin, high[0] + margin, auto=True)
    axes.set_ylim(low[1] - margin, high[1] + margin, auto=True)
    axes.set_aspect("equal", adjustable="datalim")  # may widen the limits
    place = {"loc": "outside right center", "ncols": 1} if wide else {"loc": "outside lower center", "ncols": 3}
    figure.legend(fontsize=9, markerscale=1.3, **place)
    return png(figure)


def _with_breaks(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] of the poses, NaN while lost so that the line breaks, and the last ones before each loss [L, 3]."""
    track = evaluation.run.estimate
    xyz = _positions(track)
    seconds = (track.stamps_ns - evaluation.run.stamps_ns[0]) * 1e-9 if len(track) else np.empty(0)
    at = [int(np.searchsorted(seconds, begin)) for begin, _ in evaluation.lost]
    last = xyz[[i - 1 for i in at if i > 0]] if len(xyz) else np.empty((0, 3))
    return np.insert(xyz, at, np.nan, axis=0) if at else xyz, last


@styled
def plot_errors(runs: Sequence[Evaluation], inches: float = WIDE) -> bytes:
    """Errors over time on logarithmic scales, and below them the state of each run. inches: width of the plot."""
    alone = runs[0].alone if len(runs) == 1 else None
    strip = 0.24 * len(runs) + 0.25
    ratios = {"height_ratios": (2.4, 2.4, strip)}
    figure, rows = plt.subplots(3, 1, figsize=(inches, 5.0 + strip), sharex=True, layout="constrained", gridspec_kw=ratios)
    for axes, (kind, (unit, least)) in zip(rows, _KINDS.items()):
        shown = [_error(e.errors, kind) for e in runs]
        if alone is not None:
            shown.append(_error(alone, kind))
            if np.isfinite(shown[-1]).any():
                axes.plot(runs[0].seconds, np.maximum(shown[-1], least), linewidth=1.4, **_ODOMETRY)
        for index, evaluation in enumerate(runs):
            look = run_style(index) | {"marker": "o", "markersize": 2.0 if len(evaluation.seconds) < 1500 else 0}
            values = np.maximum(shown[index], least)
            axes.plot(evaluation.seconds, values, linewidth=1.0, label=evaluation.name, **look)
        for begin, end, state in _state_spans(runs[0]) if len(runs) == 1 else ():
            if state != "TRACKING":
                axes.axvspan(begin, end, color=STATE_COLOURS.get(state, VERMILION), alpha=0.25, linewidth=0)
        axes.set(yscale="log", ylabel=f"{kind} error ({unit})")
        _decades(axes.yaxis, np.concatenate(shown), least)
    if len(runs) > 1 or (alone is not None and np.isfinite(alone.translation_m).any()):
        columns = 6 if inches >= WIDE else 2
        figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper right", ncols=columns, fontsize=9)
    _draw_states(rows[2], runs)
    rows[2].set_xlabel(_time_label(runs))
    return png(figure)


def _draw_states(axes: plt.Axes, runs: Sequence[Evaluation]) -> None:
    seen = {}
    for row, evaluation in enumerate(runs):
        for begin, end, state in _state_spans(evaluation):
            height = 0.85 * _STATE_HEIGHTS.get(state, 0.3)
            look = {"height": height, "linewidth": 0, "color": STATE_COLOURS.get(state, run_style(row)["color"])}
            seen[state] = axes.barh(row + 0.425 - height / 2, end - begin, left=begin, **look)
    names = [*(name for name in STATE_COLOURS if name in seen), *(name for name in seen if name not in STATE_COLOURS)]
    axes.set(yticks=range(len(runs)), yticklabels=[_shortened(e.name, 14) for e in runs], ylim=(len(runs) - 0.4, -0.6))
    axes.grid(False, axis="y")
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 6 if axes.figure.get_figwidth() >= WIDE else 3}
    labels = [name.lower() for name in names]
    axes.legend([seen[name] for name in names], labels, borderaxespad=0.2, fontsize=9, handlelength=1.2, **place)


def _state_spans(evaluation: Evaluation) -> list[tuple[float, float, str]]:
    """(begin, end, state) in seconds of images in a row with the same state; where a run has no states, "with a pose".

    Images without a pose in a state that gives one are left out.
    """
    half = evaluation.period_s / 2 or 0.5
    spans: list[list] = []
    for record in sorted(evaluation.run.records, key=lambda r: r.stamp_ns):
        at = (record.stamp_ns - evaluation.run.stamps_ns[0]) * 1e-9
        name = record.state.name if record.state is not None else "with a pose"
        if record.map_from_base is None and name in ("TRACKING", "DEGRADED", "with a pose"):
            continue
        if spans and spans[-1][2] == name and at - half <= spans[-1][1] + half:
            spans[-1][1] = at + half
        else:
            spans.append([at - half, at + half, name])
    return [tuple(span) for span in spans]


@styled
def plot_recall(runs: Sequence[Evaluation], kind: str) -> bytes:
    """Share of all scored images whose error is below what the axis says. kind: "translation" or "rotation"."""
    figure, axes = _narrow_axes()
    low, high, unit = (1e-3, 10.0, "m") if kind == "translation" else (1e-2, 20.0, "°")
    best = [np.nanmin(_error(e.errors, kind)[e.scored], initial=high) for e in runs]
    low *= 0.1 if min(best) < low else 1.0
    for level in RECALL_LEVELS:
        limit = level[list(_KINDS).index(kind)]
        axes.axvline(limit, color=GREY, linewidth=0.8, linestyle=":")
        side = {0.25: "right", 0.5: "left"}.get(limit, "center")
        text = f"{limit:g}{'°' if unit == '°' else ''}"
        note(axes, text, (limit, 1.0), (0, 3), xycoords=("data", "axes fraction"), color="#4b5563", ha=side)
    for index, evaluation in enumerate(runs):
        errors = _error(evaluation.errors, kind)[evaluation.scored]
        found = np.sort(errors[np.isfinite(errors)])
        share = 100 * np.arange(1, len(found) + 1) / max(len(errors), 1)
        x = np.concatenate(([low / 10], np.clip(found, low / 10, high), [high]))
        y = np.concatenate(([0.0], share, share[-1:] if len(share) else [0.0]))
        axes.step(x, y, where="post", linewidth=1.8, label=evaluation.name, **run_style(index))
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 102), xlabel=f"{kind} error ({unit})", ylabel="share of all images (%)")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    return png(figure)


@styled
def plot_histogram(runs: Sequence[Evaluation], kind: str) -> bytes:
    """How often which error occurs, and how many images have no pose at all. kind: "translation" or "rotation"."""
    unit, least = _KINDS[kind][0], 10 * _KINDS[kind][1]
    values = [_error(e.errors, kind)[e.scored] for e in runs]
    found = np.concatenate([v[np.isfinite(v)] for v in values])
    begin = np.floor(np.log10(max(float(found.min()), least))) if found.size else np.log10(least)
    end = max(np.ceil(np.log10(max(float(found.max()), least))), begin + 1) if found.size else begin + 1
    edges = np.logspace(begin, end, int(10 * (end - begin)) + 1)
    gap = edges[-1] * (edges[-1] / edges[0]) ** 0.10
    width = (gap / edges[-1]) ** 1.2
    missing_any = any(np.isnan(v).any() for v in values)
    figure, axes = _narrow_axes()
    for index, errors in enumerate(values):
        counts, _ = np.histogram(np.clip(errors[np.isfinite(errors)], edges[0], edges[-1]), edges)
        style = run_style(index)
        share = 100 * counts / max(len(errors), 1)
        if len(runs) == 1:
            axes.stairs(share, edges, fill=True, alpha=0.25, color=style["color"])
        axes.stairs(share, edges, linewidth=1.6, label=runs[index].name, **style)
        if missing_any:
            left, right = (gap * width ** (k / len(runs)) for k in (index, index + 1))
            share = 100 * float(np.isnan(errors).mean()) if len(errors) else 0.0
            axes.bar(left, share, right - left, align="edge", color=style["color"], linewidth=0)
    limits = edges[0], gap * width * 1.1 if missing_any else edges[-1]
    axes.set(xscale="log", xlim=limits, xlabel=f"{kind} error ({unit})", ylabel="share of all images (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x <= edges[-1] * 1.001 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if missing_any:
        axes.axvspan(edges[-1] * (gap / edges[-1]) ** 0.5, gap * width * 1.1, color="#f3f4f6", zorder=0)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
        note(axes, "no pose", (gap * width**0.5, 0), (0, -11), color=DARK_GREY, **place)
    return png(figure)


@styled
def plot_times(runs: Sequence[Evaluation], what: str, label: str) -> bytes | None:
    """Share of the images done within a time, with p50, p95 and p99; None where no run has such times.

    Args:
        runs: What is compared.
        what: As in `Evaluation.times_ms`.
        label: Of the axis.
    """
    times = [(i, e, np.sort(e.times_ms(what))) for i, e in enumerate(runs)]
    times = [(i, e, t) for i, e, t in times if len(t)]
    if not times:
        return None
    end = 1.15 * max(float(np.percentile(t, 99.5)) for _, _, t in times)
    figure, axes = _narrow_axes()
    for index, evaluation, values in times:
        share = 100 * np.arange(len(values) + 1) / len(values)
        style, steps = run_style(index), np.concatenate(([0], values))
        axes.step(steps, share, where="post", linewidth=1.8, label=evaluation.name, **style)
        points = np.percentile(values, (50, 95, 99))
        axes.plot(points, (50, 95, 99), "o", markersize=5, color=style["color"], markeredgecolor="white")
        for x, y in zip(points, (50, 95, 99)) if len(times) == 1 else ():
            note(axes, f"p{y}  {x:.3g} ms", (x, y), (7, -11))
    period = min((1e3 * e.period_s for _, e, _ in times if e.run.timed and e.period_s), default=np.inf)
    if period < 1.5 * end:
        end = max(end, 1.08 * period)
        axes.axvline(period, color=VERMILION, linewidth=1.2, linestyle=":")
        place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "bottom"}
        note(axes, "next image", (period, 0.03), (-3, 0), color=VERMILION, **place)
    axes.set(xlim=(0, end), ylim=(0, 104), xlabel=f"{label} (ms)", ylabel="share of images (%)")
    return png(figure)


@styled
def plot_stages(runs: Sequence[Evaluation]) -> bytes | None:
    """Median time of each stage, side by side. None where no run has any."""
    stages = list(dict.fromkeys(stage for e in runs for stage in e.figures.get("stage_ms", {})))
    if not stages:
        return None
    tall = max(2.4, 0.34 * len(stages) * max(len(runs), 1) ** 0.5 + 0.9)
    figure, axes = plt.subplots(figsize=(NARROW, tall), layout="constrained")
    height = 0.8 / len(runs)
    longest = max(e.figures["stage_ms"].get(stage, {}).get("p95") or 0.0 for e in runs for stage in stages)
    for index, evaluation in enumerate(runs):
        for row, stage in enumerate(stages):
            figures = evaluation.figures["stage_ms"].get(stage)
            if figures is None or figures["p50"] is None:
                continue
            y, colour = row + (index - (len(runs) - 1) / 2) * height, run_style(index)["color"]
            axes.barh(y, figures["p50"], height * 0.9, color=colour, label=evaluation.name if row == 0 else None)
            axes.plot((figures["p50"], figures["p95"]), (y, y), color=colour, linewidth=1.4, marker="|", markersize=7)
            if len(runs) == 1:
                note(axes, f"{figures['p50']:.3g}", (figures["p95"], y), (6, 0), va="center")
    axes.set(yticks=range(len(stages)), yticklabels=stages, ylim=(len(stages) - 0.5, -0.5), xlim=(0, 1.15 * (longest or 1.0)))
    axes.set_xlabel("time of a stage (ms): bar to the median, line to p95")
    axes.grid(False, axis="y")
    return png(figure)


@styled
def plot_nees(runs: Sequence[Evaluation]) -> bytes:
    """The squared error in units of the covariance, over time; runs without covariances are left out."""
    figure, axes = _narrow_axes()
    axes.axhspan(1e-3, NEES_95, color=GREEN, alpha=0.08, linewidth=0)
    axes.axhline(6.0, color=DARK_GREY, linewidth=0.9, linestyle=_DASHED)
    values = [np.empty(0)]
    for index, evaluation in enumerate(runs):
        if evaluation.errors.nees is not None:
            nees = np.where(evaluation.scored, evaluation.errors.nees, np.nan)
            values.append(nees[np.isfinite(nees)])
            look = {"markersize": 4, "alpha": 0.7, "color": run_style(index)["color"], "label": evaluation.name}
            axes.plot(evaluation.seconds, np.clip(nees, 1e-2, None), ".", **look)
    known = np.concatenate(values)
    top = max(float(np.percentile(known, 99.5)) * 2 if known.size else 100.0, 100.0)
    bottom = min(max(float(np.percentile(known, 0.5)) / 2 if known.size else 0.1, 1e-2), 1.0)
    right = {"xycoords": ("axes fraction", "data"), "ha": "right"}
    note(axes, "95 % should be below", (1.0, NEES_95), (-3, 3), color="#00664b", **right)
    note(axes, "mean should be 6", (1.0, 6.0), (-3, -11), color=DARK_GREY, **right)
    axes.set(yscale="log", ylim=(bottom, top), ylabel="NEES", xlabel=_time_label(runs))
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())
    return png(figure)


@styled
def plot_calibration(runs: Sequence[Evaluation]) -> bytes:
    """Which share of the poses lies inside the ellipsoid that should hold so many of them."""
    claimed = np.linspace(0.0, 1.0, 101)
    figure, axes = _narrow_axes()
    axes.plot((0, 100), (0, 100), color=DARK_GREY, linewidth=0.9, linestyle=_DASHED)
    axes.fill_between((0, 100), (0, 100), (0, 0), color=VERMILION, alpha=0.07, linewidth=0)
    axes.text(96, 6, "claims too much", ha="right", fontsize=9, color="#9a3412")
    axes.text(4, 93, "claims too little", fontsize=9, color=DARK_GREY)
    for index, evaluation in enumerate(runs):
        nees = np.empty(0) if evaluation.errors.nees is None else evaluation.errors.nees[evaluation.scored]
        nees = nees[np.isfinite(nees)]
        if nees.size:
            inside = [100 * float(np.mean(nees <= limit)) for limit in chdtri(6, 1.0 - claimed)]
            axes.plot(100 * claimed, inside, linewidth=1.8, label=evaluation.name, **run_style(index))
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="claimed: inside this ellipsoid (%)", ylabel="true share of poses (%)")
    return png(figure)


def _narrow_axes() -> tuple[plt.Figure, plt.Axes]:
    """Margins that fit all these plots: to have them computed takes as long as to draw one."""
    return plt.subplots(figsize=(NARROW, 3.3), gridspec_kw={"left": 0.135, "right": 0.965, "bottom": 0.155, "top": 0.92})


def _time_label(runs: Sequence[Evaluation]) -> str:
    return "time from the first image (s)" if runs[0].run.timed else "image"


def _decades(axis, values: np.ndarray, least: float) -> None:
    """Whole powers of ten around the values, but for the smallest hundredth of them; labels without exponents."""
    values = values[np.isfinite(values)]
    low, high = (max(float(v), least) for v in (np.percentile(values, 1), values.max())) if values.size else (least, 1.0)
    low = 10 ** np.floor(np.log10(low) + 1e-9)
    axis.axes.set_ylim(low, max(10 ** np.ceil(np.log10(high) - 1e-9), 10 * low) * 1.05)
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_formatter(NullFormatter())


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _error(errors: Errors, kind: str) -> np.ndarray:
    """Metres or degrees."""
    return errors.translation_m if kind == "translation" else errors.rotation_deg


def _positions(track: Trajectory) -> np.ndarray:
    return track.map_from_body[:, :3, 3].numpy()
