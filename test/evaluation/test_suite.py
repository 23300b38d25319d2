# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The robustness suite: what is planned, scored, kept; end to end on a small simulated drive, with rivals and exported bags."""

import json
import re

import numpy as np
import pytest
import torch
from test_track_offline import FRAMES, PERIOD, SLIP, T0, TrueLocalizer, write_drive

from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline, suite
from pixloc_ros.evaluation.altered_bag import export_bag
from pixloc_ros.evaluation.degradation import KINDS, Degradation, degraded
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame, OdometryMessage
from pixloc_ros.io.trajectory import Trajectory, twist_of_poses, write_tum
from pixloc_ros.report.suite import MEANING, suite_page
from pixloc_ros.tracking.tracker import Tracker

SPEED = 1.0
"""Metres a second, of the drive that write_drive writes."""


def pixloc(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def suite_of(scene) -> tuple:
    return ("evaluate", "--suite", "--map", scene.map, scene.drive)


@pytest.fixture
def drive(tmp_path):
    """Twelve numbered frames, ten a second, and odometry that is a tenth too long."""
    with BagReader(write_drive(tmp_path / "b")) as bag:
        yield suite.Experiment(bag, bag.truth(), clear_s=0.0)


def a_method(name="method", run=lambda degraded: degraded.truth(), tracked=frozenset(), calls=None):
    def track(degraded):
        if calls is not None:
            calls.append((name, str(degraded.cause)))
        return suite.Tracked(run(degraded), tracked)

    return suite.Method(name, track)


# ---- the plan


def test_a_plan_has_the_drive_as_recorded_once_and_all_severities():
    cells = suite.plan()
    assert len(cells) == 1 + sum(len(kind.severities) for kind in KINDS.values()) == len({suite.cell_name(c) for c in cells})
    assert [str(cell) for cell in suite.plan(["blur"], [20, 10, 0, 10])] == ["as recorded", "10 px of blur", "20 px of blur"]
    assert {cell.kind for cell in suite.plan(["time", "dark"])[1:]} == {"time", "dark"}
    assert set(MEANING) == set(KINDS)


# ---- what is scored


def test_all_images_that_arrive_are_scored_but_those_of_the_map_and_of_the_clear_start(drive):
    def scored(kind="blur", severity=15, **changes):
        changed = suite.Experiment(drive.bag, drive.truth, **{"clear_s": 0.0, **changes})
        return ((changed.scored_stamps(changed.degraded(Degradation(kind, severity))) - T0) // PERIOD).tolist()

    assert scored() == list(range(FRAMES))
    assert scored(skip_map_frames=3) == [1, 2, 4, 5, 7, 8, 10, 11]
    assert scored(clear_s=0.95) == [10, 11]
    assert scored("time", 40, skip_map_frames=2) == [1, 3, 5, 7, 9, 11]
    left = scored("drops", 50)
    assert 2 <= len(left) <= 10 and set(scored("drops", 50, skip_map_frames=2)) == {k for k in left if k % 2}


def test_a_cell_counts_missing_wrong_and_dead_reckoned_poses(drive):
    poses = drive.truth.map_from_body.clone()
    poses[:, 1, 3] += 0.01
    poses[2:4, 0, 3] += 0.7
    given = np.arange(FRAMES) != 5
    estimate = Trajectory(drive.truth.stamps_ns[given], poses[given])
    tracked = frozenset(drive.truth.stamps_ns[[0, 1, 2, 4]].tolist())
    cell = suite.measure(drive, a_method(run=lambda degraded: estimate, tracked=tracked), Degradation("blur", 0))
    assert cell["frames"] == FRAMES and cell["kind"] is None
    assert cell["published_fraction"] == pytest.approx(11 / 12) and cell["tracked_fraction"] == pytest.approx(4 / 12)
    assert cell["recall"][suite.RIGHT] == pytest.approx(9 / 12)
    assert cell["false_tracked_frames"] == 1  # the other wrong one was given as dead reckoned
    assert cell["translation_error_median_m"] == pytest.approx(0.01, abs=1e-9)
    assert suite.measure(drive, suite.Method("none", lambda degraded: None), Degradation("blur", 5)) is None


def test_a_time_offset_counts_the_way_driven_meanwhile_and_the_pose_of_the_image_is_told_besides(drive):
    # This localizer sees where the robot was at the image, whatever its stamp says.
    method = a_method(run=lambda bag: offline.run_bag(Tracker(TrueLocalizer()), bag).estimate)
    cell = suite.measure(drive, method, Degradation("time", 50))
    assert cell["frames"] == FRAMES - 1  # of the last stamp the truth is not known
    assert cell["translation_error_median_m"] == pytest.approx(0.05 * SPEED, rel=0.02)
    assert cell["at_exposure"]["translation_error_median_m"] < 1e-6 and cell["at_exposure"]["frames"] == FRAMES


def test_odometry_alone_starts_from_the_truth(drive):
    cell = suite.measure(drive, suite.odometry_method(), Degradation("blur", 15))
    assert cell["tracked_fraction"] == 0 and cell["frames"] == FRAMES
    assert cell["translation_error_p95_m"] == pytest.approx((SLIP - 1) * 1.05, rel=0.1)
    noisy = suite.measure(drive, suite.odometry_method(), Degradation("odometry", 40))
    assert noisy["translation_error_median_m"] > 2 * cell["translation_error_median_m"]


# ---- what is kept


def test_finished_cells_are_kept_when_a_run_is_killed(drive, tmp_path):
    cells, calls = suite.plan(["blur"]), []
    results = suite.Results.open(tmp_path / "suite.json", {"name": "x"})

    def killed(done, of, degradation, cell):
        assert of == 2 * len(cells)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.run(drive, [a_method("a", calls=calls), a_method("b", calls=calls)], cells, results, killed)
    assert len(calls) == 5
    again = suite.Results.open(tmp_path / "suite.json", {"name": "x"})
    assert len(again.cells) == 5
    seen = []
    suite.run(drive, [a_method("a", calls=calls), a_method("b", calls=calls)], cells, again, lambda *cell: seen.append(cell))
    assert len(calls) == 10 == len(set(calls)) and len(seen) == 10 and len(again.cells) == 10
    # Another seed is another drive; what is measured again takes the place of the old.
    other = suite.Experiment(drive.bag, drive.truth, clear_s=0.0, seed=1)
    suite.run(other, [a_method("a", calls=calls)], cells, again)
    assert len(calls) == 15 and len(again.cells) == 10


def test_a_file_that_holds_something_else_is_not_overwritten(tmp_path):
    for text in ("{", "[]", '{"format": "other", "version": 1, "cells": []}', '{"format": "pixloc robustness suite"}'):
        (tmp_path / "suite.json").write_text(text)
        with pytest.raises(InputError, match="move it away"):
            suite.Results.open(tmp_path / "suite.json", {})
        assert (tmp_path / "suite.json").read_text() == text


def test_a_drive_without_truth_is_refused(tmp_path):
    with BagReader(write_drive(tmp_path / "b", truth=False)) as bag:
        results = suite.Results.open(tmp_path / "suite.json", {})
        with pytest.raises(InputError, match="--truth"):
            suite.run(suite.Experiment(bag, bag.truth()), [a_method()], suite.plan(["blur"]), results)


# ---- tables


def a_curve(*recalls):
    return [{"severity": s, "recall": {suite.RIGHT: r}} for s, r in zip((0, 5, 15, 30), recalls)]


def test_a_method_holds_up_to_the_last_severity_before_the_first_failure():
    assert suite.holds_up_to(a_curve(1, 1, 0.95, 0.9)) == "≥ 30"
    assert suite.holds_up_to(a_curve(1, 1, 0.8, 0.95)) == "5"
    assert suite.holds_up_to(a_curve(1, 0.5, 0.95, 0.95)) == "< 5"
    assert suite.holds_up_to(a_curve(0.5, 1, 1, 1)) == suite.holds_up_to(a_curve(1)) == suite.holds_up_to([]) == "–"


# ---- end to end


def test_the_suite_end_to_end(scene, tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- suite tiny: begin -->\nold\n<!-- suite tiny: end -->\nafter\n")
    options = ("--images", scene.images, "--clear-start", 0.5, "-o", out, "--write", page)
    call = (*suite_of(scene), *options, "--name", "tiny")
    assert pixloc(*call, "--kinds", "occlusion", "--severities", "30") == 0
    assert pixloc(*call, "--kinds", "calibration", "--rivals") == 0
    said = capsys.readouterr().out
    assert "Occlusion (% covered)" in said and str(out / "suite.html") in said
    data = json.loads((out / "suite.json").read_text())
    by_cell = {(c["method"], c["kind"], c["severity"]): c for c in data["cells"]}
    assert len(by_cell) == len(data["cells"]) == 4 * 2 + 2 * 4
    for method in ("pixloc", "KLT + PnP", "ORB + PnP"):
        cell = by_cell[method, None, 0]
        assert cell["recall"]["0.05m_1deg"] == 1 and cell["tracked_fraction"] == 1 and cell["false_tracked_frames"] == 0
    assert by_cell["pixloc", None, 0]["translation_error_median_m"] < 0.005
    assert by_cell["pixloc", "occlusion", 30]["recall"][suite.RIGHT] == 1
    errors = [by_cell["pixloc", "calibration", s]["translation_error_median_m"] for s in KINDS["calibration"].severities]
    assert errors[-1] < 0.01, "a focal length that is 5 % wrong is corrected"
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "| Occlusion (% covered) |" in text
    picture = page.parent / re.search(r"\((images/suite_tiny\.png)\)", text)[1]
    assert picture.read_bytes().startswith(b"\x89PNG") and (out / "suite.md").is_file()
    html = (out / "suite.html").read_text()
    assert html.count("<figure") == 3 and "http" not in html.replace("http://www.w3.org", "")
    for kind in ("occlusion", "calibration"):
        assert KINDS[kind].title in html and MEANING[kind] in html.replace("&#x27;", "'")
    # Again, nothing is measured: the cells are there.
    before = (out / "suite.json").read_bytes()
    assert pixloc(*call, "--kinds", "occlusion", "--severities", "30") == 0
    assert (out / "suite.json").read_bytes() == before
    # Only the poses of the page's own drive go into its section.
    assert pixloc(*call[:-1], "other", "--kinds", "occlusion", "--severities", "30") == 2
    assert "suite other: begin" in capsys.readouterr().err


def test_a_page_of_one_method_and_of_nothing_is_made_too(tmp_path):
    results = suite.Results(tmp_path / "x", {"name": "n", "bag": "b", "map": "m", "seed": 0})
    assert "Robustness of n" in suite_page(results)
    cell = {"method": "pixloc", "kind": None, "severity": 0, "settings": "", "recall": {suite.RIGHT: 0.0}}
    cell |= {"frames": 0, "tracked_fraction": 0.0, "false_tracked_frames": 0}
    cell |= {"translation_error_median_m": None, "rotation_error_median_deg": None}
    results.cells = [cell, {**cell, "kind": "blur", "severity": 5}]
    assert "no pose" in suite_page(results, ["a note"])


def test_other_systems_run_on_exported_bags_and_are_scored_beside(scene, tmp_path, capsys):
    call = (*suite_of(scene), "--kinds", "time", "--severities", "50")
    assert pixloc(*call, "--export", tmp_path / "bags") == 0
    assert {p.name for p in (tmp_path / "bags").iterdir()} == {"as_recorded", "time_50"}
    with BagReader(tmp_path / "bags" / "time_50") as late, BagReader(scene.drive) as bag:
        stamps = np.array(list(late.image_stamps()))
        assert (stamps - 50_000_000).tolist() == list(bag.image_stamps())
        truth = late.truth()
    poses, known = truth.at(stamps, 250_000_000)
    moved = poses[known] @ se3.se3_exp(torch.tensor([0.02, 0, 0, 0, 0, 0], dtype=torch.float64))
    (tmp_path / "poses").mkdir()
    # Stamps of other programs are rounded.
    write_tum(tmp_path / "poses" / "time_50.tum", Trajectory(stamps[known] // 1000 * 1000, moved))
    assert pixloc(*call, "--external", f"other={tmp_path / 'poses'}", "-o", tmp_path / "out", "--clear-start", "0.5") == 0
    cells = {(c["method"], c["severity"]): c for c in json.loads((tmp_path / "out" / "suite.json").read_text())["cells"]}
    assert ("other", 0) not in cells and cells["other", 50]["tracked_fraction"] == 1
    assert cells["other", 50]["translation_error_median_m"] == pytest.approx(0.02, abs=1e-6)
    capsys.readouterr()
    for external in ("other", "pixloc=/x", f"other={tmp_path / 'none'}"):
        assert pixloc(*call, "--external", external, "-o", tmp_path / "out") == 2
        assert "NAME=DIR" in capsys.readouterr().err


EXPORTED = {"blur": 0, "occlusion": 30, "odometry": 20, "calibration": 5, "time": 30, "drops": 50}


@pytest.mark.parametrize("kind", EXPORTED)
def test_an_exported_bag_shows_what_the_tracker_sees(scene, tmp_path, kind):
    with BagReader(scene.drive) as bag:
        drive = degraded(bag, Degradation(kind, EXPORTED[kind]), clear_s=0.5)
        export_bag(tmp_path / "bag", drive)
        with BagReader(tmp_path / "bag") as written:
            events, again = list(drive.events()), list(written.events())
            assert len(events) == len(again)
            for one, other in zip(events, again):
                assert type(one) is type(other) and one.stamp_ns == other.stamp_ns
                if isinstance(one, CameraFrame):
                    assert np.array_equal(one.image, other.image)
                    torch.testing.assert_close(one.camera.params, other.camera.params, rtol=1e-12, atol=0)
                elif isinstance(one, OdometryMessage):
                    torch.testing.assert_close(one.odom_from_base, other.odom_from_base, rtol=0, atol=1e-9)
                    np.testing.assert_allclose(one.twist, other.twist, rtol=0, atol=1e-6)
            assert torch.equal(written.truth().map_from_body, bag.truth().map_from_body)
            torch.testing.assert_close(written.base_from_camera, bag.base_from_camera, rtol=0, atol=0)


def test_the_twist_of_noisy_odometry_fits_its_poses_as_well_as_before(scene):
    def misfit(drive) -> np.ndarray:
        messages = [event for event in drive.events() if isinstance(event, OdometryMessage)]
        poses = torch.stack([message.odom_from_base for message in messages])
        twists = np.array([message.twist for message in messages])
        assert np.abs(twists).max() > 0.1
        return twists - twist_of_poses(np.array([message.stamp_ns for message in messages]), poses)

    with BagReader(scene.drive) as bag:
        drive = degraded(bag, Degradation("odometry", 20))
        np.testing.assert_allclose(misfit(drive), misfit(bag), rtol=0, atol=1e-9)


def test_export_does_not_write_over_something_else(scene, tmp_path):
    (tmp_path / "as_recorded").mkdir()
    (tmp_path / "as_recorded" / "thesis.tex").write_text("mine")
    code = pixloc(*suite_of(scene), "--kinds", "time", "--export", tmp_path)
    assert code == 2 and (tmp_path / "as_recorded" / "thesis.tex").read_text() == "mine"


def test_arguments_that_contradict_each_other_are_refused(scene, tmp_path, capsys):
    for extra, words in (
        ((), "give -o"),
        (("-o", tmp_path, "--severities", 3), "--kinds"),
        (("-o", tmp_path, "--rivals", "orb"), "--images"),
        (("-o", tmp_path, "--images", tmp_path), "--images"),
        (("-o", tmp_path, "--seed", -1), "--seed"),
        (("-o", tmp_path, "--kinds", "fog"), "fog"),
        (("-o", tmp_path, "--kinds", "blur", "dark", "--severities", 1), "--kinds"),
        (("-o", tmp_path, "--kinds", "occlusion", "--severities", 120), "from 0 to 90"),
        (("-o", tmp_path, "--truth", tmp_path / "none.tum"), "none.tum"),
    ):
        assert pixloc(*suite_of(scene), *extra) == 2
        assert words in capsys.readouterr().err


def test_the_truth_may_come_from_a_file(scene, tmp_path):
    with BagReader(scene.drive) as bag:
        truth = bag.truth()
    shift = torch.eye(4, dtype=torch.float64)
    shift[2, 3] = 0.04
    write_tum(tmp_path / "truth.tum", Trajectory(truth.stamps_ns, truth.map_from_body @ shift))
    options = ("--truth", tmp_path / "truth.tum", "--kinds", "time", "--severities", 10, "--clear-start", 0.5)
    assert pixloc(*suite_of(scene), *options, "-o", tmp_path) == 0
    cell = next(c for c in json.loads((tmp_path / "suite.json").read_text())["cells"] if c["method"] == "pixloc")
    assert cell["translation_error_median_m"] == pytest.approx(0.04, abs=0.004)
