# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What is told of a drive: figures of a live run, texts, plots, overlays, the page."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scenes import decoded
from test_runs import BAG_T0, NONE, off, run_with, walk

from pixloc_ros.evaluation import live_run
from pixloc_ros.evaluation.live_run import LookupRecord, PoseRecord, Recording, StatusRecord
from pixloc_ros.evaluation.metrics import evaluate, run_figures
from pixloc_ros.evaluation.runs import BagRun
from pixloc_ros.evaluation.tables import format_demo, format_number, format_run, format_summary, format_table, summary
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.frames import CameraFrame
from pixloc_ros.report import run_plots
from pixloc_ros.report.curves import plot_reliability
from pixloc_ros.report.overlays import AGREES, DISAGREES, draw_overlay
from pixloc_ros.report.page import Card, Page, Picture
from pixloc_ros.report.run_report import run_report, scene_of
from pixloc_ros.tracking.types import FrameAlignment, TrackState

N, T0, MS = 8, BAG_T0, 1_000_000
TRUTH = walk(N, step=1.0)
BASE_FROM_CAMERA = se3.se3_exp(torch.tensor([0.2, 0, 0.5, 1, 1, 1], dtype=torch.float64))


def recording() -> Recording:
    """A drive on which all went well: every pose 2 cm off, 30 ms after its image."""
    heard = Recording(last_odometry_ns=T0 + N * 100 * MS)
    for i, (stamp, pose) in enumerate(zip(TRUTH.stamps_ns.tolist(), off(TRUTH).map_from_body)):
        heard.sent_s[stamp] = i * 0.1
        heard.statuses.append(StatusRecord(stamp, TrackState.TRACKING, "", 0.9, 20.0, 10.0, 5.0, 0, i * 0.1 + 0.031, 25.0))
        heard.poses.append(PoseRecord(stamp, pose, torch.eye(6, dtype=torch.float64) * 1e-4, i * 0.1 + 0.03))
        heard.lookups.append(LookupRecord(stamp, "", "", 40.0))
        heard.chain[stamp] = pose @ BASE_FROM_CAMERA
    return heard


def figures(heard: Recording) -> dict:
    run = live_run.as_run(heard, TRUTH, NONE)
    stats = live_run.live_figures(heard, run_figures(run), BASE_FROM_CAMERA)
    json.dumps(stats, allow_nan=False)
    return stats


def test_live_run_without_fault():
    stats = figures(recording())
    assert stats["problems"] == []
    assert (stats["frames"], stats["tracked_frames"], stats["unreported_frames"]) == (N, N, 0)
    assert stats["latency_p50_ms"] == pytest.approx(30) and stats["latency_max_ms"] == pytest.approx(30)
    assert stats["age_p99_ms"] == 25 and stats["dropped_fraction"] == 0
    assert stats["frame_ms_p50"] == 20
    assert stats["translation_error_median_m"] == pytest.approx(0.02)
    assert stats["chain_checked"] == N and stats["chain_error_m"] < 1e-12
    assert stats["tf_lookups"] == N and stats["tf_errors"] == 0


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda h: h.statuses.pop(3), "1 images were neither tracked nor reported"),
        (lambda h: h.statuses.append(h.statuses[0]), "1 images were reported more than once"),
        (lambda h: h.chain.update({T0: h.chain[T0] + 2e-6}), "TF chain differs"),
        (lambda h: h.chain.update({T0: None}), "TF gives no pose of the camera at 1 images"),
        (
            lambda h: h.lookups.__setitem__(2, LookupRecord(T0 + 200 * MS, "ExtrapolationException", "too late", 1.0)),
            "1 lookups at image stamps failed: ExtrapolationException: too late",
        ),
        (lambda h: h.poses.clear(), "no pose was published"),
    ],
)
def test_faults_of_a_live_run_are_found(spoil, problem):
    heard = recording()
    spoil(heard)
    assert any(problem in line for line in figures(heard)["problems"])


def test_nobody_can_know_what_is_beyond_the_last_odometry():
    heard = recording()
    last = int(TRUTH.stamps_ns[-1])
    heard.last_odometry_ns = last - 1
    heard.chain[last] = None
    heard.lookups[-1] = LookupRecord(last, "ExtrapolationException", "future", 1000.0)
    stats = figures(heard)
    assert stats["problems"] == [] and stats["tf_beyond_odometry"] == 1 and stats["chain_checked"] == N - 1


def test_dropped_and_lost_frames_are_in_the_figures():
    heard = recording()
    del heard.poses[4:]
    unknown = dict.fromkeys(("inlier_fraction", "frame_ms", "feature_ms", "alignment_ms"), float("nan"))
    lost = {"state": TrackState.LOST, "message": "lost: look", "dropped": 1, "age_ms": 26.0, **unknown}
    heard.statuses[4:] = [replace(s, **lost) for s in heard.statuses[4:]]
    stats = figures(heard)
    assert stats["tracked_fraction"] == 0.5 and stats["losses"] == 1 and stats["dropped_frames"] == 1
    assert stats["messages"] == {"lost: look": 4} and stats["problems"] == []
    assert "dropped because newer images had come: 1" in format_demo(stats)


def test_recording_is_json_lines(tmp_path):
    recording().write(tmp_path / "r.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"sent", "status", "pose", "lookup", "chain"}
    assert len(rows) == 5 * N and [row["stamp_ns"] for row in rows] == sorted(row["stamp_ns"] for row in rows)


def test_texts():
    numbers = (None, 0.0, 3, 0.001234, 12345.6, 1e-6, 999.9)
    assert [format_number(v) for v in numbers] == ["–", "0", "3", "0.00123", "12346", "0.000001", "1000"]
    assert format_table([("a", "b"), ("long", "1")]).splitlines() == ["a     b", "───────", "long  1"]
    lines = [line.split() for line in format_run(figures(recording())).splitlines()]
    assert ["state", "TRACKING", "8", "(100.0", "%)"] in lines and ["translation,", "median", "(cm)", "2"] in lines
    assert ["from", "image", "to", "pose,", "median", "(ms)", "30"] in lines


def test_summary_marks_the_best_and_leaves_out_what_nobody_knows():
    good, bad = figures(recording()), dict(figures(recording()))
    bad.update(translation_error_median_m=1.5, losses=2, frame_ms_p50=None, recall=dict.fromkeys(good["recall"], 0.5))
    rows = {row.label: row for group in summary([good, bad]) for row in group.rows}
    assert rows["translation, median (m)"].cells == ("0.02", "1.5") and rows["translation, median (m)"].best == {0}
    assert rows["losses"].best == {0} and rows["to process an image, median (ms)"].cells == ("20", "–")
    assert rows["within 0.05 m, 1° (%)"].cells == ("100.0", "50.0")
    assert not rows["rotation, median (°)"].best  # equal
    assert not any("memory" in label for label in rows)
    text = format_summary(["first", "second"], [good, bad])
    assert text.splitlines()[0].split() == ["first", "second"] and "0.02 *" in text and text.endswith("* best")


def evaluated(states="T" * N, **changes):
    return evaluate(run_with(states, **changes))


def test_plots_draw_with_little_and_with_much():
    points = np.random.default_rng(0).normal(size=(100_000, 3))
    one, many = [evaluated()], [evaluated("L" * i + "T" * (N - i), name=f"run {i}", metres=0.01 * i) for i in range(9)]
    empty, nothing = evaluate(BagRun([], NONE, NONE)), evaluated("L" * N)
    pictures = [run_plots.plot_paths([evaluated(ordered=False)]), run_plots.plot_errors([evaluated(timed=False)])]
    pictures += [run_plots.plot_paths([empty]), run_plots.plot_paths([empty], points[:10], points[:5])]
    for runs in (one, many):
        pictures += [run_plots.plot_paths(runs, points, points[:5], run_plots.NARROW), run_plots.plot_errors(runs)]
        pictures += [run_plots.plot_recall(runs, "rotation"), run_plots.plot_histogram(runs, "translation")]
        pictures += [run_plots.plot_nees(runs), run_plots.plot_calibration(runs)]
        pictures += [run_plots.plot_times(runs, "total", "x"), run_plots.plot_stages(runs)]
    likely = np.random.default_rng(0).random(500)
    pictures += [plot_reliability({"": (likely, likely > 0.4)}), plot_reliability({"x": (likely[:1], np.array([True]))})]
    for picture in pictures:
        decoded(picture)
    assert run_plots.plot_times(one, "latency", "x") is None
    assert "</html>" in run_report("title", "", [empty]) and "</html>" in run_report("title", "", [nothing])


def test_the_page_shows_how_far_probabilities_can_be_believed():
    run = run_with("T" * N)
    said = replace(run, records=[replace(r, probability=0.9, depth=5.0) for r in run.records])
    headings = ["Probabilities" in run_report("title", "", [evaluate(one)]) for one in (run, said)]
    assert headings == [False, True]


class OnePointLocalizer:
    """Says that one point agrees and one does not, on an image shrunk to half."""

    map = SimpleNamespace(map_from_keyframe=torch.eye(4, dtype=torch.float64)[None], xyz=np.zeros((1, 3)))

    def __init__(self, success=True):
        self.success = success

    def prepare(self, image, camera):
        return SimpleNamespace(camera=camera.scaled(0.5, 0.5, 160, 120))

    def localize_prepared(self, prepared, start):
        details = SimpleNamespace(
            pixels=torch.tensor([[40.0, 30.0], [120.0, 90.0], [80.0, 80.0]]),
            visible=torch.tensor([True, True, False]),
            inliers=torch.tensor([True, False, False]),
        )
        return FrameAlignment(start, torch.eye(6), self.success, "", 0.1, 0.5, 1.0, 3, 1, {}, details)


def grey_frame() -> CameraFrame:
    camera = Camera("pinhole", 320, 240, torch.tensor([200.0, 200, 160, 120], dtype=torch.float64))
    return CameraFrame(T0, np.full((240, 320), 128, np.uint8), camera)


def test_overlay_puts_the_points_where_they_are():
    frame, pose = grey_frame(), torch.eye(4, dtype=torch.float64)
    image = draw_overlay(OnePointLocalizer(), frame, pose)
    assert image.shape == (720, 960, 3)
    for (x, y), colour in (((40, 30), AGREES), ((120, 90), DISAGREES)):
        column, row = round((x + 0.5) * 6 - 0.5), round((y + 0.5) * 6 - 0.5)
        assert np.abs(image[row, column].astype(int) - colour).max() < 10
    assert (image[480:490, 480:490] == 128).all()  # the invisible point is not drawn
    assert draw_overlay(OnePointLocalizer(success=False), frame, pose) is None


def test_page_needs_nothing_from_outside_and_escapes_text():
    page = Page("<title>", "a & b")
    plot = run_plots.plot_times([evaluated()], "total", "x")
    page.cards([Card("1 <m>", "label", "note")])
    page.problems(["<script>alert(1)</script>"])
    page.notes(["<b>note"])
    page.table([("", "x"), ("row", "<1>")], ["#000"], {(0, 0)})
    page.groups(["<run>"], summary([figures(recording())]))
    page.plot(plot, plot, "times & more")
    page.pictures([Picture(np.zeros((10, 10, 3), np.uint8), caption="picture")])
    page.legend([("#fff", "<label>")])
    page.facts({"<name>": "<value>"})
    text = page.html()
    assert "&lt;title&gt;" in text and "a &amp; b" in text and "<script" not in text
    for raw in ("<run>", "<label>", "<name>", "<value>", "<1>", "<b>note"):
        assert raw not in text
    assert not re.search(r'(src|href|srcset)="(?!data:)', text) and "http" not in text and "@import" not in text
    assert text.count("data:image/png") == 2 and text.count("data:image/jpeg") == 1


def test_report_of_a_live_run():
    heard = recording()
    result = evaluate(live_run.as_run(heard, TRUTH, TRUTH))
    frame = grey_frame()
    bag = SimpleNamespace(
        base_from_camera=BASE_FROM_CAMERA,
        frames=lambda wanted: [CameraFrame(s, frame.image, frame.camera) for s in TRUTH.stamps_ns.tolist() if wanted(s)],
    )
    scene = scene_of(result, SimpleNamespace(map=OnePointLocalizer.map, aligner=OnePointLocalizer()), bag)
    text = run_report("title", "lead", [result], scene, problems=["it is bad"])
    assert "100.0 %" in text and "2 cm" in text and "90 % of the points agree" in text and "it is bad" in text
    assert text.count("data:image/jpeg") == 6 and "From image to pose" in text and "Age when published" in text


def test_report_of_several_runs():
    runs = [evaluated(name="<ours>"), evaluated("TTLLLTTT", name="rival", metres=0.1, about={"played": "<twice>"})]
    text = run_report("title", "", runs, notes=["mind this"])
    assert "&lt;ours&gt;" in text and "<ours>" not in text and "mind this" in text and "&lt;twice&gt;" in text
    assert 'class="best"' in text and "lost: look (3 images)" in text and "data:image/jpeg" not in text
