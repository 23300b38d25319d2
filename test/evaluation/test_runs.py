# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Runs: their figures, the folder they are kept in, and what `pixloc evaluate` makes of files and bags."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bag_writing import BASE_FROM_CAMERA, BagWriter

from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.evaluation.reliability import calibration_error, judged
from pixloc_ros.evaluation.run_inputs import RunInputs, read_runs
from pixloc_ros.evaluation.runs import BagRun, FrameRecord, read_run, write_run
from pixloc_ros.evaluation.tables import format_summary
from pixloc_ros.evaluation.usage import Usage, UsageMeter
from pixloc_ros.geometry import se3
from pixloc_ros.io.trajectory import Trajectory, read_kitti, read_stamps, write_benchmark_poses, write_tum
from pixloc_ros.tracking.types import TrackState

BAG_T0 = 1_700_000_000 * 10**9
NONE = Trajectory.from_poses([])
PERIOD = 100_000_000


def walk(n: int, period: int = PERIOD, step: float = 0.1) -> Trajectory:
    """Forwards at `step` metres a pose, turning."""
    xi = torch.zeros(n, 6, dtype=torch.float64)
    xi[:, 0], xi[:, 5] = torch.arange(n) * step, torch.arange(n) * 0.02
    return Trajectory(BAG_T0 + np.arange(n, dtype=np.int64) * period, se3.se3_exp(xi))


def off(track: Trajectory, metres: float = 0.02) -> Trajectory:
    poses = track.map_from_body.clone()
    poses[:, 1, 3] += metres
    return Trajectory(track.stamps_ns, poses)


def some(track: Trajectory, kept) -> Trajectory:
    kept = np.array(list(kept))
    return Trajectory(track.stamps_ns[kept], track.map_from_body[kept])


def run_with(states: str, metres=0.02, **changes) -> BagRun:
    """A record for each letter: T, D with a pose; L, R, I without; t: TRACKING without a pose (dropped)."""
    names = {"T": "TRACKING", "D": "DEGRADED", "L": "LOST", "R": "RELOCALIZING", "I": "INITIALIZING", "t": "TRACKING"}
    track = walk(len(states))
    covariance, times, records = torch.eye(6, dtype=torch.float64) * 1e-4, {"total": 20.0, "alignment": 5.0}, []
    for letter, stamp, pose in zip(states, track.stamps_ns.tolist(), off(track, metres).map_from_body):
        given, message = ((pose, covariance), "") if letter in "TD" else ((None, None), "lost: look")
        records.append(FrameRecord(stamp, TrackState[names[letter]], *given, times, 0.9, message))
    return BagRun(records, track, track, **changes)


# ---- how a drive went


def test_probabilities_are_held_against_the_truth_and_kept(tmp_path):
    """Poses 2 cm off are right where things are further away than 1 m; who says nothing of them is not judged."""
    run = run_with("TTTTDLTT")
    said = [(0.9, 5.0), (0.3, 0.5), (0.8, 1.1), (0.7, 0.9), (0.6, 5.0), (0.1, 5.0), (float("nan"), 5.0), (0.9, float("inf"))]
    records = [replace(r, probability=p, depth=d) for r, (p, d) in zip(run.records, said, strict=True)]
    run = replace(run, records=records)
    write_run(tmp_path, run)
    for one in (run, read_run(tmp_path)):
        probabilities, right = judged(evaluate(one))
        assert probabilities.tolist() == [0.9, 0.3, 0.8, 0.7] and right.tolist() == [True, False, True, False]
    assert calibration_error(probabilities, right) == pytest.approx((0.1 + 0.3 + 0.2 + 0.7) / 4)
    # Of an earlier version, which did not know of them.
    old = json.loads((tmp_path / "run.json").read_text())
    for frame in old["frames"]:
        frame.pop("probability", None), frame.pop("depth", None)
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert [len(values) for values in judged(evaluate(read_run(tmp_path)))] == [0, 0]


def test_life_of_a_run_by_its_states():
    result = evaluate(run_with("IIITTTDLLRRTTtTTLLLT" + "T" * 5 + "LL"))
    figures = result.figures
    assert figures["frames"] == 27 and figures["published_frames"] == 14 and figures["completion"] == pytest.approx(14 / 27)
    assert figures["tracked_frames"] == 13
    assert figures["time_to_first_pose_s"] == pytest.approx(0.3)
    assert figures["losses"] == 3 and figures["losses_not_recovered"] == 1
    assert np.allclose(result.lost, [(0.7, 1.1), (1.6, 1.9), (2.5, 2.6)])
    assert figures["time_lost_s"] == pytest.approx(0.8) and figures["time_lost_fraction"] == pytest.approx(0.8 / 2.6)
    assert figures["time_to_recover_median_s"] == pytest.approx(0.35) and figures["time_to_recover_max_s"] == pytest.approx(0.4)
    assert figures["recall"]["0.05m_1deg"] == pytest.approx(14 / 27)
    json.dumps(figures, allow_nan=False)


def test_life_of_a_run_without_states():
    """A gap is a loss when it lasts; a skipped image is none."""
    states = "TTTTttTTTTTttttttttTTTtt"
    run = run_with(states)
    run = replace(run, records=[replace(r, state=None) for r in run.records])
    result = evaluate(run)
    assert np.allclose(result.lost, [(1.1, 1.9)])
    assert result.figures["losses"] == 1 and result.figures["time_to_recover_max_s"] == pytest.approx(0.8)
    assert result.figures["tracked_frames"] is None and result.figures["states"] == {}


def test_confident_but_wrong():
    run = run_with("TTTTDDDD", metres=0.6)
    figures = evaluate(run).figures
    assert (figures["false_tracked_frames"], figures["false_tracked_fraction"]) == (4, 1.0)
    bare = replace(run, records=[replace(r, state=None) for r in run.records])
    assert evaluate(bare).figures["false_tracked_frames"] == 8  # who says no states claims every pose
    assert evaluate(run_with("TTTT", metres=0.4)).figures["false_tracked_fraction"] == 0
    assert evaluate(run_with("DDLL", metres=0.6)).figures["false_tracked_fraction"] is None


def test_cost():
    run = run_with("TTTTTTTTTTT", usage=Usage(wall_s=0.5, cpu_s=0.8, peak_mib=123.0), dropped_frames=2, skip_map_frames=2)
    run = replace(run, records=[replace(r, latency_ms=30.0 + i, age_ms=40.0 + i) for i, r in enumerate(run.records)])
    result = evaluate(run)
    figures = result.figures
    # Every second image is in the map.
    assert figures["scored_frames"] == 5 and result.scored.tolist() == [False, True] * 5 + [False]
    assert figures["real_time_factor"] == pytest.approx(2.0) and figures["cpu_cores"] == pytest.approx(1.6)
    assert figures["cpu_ms_per_frame"] == pytest.approx(800 / 11) and figures["memory_peak_mib"] == 123
    assert figures["latency_p50_ms"] == 35 and figures["latency_max_ms"] == 40 and figures["age_p50_ms"] == 45
    assert figures["dropped_fraction"] == pytest.approx(2 / 11)


def test_meter_measures_this_process():
    meter = UsageMeter()
    total = sum(i * i for i in range(2_000_000))
    used = meter.read()
    assert total > 0 and used.wall_s > 0 and 0 < used.cpu_s <= used.wall_s * 64 and used.peak_mib > 10
    gone = UsageMeter(2**22 + 1).read()
    assert gone.cpu_s is None and gone.peak_mib is None


# ---- the folder of a run


def test_run_folder_round_trip(tmp_path):
    run = run_with(
        "IITTDLRT", name="first", about={"bag": "drive"}, usage=Usage(1.0, 2.0, None), dropped_frames=1, skip_map_frames=2
    )
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    records = [
        replace(r, covariance=root @ root.T if r.covariance is not None else None, latency_ms=3.5, message="hm")
        for r in run.records
    ]
    records[0] = replace(records[0], unusable=True, inlier_fraction=float("nan"))
    run = replace(run, records=records)
    write_run(tmp_path, run)
    back = read_run(tmp_path)
    ours, theirs = evaluate(run).figures, evaluate(back).figures
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert theirs[key] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), key
    for a, b in zip(run.records, back.records):
        assert (a.state, a.message, a.unusable, a.timings_ms, a.latency_ms) == (b.state, b.message, b.unusable, b.timings_ms, 3.5)
        assert a.covariance is None and b.covariance is None or torch.allclose(a.covariance, b.covariance)
    assert (back.name, back.about, back.usage) == ("first", {"bag": "drive"}, run.usage)


def test_run_without_truth_or_poses(tmp_path):
    write_run(tmp_path, run_with("TTT"))
    run = BagRun([FrameRecord(BAG_T0, TrackState.LOST)], NONE, NONE)
    write_run(tmp_path, run)
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "poses.tum"}  # those of the run before are gone
    back = read_run(tmp_path)
    assert len(back.records) == 1 and len(back.truth) == 0 and evaluate(back).figures["completion"] == 0
    with pytest.raises(InputError, match="nothing says the truth"):
        read_runs([str(tmp_path)], RunInputs())


SPOILT = {
    "{": "is not what",
    "[]": "is not what",
    "\xff\x00": "is not what",
    ('"frames"', '"f"'): "is not what",
    (str(BAG_T0), "1" * 30): "is not what",
    ("TRACKING", "FLYING"): "FLYING",
    ('"version": 1', '"version": 9'): "version 9",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_damaged_run_files_are_refused(tmp_path, spoil):
    write_run(tmp_path, run_with("TTT"))
    path = tmp_path / "run.json"
    path.write_text(spoil if isinstance(spoil, str) else path.read_text().replace(*spoil))
    with pytest.raises(InputError, match=SPOILT[spoil]):
        read_run(tmp_path)


# ---- files and bags


def figures_of(paths, **inputs):
    runs, notes = read_runs([str(path) for path in paths], RunInputs(**inputs))
    return [evaluate(run).figures for run in runs], notes


def test_a_dense_truth_counts_at_the_runs_own_rate(tmp_path):
    """A motion capture at 100 Hz; a run at 10 Hz that misses half a second in the middle and another that begins later."""
    truth = walk(500, 10_000_000, 0.01)
    images = truth.stamps_ns[3::10]
    poses, _ = truth.at(images, 10**9)
    track = Trajectory(images, poses)
    write_tum(tmp_path / "truth.tum", truth)
    write_tum(tmp_path / "gap.tum", off(some(track, [i for i in range(50) if not 20 <= i < 26])))
    write_tum(tmp_path / "late.tum", off(some(track, range(10, 50))))
    (gap, late), notes = figures_of([tmp_path / "gap.tum", tmp_path / "late.tum"], truth=tmp_path / "truth.tum")
    assert gap["frames"] == 50 and gap["published_frames"] == 44 and gap["losses"] == 1
    assert late["frames"] == 50 and late["published_frames"] == 40 and late["time_to_first_pose_s"] == pytest.approx(1.0)
    assert len(notes) == 2 and "10 a second" in notes[0] and "--times" in notes[0]
    # With the images' times, what comes before the first pose counts.
    (tmp_path / "times.txt").write_text("".join(f"{s / 1e9:.9f} rgb/x.png\n" for s in images))
    (alone,), notes = figures_of([tmp_path / "late.tum"], truth=tmp_path / "truth.tum", times=tmp_path / "times.txt")
    assert alone["frames"] == 50 and alone["published_frames"] == 40 and notes == []


def test_stamps_in_any_order_and_repeated_count_once_and_are_told(tmp_path):
    track = walk(30)
    for name, poses in (("truth", track), ("run", off(track))):
        write_tum(tmp_path / name, poses)
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        twice = lines[7].split()[0] + " 9 9 9 0 0 0 1\n"
        (tmp_path / name).write_text("\ufeff" + "".join([*lines[20:], twice, *lines[:20]]))
    (tmp_path / "times").write_text("".join(f"{stamp / 1e9:.9f}\r\n" for stamp in [*track.stamps_ns[::-1], track.stamps_ns[3]]))
    (figures,), notes = figures_of([tmp_path / "run"], truth=tmp_path / "truth", times=tmp_path / "times")
    assert figures["frames"] == 30 and figures["translation_error_max_m"] == pytest.approx(0.02, rel=1e-4)
    assert [note.split(":")[0] for note in notes] == ["--times", "the truth", "run"] and all("1 in all" in n for n in notes)


def test_poses_without_an_image_are_told(tmp_path):
    track = walk(40)
    write_tum(tmp_path / "truth.tum", track)
    between = Trajectory(np.sort(np.concatenate((track.stamps_ns, track.stamps_ns[:10] + PERIOD // 2))), walk(50).map_from_body)
    write_tum(tmp_path / "run.tum", between)
    _, notes = figures_of([tmp_path / "run.tum"], truth=tmp_path / "truth.tum")
    assert "10 of 50 poses belong to no image" in notes[0]
    write_tum(tmp_path / "far.tum", Trajectory(track.stamps_ns + 10**12, track.map_from_body))
    with pytest.raises(InputError, match="far: no pose lies within 0.01 s"):
        figures_of([tmp_path / "far.tum"], truth=tmp_path / "truth.tum")


def test_folders_and_files_side_by_side(tmp_path):
    write_run(tmp_path / "ours", run_with("TTTTTTLLTT"))
    write_tum(tmp_path / "theirs.txt", off(some(walk(10), range(5)), 0.3))
    (ours, theirs), notes = figures_of([tmp_path / "ours", f"rival={tmp_path / 'theirs.txt'}"])
    assert ours["frames"] == theirs["frames"] == 10 and theirs["completion"] == 0.5 and notes == []
    assert theirs["translation_error_median_m"] == pytest.approx(0.3)
    runs, _ = read_runs([str(tmp_path / "ours"), f"rival={tmp_path / 'theirs.txt'}"], RunInputs())
    assert [run.name for run in runs] == ["ours", "rival"]
    text = format_summary(["ours", "rival"], [ours, theirs])  # of one run the covariances are not known
    assert "inside the 95 % ellipsoid (%)" in text and "NEES, mean (6 is right)" in text
    (tmp_path / "other").mkdir()
    write_tum(tmp_path / "other" / "theirs.txt", walk(10))
    twice = [str(tmp_path / "theirs.txt"), str(tmp_path / "other" / "theirs.txt")]
    runs, _ = read_runs(twice, RunInputs(truth=tmp_path / "ours"))
    assert [run.name for run in runs] == [f"{tmp_path.name}/theirs", "other/theirs"]


def write_kitti(path, track):
    np.savetxt(path, track.map_from_body[:, :3].reshape(-1, 12).numpy(), fmt="%.12g")


def test_kitti_with_and_without_times(tmp_path):
    track = walk(30, step=1.0)
    write_kitti(tmp_path / "truth.txt", track)
    write_kitti(tmp_path / "run.txt", off(track))
    assert torch.allclose(read_kitti(tmp_path / "truth.txt"), track.map_from_body, atol=1e-9)
    (figures,), _ = figures_of([tmp_path / "run.txt"], truth=tmp_path / "truth.txt")
    assert figures["frames"] == 30 and figures["duration_s"] is None and "time_lost_images" in figures
    assert figures["relative_step"] == "10 m" and figures["translation_error_max_m"] == pytest.approx(0.02)
    (tmp_path / "times.txt").write_text("".join(f"{i * 0.1:e}\n" for i in range(30)))
    assert read_stamps(tmp_path / "times.txt")[:3].tolist() == [0, PERIOD, 2 * PERIOD]
    (figures,), _ = figures_of([tmp_path / "run.txt"], truth=tmp_path / "truth.txt", times=tmp_path / "times.txt")
    assert figures["duration_s"] == pytest.approx(2.9) and figures["completion"] == 1
    write_kitti(tmp_path / "short.txt", some(track, range(20)))
    write_tum(tmp_path / "run.tum", track)
    for path, message in ((tmp_path / "short.txt", "20 poses, but there are 30 images"), (tmp_path / "run.tum", "tum file")):
        with pytest.raises(InputError, match=message):
            figures_of([path], truth=tmp_path / "truth.txt")
    with pytest.raises(InputError, match="says no times"):
        figures_of([tmp_path / "run.txt"], truth=tmp_path / "run.tum")
    (tmp_path / "bad.txt").write_text("1 0 0 0 0 2 0 0 0 0 1 0\n")
    with pytest.raises(InputError, match="bad.txt:1 has a 3x3 part that is not a rotation"):
        figures_of([tmp_path / "bad.txt"], truth=tmp_path / "truth.txt")


def test_benchmark_poses_go_by_their_names(tmp_path):
    track = walk(20)
    named = {f"{i}.jpg": se3.inverse(pose) for i, pose in enumerate(track.map_from_body)}
    moved = {f"{i}.jpg": se3.inverse(pose) for i, pose in enumerate(off(track, 0.04).map_from_body)}
    write_benchmark_poses(tmp_path / "truth.txt", named)
    write_benchmark_poses(tmp_path / "run.txt", dict(list(moved.items())[::-2]))
    (figures,), _ = figures_of([tmp_path / "run.txt"], truth=tmp_path / "truth.txt")
    assert figures["frames"] == 20 and figures["completion"] == 0.5 and figures["recall"]["0.05m_1deg"] == 0.5
    assert figures["translation_error_max_m"] == pytest.approx(0.04) and "relative_step" not in figures
    write_benchmark_poses(tmp_path / "windows.txt", {f".\\{name.upper()}": pose for name, pose in moved.items()})
    assert figures_of([tmp_path / "windows.txt"], truth=tmp_path / "truth.txt")[0][0]["completion"] == 1
    write_benchmark_poses(tmp_path / "other.txt", {"x.jpg": named["0.jpg"]})
    with pytest.raises(InputError, match="names none of the images"):
        figures_of([tmp_path / "other.txt"], truth=tmp_path / "truth.txt")
    write_tum(tmp_path / "a.tum", track)
    with pytest.raises(InputError, match="names images"):
        figures_of([tmp_path / "run.txt"], truth=tmp_path / "a.tum")


def write_bag(path, images=True):
    """Truth on a topic, as transforms map -> odom -> base with their own rates, and of a marker on the base."""
    track = walk(30)
    marker = np.eye(4)
    marker[:3, 3] = 0.1, 0.2, 0.3
    with BagWriter(path) as bag:
        bag.transform("/tf_static", BAG_T0, "base_link", "camera_optical", BASE_FROM_CAMERA)
        bag.transform("/tf_static", BAG_T0, "base_link", "marker", marker)
        map_from_odom = se3.se3_exp(torch.tensor([1.0, 2, 0, 0, 0, 0.5], dtype=torch.float64))
        for i, (stamp, pose) in enumerate(zip(track.stamps_ns.tolist(), track.map_from_body)):
            if images:
                bag.info(stamp, 80, 64, 70.0)
                bag.image(stamp, np.zeros((64, 80), np.uint8), 80, 64)
            bag.truth(stamp, pose.numpy(), "/mocap/pose")
            bag.truth(stamp, off(track, 1.0).map_from_body[i].numpy(), "/other/pose")
            bag.transform("/tf", stamp, "odom", "base_link", (se3.inverse(map_from_odom) @ pose).numpy())
            if i % 5 == 0 or i == 29:
                bag.transform("/tf", stamp, "map", "odom", map_from_odom.numpy())
    return path


@pytest.mark.parametrize("images", [True, False])
def test_truth_of_a_bag(tmp_path, images):
    track = walk(30)
    bag = write_bag(tmp_path / "bag", images)
    write_tum(tmp_path / "run.tum", off(some(track, range(20))))
    errors = {None: 0.02, "/mocap/pose": 0.02, "/other/pose": 0.98, "tf:map:base_link": 0.02, "tf:/map:marker": 0.02}
    for topic, error in errors.items():
        (figures,), _ = figures_of([tmp_path / "run.tum"], truth=bag, truth_topic=topic)
        assert figures["frames"] == 30 and figures["completion"] == pytest.approx(2 / 3), topic
        assert figures["translation_error_max_m"] == pytest.approx(error, abs=1e-9), topic
    (figures,), _ = figures_of([tmp_path / "run.tum"], truth=tmp_path / "run.tum", **({"times": bag} if images else {}))
    assert figures["frames"] == (30 if images else 20)
    if not images:
        with pytest.raises(InputError, match="0 topics of images"):
            figures_of([tmp_path / "run.tum"], truth=tmp_path / "run.tum", times=bag)
    for topic, message in (
        ("tf:map:nothing", "no transforms lead from map to nothing"),
        ("/none", "no truth topic /none"),
        ("none", "holds no truth"),
    ):
        with pytest.raises(InputError, match=message):
            figures_of([tmp_path / "run.tum"], truth=bag, truth_topic=topic)


@pytest.mark.parametrize("spoilt", ["run", "truth", None])
def test_quaternions_in_another_order_are_noticed(tmp_path, spoilt):
    for name, track in (("truth", walk(30)), ("run", off(walk(30)))):
        write_tum(tmp_path / f"{name}.tum", track)
    if spoilt:
        rows = [line.split() for line in (tmp_path / f"{spoilt}.tum").read_text().splitlines()]
        text = "".join(f"{' '.join([*row[:4], row[7], *row[4:7]])}\n" for row in rows)
        (tmp_path / f"{spoilt}.tum").write_text(text)
    _, notes = read_runs([str(tmp_path / "run.tum")], RunInputs(truth=tmp_path / "truth.tum"))
    expected = f"if the quaternions of {'the truth' if spoilt == 'truth' else 'run'} are qw qx qy qz"
    assert (expected in " ".join(notes)) if spoilt else not notes


def test_what_is_neither_run_nor_poses(tmp_path):
    write_tum(tmp_path / "a.tum", walk(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "words.txt").write_text("one two three\n")
    for path, message in (
        (tmp_path / "empty", "run.json"),
        (tmp_path / "empty.txt", "no line of poses"),
        (tmp_path / "words.txt", "words.txt:1: no line of poses"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(InputError, match=message):
            figures_of([path], truth=tmp_path / "a.tum")
    with pytest.raises(InputError, match="neither a bag nor"):
        figures_of([tmp_path / "a.tum"], truth=tmp_path / "empty")
