# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The published poses as a measurement in a filter with wheel odometry, over real DDS, with a camera that fails at times."""

import threading

import numpy as np
import pytest
import rclpy
import torch
import yaml
from node_harness import isolate
from rclpy.executors import SingleThreadedExecutor
from reference_filter import FilterNode, ReferenceFilter
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, odometry_in_map
from pixloc_ros.features import load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.io.bags import BagReader
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.node import conversions
from pixloc_ros.rig.replay import ReplayOptions, replay
from pixloc_sim.recordings import SimulationOptions, simulate

BLACKOUT_S = (3.0, 5.5)


def without_images(source, target, from_s: float, to_s: float):
    """A copy of a bag whose camera is silent for a while."""
    with Reader(source) as reader, Writer(target, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {
            c.id: writer.add_connection(c.topic, c.msgtype, msgdef=c.msgdef.data, rihs01=c.digest) for c in reader.connections
        }
        start = reader.start_time
        for connection, time_ns, data in reader.messages():
            seconds = (time_ns - start) * 1e-9
            if "image" in connection.topic and from_s <= seconds <= to_s:
                continue
            writer.write(topics[connection.id], time_ns, data)
    return target


def test_filter_weighs_by_covariance_and_handles_delay():
    """Straight on at 1 m/s with wheels that say 1.1 m/s: a late, exact pose corrects the past and all that came since."""
    filter_ = ReferenceFilter()

    def at(x):
        return conversions.matrix_from_euler((x, 0.0, 0.0), 0.0, 0.0, 0.0)

    exact, vague = 1e-8 * torch.eye(6, dtype=torch.float64), 1e4 * torch.eye(6, dtype=torch.float64)
    for step in range(101):
        filter_.add_odometry(step * 20_000_000, at(1.1 * step * 0.02))
        if step == 10:
            filter_.add_pose(5 * 20_000_000, at(0.1), exact)
        if step == 100:
            filter_.add_pose(50 * 20_000_000, at(1.0), exact)
    assert float(filter_.states[-1][0][0, 3]) == pytest.approx(1.0 + 1.1, abs=1e-3)
    before = filter_.states[-1][0].clone()
    filter_.add_pose(100 * 20_000_000, at(50.0), vague)
    assert torch.allclose(filter_.states[-1][0], before, atol=1e-3)


def test_fused_beats_each_alone(tmp_path):
    isolate()
    options = SimulationOptions(seconds=8.0, rate_hz=8.0, width=320, height=240, texel=0.02, seed=3)
    simulate(tmp_path / "scene", options)
    map_, _ = build_map_from_colmap(tmp_path / "scene" / "map", tmp_path / "scene" / "images", load_extractor())
    map_.save(tmp_path / "site.pixmap")
    bag_path = without_images(tmp_path / "scene" / "drive", tmp_path / "drive", *BLACKOUT_S)

    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("reference_filter", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)

    with BagReader(bag_path) as bag:
        truth, odometry = bag.truth(), bag.odometry()
        filter_node = FilterNode(node, bag.odometry_topic, "localization_node/pose")
        thread = threading.Thread(target=spin)
        thread.start()
        try:
            start_ns, start = offline.first_pose(bag, truth, None)
            replay(tmp_path / "site.pixmap", bag, start_ns, start, tmp_path / "node.log", ReplayOptions(all_frames=True))
        finally:
            stop.set()
            thread.join()
            executor.shutdown()
            node.destroy_node()
            context.try_shutdown()
    alone = odometry_in_map(odometry, truth)

    def error(stamps, poses):
        true, known = truth.at(stamps, TRUTH_GAP_NS)
        distances, angles = se3.pose_difference(true[known], torch.stack(poses)[known])
        return np.sqrt(np.mean(distances.numpy() ** 2)), np.sqrt(np.mean(angles.numpy() ** 2))

    stamps = [stamp for stamp, _ in filter_node.fused]
    assert len(stamps) > 200
    fused = error(stamps, [pose for _, pose in filter_node.fused])
    held = error(stamps, [pose for _, pose in filter_node.held])
    wheels, known = alone.at(stamps, TRUTH_GAP_NS)
    assert known.all()
    wheels = error(stamps, list(wheels))
    assert fused[0] < 0.7 * min(held[0], wheels[0]), (fused, held, wheels)
    assert fused[1] < min(held[1], wheels[1]), (fused, held, wheels)


def test_filter_configuration_takes_what_the_node_publishes(request):
    """config/ekf.yaml: the right topics, velocities of the wheels and the pose of the localizer, lagged data smoothed."""
    text = (request.config.rootpath / "config" / "ekf.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)["/**/ekf_filter_node"]["ros__parameters"]
    assert values["smooth_lagged_data"] and values["history_length"] >= 0.5
    assert values["world_frame"] == values["map_frame"] == "map" and values["publish_tf"]
    assert values["pose0"] == "localization_node/pose" and values["odom0"] == "odom"
    pose, wheels = values["pose0_config"], values["odom0_config"]
    assert len(pose) == len(wheels) == 15 and pose[:6] == [True] * 6 and not any(pose[6:])
    assert not any(wheels[:6]), "the odometry's own position drifts: only its velocities"
    assert [i for i, used in enumerate(wheels) if used] == [6, 7, 11]
    assert np.shape(values["process_noise_covariance"]) == (225,)
