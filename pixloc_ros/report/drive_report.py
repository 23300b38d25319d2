# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A page on the map of a drive: how good it is, where it is weak, and what to drive again."""

from __future__ import annotations

import numpy as np

from ..evaluation.held_out import HeldOut
from ..mapping.build.drive import DriveReport
from ..mapping.map_file import Map
from .feature_maps import Coverage, measure_coverage, plot_coverage
from .page import Card, Page

_FEW_PX, _FEW_FOUND, _LITTLE_POSED = 1.0, 0.9, 0.999
_SHOWN = 8


def drive_page(map_: Map, report: DriveReport, checked: HeldOut) -> str:
    """The page's text."""
    covered = measure_coverage(map_)
    drives = len({name for tie in report.ties for name in (tie.first, tie.second)})
    what = f"{drives} drives, together" if drives else "a drive of"
    page = Page(f"Map {map_.name}", f"Made of {what} {report.length_m:.1f} m, without given poses.")
    page.cards(_cards(report, checked))
    page.problems(weaknesses(map_, report, checked, covered))
    page.notes(report.notes)
    page.heading("From above")
    page.plot(plot_coverage(map_, covered), None, "Keyframes and points from above", covered.summary())
    page.heading("Figures")
    page.facts(_facts(report))
    page.heading("Keyframes left out")
    page.text(
        "Each tenth keyframe was localized in the map without it and its neighbours. Its image helped to make the points: this "
        "shows whether the map holds together, not how exact it is. Drive a second time for that."
    )
    rows = [("keyframe", "off, cm", "off, degrees", "why not")]
    for name, found, metres, degrees, reason in zip(*vars(checked).values()):
        off = ("–", "–") if np.isnan(metres) else (f"{100 * metres:.1f}", f"{degrees:.2f}")
        rows.append((name, *off, "" if found else reason))
    page.table(rows)
    return page.html()


def _cards(report: DriveReport, checked: HeldOut) -> list[Card]:
    posed, every = report.posed
    sure, found = report.scale_uncertainty, np.array(checked.found, bool)
    px = report.structure_px
    cards = [Card(f"{100 * posed / every:.0f} %", "keyframes posed", f"{posed} of {every}", posed < _LITTLE_POSED * every)]
    if report.images_posed is not None:
        some, images = report.images_posed
        cards.append(Card(f"{100 * some / images:.0f} %", "images posed", f"{some} of {images}", some < _FEW_FOUND * images))
    return [
        *cards,
        Card(f"{px:.2f} px", "reprojection error", "of the structure from motion", px > _FEW_PX),
        Card("?" if sure is None else f"± {100 * sure:.1f} %", "scale", report.scale, sure is None),
        Card(str(len(report.loops)), "pairs close loops", "places that the drive came back to"),
        Card(f"{found.sum()} of {len(found)}", "left-out keyframes found", "", found.mean() < _FEW_FOUND),
    ]


def _facts(report: DriveReport) -> dict[str, str]:
    low, median = report.points_per_keyframe
    facts = {
        "images": f"{report.images}, of which {report.keyframes} are keyframes",
        "points": f"{report.points}, seen {report.observations} times",
        "points that a keyframe sees": f"{median:.0f} in the median, 5 % see fewer than {low:.0f}",
        "pairs of images matched": f"{report.pairs[0]}, {report.pairs[1]} with parallax",
        "scale": report.scale,
    }
    if report.sensors:
        facts["other sensors"] = "; ".join(report.sensors)
    if report.reprojection_px:
        facts["reprojection of the map's points"] = "median {:.2f} px, 95 % below {:.2f} px".format(*report.reprojection_px)
    if report.ties:
        facts["what ties the drives"] = "; ".join(map(str, report.ties))
    if report.loops:
        shown = ", ".join(f"{a} – {b}" for a, b in report.loops[:_SHOWN])
        facts["loops"] = f"{shown}{', ...' if len(report.loops) > _SHOWN else ''}"
    return facts


def weaknesses(map_: Map, report: DriveReport, checked: HeldOut, covered: Coverage) -> list[str]:
    """What to drive again, and why; a line each."""
    lines, names = [], map_.keyframe_names
    if report.posed[0] < report.posed[1]:
        lines.append(f"{report.posed[1] - report.posed[0]} keyframes have no pose: drive there again, slower or in more light.")
    if report.scale_uncertainty is None:
        lines.append("The scale is a guess: give --path-length or --distance, or record odometry.")
    if report.structure_px > _FEW_PX:
        lines.append("The reprojection error is above a pixel: calibrate the camera, or try --refine-camera.")
    if len(covered.weak):
        shown = ", ".join(names[k] for k in covered.weak[:_SHOWN])
        lines.append(f"{len(covered.weak)} keyframes see few points ({shown}): the camera may get lost there.")
    if len(covered.gaps):
        shown = ", ".join(f"{names[a]} – {names[b]}" for a, b in covered.gaps[:_SHOWN])
        lines.append(f"The drive jumps at {shown}: drive there again, slower.")
    missed = [name for name, found in zip(checked.names, checked.found) if not found]
    if missed:
        lines.append(f"{len(missed)} keyframes are not found without their neighbours ({', '.join(missed[:_SHOWN])}).")
    return lines
