# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Excerpts of public data sets for the tests: rendered images, written as each set writes its own.

What is written here follows the sets' documents and tools, not the readers under test: numbers go into the files from poses
`map_from_camera` with NumPy and SciPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from bag_writing import BagWriter
from scipy.spatial.transform import Rotation

from pixloc_ros.cli.main import main
from pixloc_ros.geometry import se3
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.colmap import ColmapModel, write_colmap_model
from pixloc_ros.io.messages import matrix, message_stamp
from pixloc_sim.drives import DriveOptions, SimulatedDrive, camera_mount
from pixloc_sim.lighting import Lighting
from pixloc_sim.recordings import MAPPING_SENSOR
from pixloc_sim.rendering import Renderer
from pixloc_sim.sparse_model import Keyframe, build_sparse_model
from pixloc_sim.world import build_world


def lens(model: str, width: int, height: int, *params: float) -> Camera:
    return Camera(model, width, height, torch.tensor(params, dtype=torch.float64))


KINECT = lens("pinhole", 640, 480, 525.0, 525.0, 319.5, 239.5)
OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
START_S = 1_300_000_000


def pixloc(*arguments) -> int:
    """The command; texts may hold several words."""
    return main([word for a in arguments for word in (a.split() if isinstance(a, str) else [str(a)])])


def check_twist(messages) -> None:
    """Integrated, the velocities of odometry messages give their poses."""
    stamps = np.array([message_stamp(message) for message in messages])
    poses = torch.stack([matrix(message.pose.pose) for message in messages])
    parts = [(message.twist.twist.linear, message.twist.twist.angular) for message in messages]
    twist = torch.tensor([[getattr(part, axis) for part in both for axis in "xyz"] for both in parts], dtype=torch.float64)
    moved = torch.eye(4, dtype=torch.float64)
    for motion in se3.se3_exp(twist[1:] * torch.from_numpy(np.diff(stamps) * 1e-9)[:, None]):
        moved = moved @ motion
    torch.testing.assert_close(moved, se3.inverse(poses[0]) @ poses[-1], atol=1e-6, rtol=0)
    assert bool(twist[0].any()), "the robot moves from the start"


@dataclass
class Shot:
    """seconds: since the start. image: RGB uint8. depth: float32 metres along the optical axis. pose: map_from_camera [4, 4]."""

    seconds: float
    image: np.ndarray
    depth: np.ndarray
    pose: np.ndarray

    @property
    def quaternion(self) -> np.ndarray:
        """Of the rotation map_from_camera, x y z w."""
        return Rotation.from_matrix(self.pose[:3, :3]).as_quat()

    @property
    def inverse_wxyz(self) -> np.ndarray:
        """Of the rotation camera_from_map, w x y z."""
        return Rotation.from_matrix(self.pose[:3, :3].T).as_quat()[[3, 0, 1, 2]]


class Studio:
    """The simulated world, and a camera that is carried through it looking to the side."""

    def __init__(self) -> None:
        self.renderer = Renderer(build_world(3, 0.015), Lighting(spacing=0.5))
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("zyx", [0.9, 0.05, 0.12]).as_matrix()
        self._mount = turn @ camera_mount().numpy()
        self._drive = SimulatedDrive(DriveOptions(speed=0.5, seed=5))

    def pose(self, seconds: float) -> np.ndarray:
        """map_from_camera."""
        return self._drive.at(2.0 + seconds).numpy() @ self._mount

    def shoot(self, camera: Camera, seconds: np.ndarray) -> list[Shot]:
        shots = []
        for number, at in enumerate(seconds.tolist()):
            pose = self.pose(at)
            radiance, depth = self.renderer.radiance(camera, torch.from_numpy(pose))
            image = MAPPING_SENSOR.develop(radiance, np.random.default_rng(number))
            shots.append(Shot(at, image, depth, pose))
        return shots

    def depth(self, camera: Camera, pose: np.ndarray) -> np.ndarray:
        return self.renderer.radiance(camera, torch.from_numpy(pose))[1]


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def numbers(values) -> str:
    return " ".join(f"{value:.10g}" for value in np.asarray(values).ravel())


# ---- sets recorded over time


def write_images(folder: Path, kind: str, shots: list[tuple[float, np.ndarray]]) -> None:
    """Seconds and images as KIND/STAMP.png and in KIND.txt, as TUM's and OpenLORIS' recordings have them."""
    lines = ["# timestamp filename"]
    for at, image in shots:
        name = f"{kind}/{START_S + at:.6f}.png"
        save(folder / name, image)
        lines.append(f"{START_S + at:.6f} {name}")
    (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")


def write_stamped_poses(path: Path, seconds: np.ndarray, poses, heading: str, ending: str = "") -> None:
    rows = [
        f"{START_S + at:.4f} {numbers(pose[:3, 3])} {numbers(Rotation.from_matrix(pose[:3, :3]).as_quat())}{ending}\n"
        for at, pose in zip(seconds, poses)
    ]
    path.write_text(f"{heading}\n" + "".join(rows))


def write_tum(folder: Path, studio: Studio, shots: list[Shot]) -> None:
    """Depth is taken 0.4 ms later, as of the same instant; poses at 100 Hz."""
    write_images(folder, "rgb", [(shot.seconds, shot.image) for shot in shots])
    depth = [(shot.seconds + 0.0004, np.rint(shot.depth * 5000).clip(0, 65535).astype(np.uint16)) for shot in shots]
    write_images(folder, "depth", depth)
    seconds = np.arange(-0.1, shots[-1].seconds + 0.1, 0.01)
    heading = "# ground truth trajectory\n# timestamp tx ty tz qx qy qz qw"
    write_stamped_poses(folder / "groundtruth.txt", seconds, map(studio.pose, seconds), heading)


def write_seven_scenes(scene: Path, train: list[Shot], test: list[Shot], depth_of, colour_from_depth: np.ndarray) -> None:
    """depth_of: depth in metres as a camera of focal length 585 sees it from a pose."""
    scene.mkdir(parents=True)
    (scene / "TrainSplit.txt").write_text("sequence1\n")
    (scene / "TestSplit.txt").write_text("sequence2\n")
    for name, shots in (("seq-01", train), ("seq-02", test)):
        for number, shot in enumerate(shots):
            stem = scene / name / f"frame-{number:06d}"
            pose = shot.pose @ colour_from_depth  # of the depth camera
            depth = np.rint(depth_of(pose) * 1000).astype(np.uint16)
            depth[:4] = 65535
            save(Path(f"{stem}.color.png"), shot.image)
            save(Path(f"{stem}.depth.png"), depth)
            rows = ("\t ".join(f"{value: .7e}" for value in row) for row in pose)
            Path(f"{stem}.pose.txt").write_text("\n".join(rows) + "\n")


def write_euroc(folder: Path, shots: list[Shot], camera: Camera, body_from_camera: np.ndarray, studio: Studio) -> None:
    cam, truth = folder / "mav0" / "cam0", folder / "mav0" / "state_groundtruth_estimate0"
    truth.mkdir(parents=True)
    rows = ["#timestamp [ns],filename"]
    for shot in shots:
        stamp = START_S * 10**9 + round(shot.seconds * 1e9)
        save(cam / "data" / f"{stamp}.png", cv2.cvtColor(shot.image, cv2.COLOR_RGB2GRAY))
        rows.append(f"{stamp},{stamp}.png")
    (cam / "data.csv").write_text("\r\n".join(rows) + "\r\n")
    params = camera.params.tolist()
    pose, intrinsics, distortion = (", ".join(map(str, v)) for v in (body_from_camera.ravel(), params[:4], params[4:8]))
    (cam / "sensor.yaml").write_text(
        f"# General sensor definitions.\nsensor_type: camera\n\nT_BS:\n  cols: 4\n  rows: 4\n  data: [{pose}]\n\nrate_hz: 20\n"
        f"resolution: [{camera.width}, {camera.height}]\ncamera_model: pinhole\nintrinsics: [{intrinsics}] #fu, fv, cu, cv\n"
        f"distortion_model: radial-tangential\ndistortion_coefficients: [{distortion}]\n"
    )
    lines = ["#timestamp, p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z [], ..."]
    for at in np.arange(shots[0].seconds - 0.1, shots[-1].seconds + 0.1, 0.005):
        body = studio.pose(at) @ np.linalg.inv(body_from_camera)
        x, y, z, w = Rotation.from_matrix(body[:3, :3]).as_quat()
        values = [*body[:3, 3], w, x, y, z, *np.zeros(9)]  # velocity and biases follow
        lines.append(f"{START_S * 10**9 + round(at * 1e9)}," + ",".join(f"{value:.7f}" for value in values))
    (truth / "data.csv").write_text("\n".join(lines) + "\n")


def write_kitti(root: Path, shots: list[Shot], camera: Camera, baseline: float = 0.06) -> None:
    """Sequence 07, images of camera 2, which stands `baseline` to the left of camera 0; poses are camera 0's."""
    folder = root / "sequences" / "07"
    fx, fy, cx, cy = camera.params.tolist()
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    lines = []
    for number in range(4):
        offset = baseline if number == 2 else -0.54 * (number % 2)
        lines.append(f"P{number}: " + " ".join(f"{v:.12e}" for v in np.hstack((k, k @ [[offset], [0], [0]])).ravel()))
    # x of camera 2 is x of camera 0 plus the baseline.
    camera0_from_camera2 = np.eye(4)
    camera0_from_camera2[0, 3] = -baseline
    poses = [shot.pose @ np.linalg.inv(camera0_from_camera2) for shot in shots]
    for number, shot in enumerate(shots):
        save(folder / "image_2" / f"{number:06d}.png", shot.image)
    (folder / "calib.txt").write_text("\n".join([*lines, "Tr: " + numbers(np.eye(4)[:3])]) + "\n")
    (folder / "times.txt").write_text("".join(f"{shot.seconds - shots[0].seconds:e}\n" for shot in shots))
    (root / "poses").mkdir()
    rows = (" ".join(f"{v:e}" for v in (np.linalg.inv(poses[0]) @ pose)[:3].ravel()) for pose in poses)
    (root / "poses" / "07.txt").write_text("\n".join(rows) + "\n")


def openloris_bases(shots: list[Shot], base_from_camera: np.ndarray, studio: Studio) -> tuple[np.ndarray, list[np.ndarray]]:
    """Seconds and poses of the base, at 40 Hz."""
    seconds = np.arange(shots[0].seconds - 0.2, shots[-1].seconds + 0.2, 0.025)
    return seconds, [studio.pose(at) @ np.linalg.inv(base_from_camera) for at in seconds]


def write_openloris(folder: Path, shots: list[Shot], camera: Camera, base_from_camera: np.ndarray, studio: Studio) -> None:
    write_images(folder, "color", [(shot.seconds, shot.image) for shot in shots])
    times = [shot.seconds + 0.012 for shot in shots]
    depth = [(at, np.rint(studio.depth(camera, studio.pose(at)) * 1000).astype(np.uint16)) for at in times]
    write_images(folder, "aligned_depth", depth)
    seconds, bases = openloris_bases(shots, base_from_camera, studio)
    write_stamped_poses(folder / "groundtruth.txt", seconds, bases, "#Time px py pz qx qy qz qw")
    moved, heading = [np.linalg.inv(bases[0]) @ base for base in bases], "#Time pose position, orientation, twist linear, angular"
    write_stamped_poses(folder / "odom.txt", seconds, moved, heading, " 0.5 0.0 0.0 0.0 0.0 0.1")
    fx, fy, cx, cy = camera.params.tolist()
    file = cv2.FileStorage(str(folder / "sensors.yaml"), cv2.FileStorage_WRITE)
    file.startWriteStruct("d400_color_optical_frame", cv2.FileNode_MAP)
    for name, value in (("width", camera.width), ("height", camera.height), ("distortion_model", "radial-tangential")):
        file.write(name, value)
    file.write("intrinsics", np.array([[fx, cx, fy, cy]]))
    file.write("distortion_coefficients", np.zeros((1, 5)))
    file.endWriteStruct()
    file.release()
    base_from_laser = np.eye(4)
    base_from_laser[:3, 3] = 0.35, 0, 1.28
    laser_from_camera = np.linalg.inv(base_from_laser) @ base_from_camera
    file = cv2.FileStorage(str(folder / "trans_matrix.yaml"), cv2.FileStorage_WRITE)
    file.startWriteStruct("trans_matrix", cv2.FileNode_SEQ)
    links = ("base_link", "laser", base_from_laser), ("laser", "d400_color_optical_frame", laser_from_camera)
    for link in links:
        file.startWriteStruct("", cv2.FileNode_MAP)
        for name, value in zip(("parent_frame", "child_frame", "matrix"), link):
            file.write(name, value)
        file.endWriteStruct()
    file.endWriteStruct()
    file.release()


class _OpenLorisBag(BagWriter):
    def header(self, stamp_ns, frame):
        return super().header(stamp_ns, "d400_color" if frame == "camera_optical" else frame)


def write_openloris_bag(path: Path, shots: list[Shot], camera: Camera, base_from_camera: np.ndarray, studio: Studio) -> None:
    with _OpenLorisBag(path, "ros1") as bag:
        seconds, bases = openloris_bases(shots, base_from_camera, studio)
        first = START_S * 10**9 + round(seconds[0] * 1e9)
        bag.transform("/tf_static", first, "base_link", "d400_color", base_from_camera)
        size, model = (camera.width, camera.height), "Inverse Brown Conrady"
        info = bag.camera_info(first, "camera_optical", size, model, camera.params.tolist(), np.zeros(5))
        bag.put(first, "/d400/color/camera_info", info)
        events = [(at, "base", pose) for at, pose in zip(seconds, bases)]
        events += [(shot.seconds, "colour", shot) for shot in shots] + [(shot.seconds + 0.012, "depth", shot) for shot in shots]
        for at, kind, what in sorted(events, key=lambda event: event[0]):
            stamp = START_S * 10**9 + round(at * 1e9)
            if kind == "base":
                bag.transform("/gt", stamp, "gt_map", "base_link", what)
                bag.odometry(stamp, np.linalg.inv(bases[0]) @ what, frames=("odom", "base_odom"))
            elif kind == "colour":
                bag.image(stamp, what.image, camera.width, camera.height, "rgb8", topic="/d400/color/image_raw")
            else:
                seen = np.rint(studio.depth(camera, studio.pose(at)) * 1000).astype("<u2")
                bag.image(stamp, seen, camera.width, camera.height, "mono16", topic="/d400/aligned_depth_to_color/image_raw")


# ---- sets of single images


def sparse_model(shots: list[Shot], names: list[str]) -> tuple[ColmapModel, np.ndarray]:
    """A model of the shots as structure from motion makes it, and the colours of its points."""
    frames = [Keyframe(name, -1, shot.image, shot.depth, torch.from_numpy(shot.pose)) for shot, name in zip(shots, names)]
    return build_sparse_model(frames, KINECT, np.random.default_rng(0))


def write_colmap(folder: Path, shots: list[Shot], names: list[str]) -> None:
    write_colmap_model(folder, *sparse_model(shots, names))


def write_nvm(path: Path, shots: list[Shot], names: list[str], focal: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["NVM_V3 ", "", str(len(shots))]
    for shot, name in zip(shots, names):
        lines.append(f"{name}\t{focal:.9g} {numbers(shot.inverse_wxyz)} {numbers(shot.pose[:3, 3])} 0 0 ")
    model, colours = sparse_model(shots, names)
    lines += ["", str(len(model.xyz))]
    pixels = model.observation_px + 0.5 - np.array(shots[0].image.shape[1::-1]) / 2
    for index, (xyz, rgb) in enumerate(zip(model.xyz, colours)):
        rows = np.flatnonzero(model.observation_point == index)
        seen = " ".join(f"{model.observation_image[m]} {m} {pixels[m][0]:.3f} {pixels[m][1]:.3f}" for m in rows)
        lines.append(f"{numbers(xyz)} {' '.join(map(str, rgb))} {len(rows)} {seen} ")
    path.write_text("\n".join([*lines, "", "", "0", "", "#the last part of NVM file points to the PLY files", "0"]) + "\n")


def write_cambridge_list(path: Path, shots: list[Shot], names: list[str]) -> None:
    rows = [
        f"{name} {shot.pose[0, 3]:.6f} {shot.pose[1, 3]:.6f} {shot.pose[2, 3]:.6f} "
        + " ".join(f"{value:.6f}" for value in shot.inverse_wxyz)
        for shot, name in zip(shots, names)
    ]
    path.write_text("Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n" + "\n".join(rows) + "\n")


def colmap_line(camera: Camera) -> str:
    """MODEL WIDTH HEIGHT PARAMS of a pinhole, in COLMAP's pixels."""
    fx, fy, cx, cy = camera.params.tolist()
    return f"PINHOLE {camera.width} {camera.height} {fx:g} {fy:g} {cx + 0.5:g} {cy + 0.5:g}"


def inverse(pose: np.ndarray) -> torch.Tensor:
    return se3.inverse(torch.from_numpy(pose))


def write_cmu(root: Path, shots: list[Shot], training: bool = False) -> dict[str, Shot]:
    """A slice and intrinsics.txt next to it; each second shot is a query → these by name. Training slices list the queries'
    poses, here with one more whose image is kept back, the others their names."""
    names = [f"img_{k:05d}_c{k // 2 % 2}_130339847477948{k}us.jpg" for k in range(len(shots))]
    for k, (shot, name) in enumerate(zip(shots, names)):
        save(root / ("query" if k % 2 else "database") / name, shot.image)
    write_colmap(root / "sparse", shots[::2], names[::2])
    truth = dict(zip(names[1::2], shots[1::2]))
    if training:
        lines = [f"{name} {numbers(shot.inverse_wxyz)} {numbers(shot.pose[:3, 3])}\n" for name, shot in truth.items()]
        (root / "camera-poses").mkdir()
        (root / "camera-poses" / "slice-01-Sep-2010.txt").write_text("".join([*lines, "img_00099_c0_1us.jpg 1 0 0 0 0 0 0\n"]))
    else:
        (root / f"test-images-{root.name}.txt").write_text("\n".join(truth) + "\n")
    line, other = (f"OPENCV 640 480 {focal} {focal} 320 240 0 0 0 0\n" for focal in (525, 400))
    (root.parent / "intrinsics.txt").write_text(f"# name model width height parameters\nc0 {line}c1 {line}c2 {other}")
    return truth
