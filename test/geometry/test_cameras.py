# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Camera models."""

import math

import cv2
import numpy as np
import pytest
import torch

from pixloc_ros.errors import InputError
from pixloc_ros.geometry.cameras import MIN_DEPTH, Camera

BASE = [420.0, 410.0, 331.0, 244.0]
CAMERAS = {
    "pinhole": ("pinhole", []),
    "barrel": ("radial", [-0.28, 0.07]),
    "pincushion": ("radial", [0.12, 0.05]),
    "folding": ("radial", [-0.35, 0.0]),
    "plumb_bob": ("plumb_bob", [-0.30, 0.11, 0.0012, -0.0007, -0.02]),
    "rational": ("rational_polynomial", [0.41, -2.5, 0.0007, -0.0004, 1.43, 0.29, -2.31, 1.36]),
    "fisheye": ("equidistant", [-0.013, 0.021, -0.017, 0.003]),
    "ideal_fisheye": ("equidistant", [0.0, 0.0, 0.0, 0.0]),
}
everywhere = pytest.mark.parametrize("name", CAMERAS)


def make(name: str) -> Camera:
    model, distortion = CAMERAS[name]
    return Camera(model, 640, 480, torch.tensor(BASE + distortion, dtype=torch.float64))


def some_points(count: int = 200, seed: int = 0) -> torch.Tensor:
    """Points a camera of about 75 degrees sees, the optical axis among them."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    points = (points - 0.5) * torch.tensor([1.5, 1.2, 0.0]) + torch.tensor([0.0, 0.0, 1.0])
    points[0, :2] = 0.0
    return points * (0.5 + 4 * torch.rand(count, 1, generator=generator, dtype=torch.float64))


@everywhere
def test_jacobian_matches_autodiff_and_differences(name):
    camera, points = make(name), some_points(40)
    pixels, valid, jacobian = camera.project_with_jacobian(points)
    assert valid.all()
    torch.testing.assert_close(pixels, camera.project(points)[0], atol=0, rtol=0)
    automatic = torch.autograd.functional.jacobian(lambda p: camera.project(p)[0].sum(0), points).movedim(1, 0)
    torch.testing.assert_close(jacobian, automatic, atol=1e-9, rtol=1e-9)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)[:, None]
    numeric = (camera.project(points + step)[0] - camera.project(points - step)[0]) / 2e-6
    torch.testing.assert_close(jacobian, numeric.movedim(0, -1), atol=1e-5, rtol=1e-6)
    single = camera.project_with_jacobian(points.float())
    torch.testing.assert_close(single[2].double(), jacobian, atol=2e-3, rtol=1e-4)
    assert single[0].dtype == single[2].dtype == torch.float32


@everywhere
def test_jacobian_is_differentiable(name):
    camera = make(name)
    points = some_points(4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: camera.project_with_jacobian(p)[2], (points,), atol=1e-5)
    params = camera.params.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: Camera(camera.model, 640, 480, v, limit=camera.limit).project(some_points(4))[0], (params,)
    )


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unproject_inverts_project(name, dtype):
    camera, points = make(name), some_points(500).to(dtype)
    pixels, valid = camera.project(points)
    rays, good = camera.unproject(pixels)
    assert valid.all() and good.all() and rays.dtype == dtype
    directions = torch.nn.functional.normalize(points, dim=-1)
    torch.testing.assert_close(rays, directions, atol=1e-9 if dtype == torch.float64 else 3e-5, rtol=0)


@pytest.mark.parametrize("name", ["pinhole", "barrel", "plumb_bob", "rational", "fisheye"])
def test_projection_matches_opencv(name):
    camera, points = make(name), some_points()
    fx, fy, cx, cy, *distortion = camera.params.tolist()
    if camera.model == "radial":
        distortion += [0.0, 0.0]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    project = cv2.fisheye.projectPoints if camera.model == "equidistant" else cv2.projectPoints
    expected, _ = project(points.numpy()[:, None], np.zeros(3), np.zeros(3), matrix, np.array(distortion))
    torch.testing.assert_close(camera.project(points)[0], torch.from_numpy(expected[:, 0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_PINHOLE", [400, 320, 240]),
        ("PINHOLE", [400, 410, 320, 240]),
        ("SIMPLE_RADIAL", [400, 320, 240, -0.1]),
        ("RADIAL", [400, 320, 240, -0.1, 0.02]),
        ("OPENCV", [400, 410, 320, 240, -0.1, 0.02, 1e-3, -2e-3]),
        ("FULL_OPENCV", [400, 410, 320, 240, -0.1, 0.02, 1e-3, -2e-3, 0.01, 0.02, 0.01, 0.003]),
        ("OPENCV_FISHEYE", [400, 410, 320, 240, -0.01, 0.02, -0.01, 0.002]),
        ("SIMPLE_RADIAL_FISHEYE", [400, 320, 240, -0.01]),
        ("RADIAL_FISHEYE", [400, 320, 240, -0.01, 0.02]),
    ],
)
def test_colmap_models(model, params):
    camera = Camera.parse_colmap_line(f"{model} 640 480 " + " ".join(map(str, params)))
    # Our pixel (0, 0) is COLMAP's (0.5, 0.5).
    centre = params[1:3] if len(params) in (3, 4, 5) and model != "PINHOLE" else params[2:4]
    np.testing.assert_allclose(camera.params[2:4], np.array(centre) - 0.5)
    name, numbers = camera.to_colmap()
    again = Camera.from_colmap(name, 640, 480, numbers)
    points = some_points()
    torch.testing.assert_close(again.project(points)[0], camera.project(points)[0], atol=1e-9, rtol=0)
    with pytest.raises(InputError, match=f"takes {len(params)} numbers, not {len(params) - 1}"):
        Camera.from_colmap(model, 640, 480, params[:-1])
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=params)
    np.testing.assert_allclose(theirs.img_from_cam(points.numpy()) - 0.5, camera.project(points)[0], atol=1e-9)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("FOV 640 480 400 400 320 240 0.9", "not supported"),
        ("PINHOLE 640 abc 400 400 320 240", "cannot be read"),
        ("PINHOLE 640", "cannot be read"),
        ("PINHOLE 640 0 400 400 320 240", "empty"),
        ("PINHOLE 640 480 nan 400 320 240", "NaN"),
        ("PINHOLE 640 480 -400 400 320 240", "focal"),
    ],
)
def test_bad_colmap_lines_are_refused_in_one_line(line, word):
    with pytest.raises(InputError, match=word) as caught:
        Camera.parse_colmap_line(line)
    assert "\n" not in str(caught.value)


def test_fold_over_of_a_plain_polynomial():
    # r (1 - 0.35 r²) grows until r² = 1 / 1.05.
    camera = make("folding")
    edge = math.sqrt(1 / 1.05)
    radius = torch.tensor([0.0, 0.5, edge - 1e-6, edge + 1e-6, 3.0], dtype=torch.float64)
    points = torch.stack((radius, torch.zeros_like(radius), torch.ones_like(radius)), -1)
    _, valid = camera.project(points)
    assert valid.tolist() == [True, True, True, False, False]
    # No point projects beyond the edge's image: such pixels have no ray.
    reach = 331 + 420 * edge * (1 - 0.35 * edge**2)
    _, good = camera.unproject(torch.tensor([[reach - 0.5, 244.0], [reach + 0.5, 244.0]], dtype=torch.float64))
    assert good.tolist() == [True, False]


@pytest.mark.parametrize("name", ["barrel", "folding", "plumb_bob", "rational", "fisheye"])
@pytest.mark.parametrize("extra", [1.0, -1.0])
def test_distortion_grows_up_to_the_limit_and_not_beyond(name, extra):
    model, distortion = CAMERAS[name]
    distortion = [extra * value for value in distortion]
    if model in ("plumb_bob", "rational_polynomial"):
        distortion[2:4] = [0.0, 0.0]  # the limit is that of the radial part
    camera = Camera(model, 640, 480, torch.tensor([1.0, 1.0, 0.0, 0.0, *distortion], dtype=torch.float64))
    limit = float(camera.limit)
    if model == "equidistant":
        angle = torch.linspace(0, min(limit, 3.1) - 1e-4, 500, dtype=torch.float64)
        points = torch.stack((angle.sin(), torch.zeros_like(angle), angle.cos()), -1)
        growing = camera.project(points)[0][:, 0].diff()
        assert (growing > 0).all() and camera.project(points)[1].all()
        return
    end = min(math.sqrt(limit), 4.0)
    radius = torch.linspace(0, end - 1e-6, 500, dtype=torch.float64)
    points = torch.stack((radius, torch.zeros_like(radius), torch.ones_like(radius)), -1)
    pixels, valid = camera.project(points)
    assert valid.all() and (pixels[:, 0].diff() > 0).all()
    if end < 4.0:
        free = Camera(model, 640, 480, camera.params, limit=torch.tensor(math.inf))
        beyond = torch.tensor([[end * 1.001, 0, 1], [end * 1.01, 0, 1]], dtype=torch.float64)
        value = free.project(beyond)[0][:, 0]
        assert value[1] < value[0] or value[0] < pixels[-1, 0]


@everywhere
def test_points_behind_near_or_not_finite_are_invalid_but_harmless(name):
    camera = make(name)
    points = torch.tensor([[0.1, 0.1, -2.0], [0, 0, 0], [0, 0, MIN_DEPTH / 2], [math.nan, 0, 1], [0, math.inf, 1], [1e20, 0, 1]])
    if camera.model == "equidistant":
        points = points[1:]  # it may see what is behind
    assert not camera.project(points)[1].any()
    finite = points[torch.isfinite(points).all(-1)].requires_grad_()
    pixels, _, jacobian = camera.project_with_jacobian(finite)
    assert torch.isfinite(pixels).all() and torch.isfinite(jacobian).all()
    (pixels.sum() + jacobian.sum()).backward()
    assert torch.isfinite(finite.grad).all()
    assert not camera.unproject(torch.tensor([[math.nan, 3.0], [3.0, math.inf]]))[1].any()


def test_fisheye_sees_behind_itself():
    camera = make("ideal_fisheye")
    angle = math.radians(100)
    point = torch.tensor([[2 * math.sin(angle), 0, 2 * math.cos(angle)]], dtype=torch.float64)
    pixel, valid = camera.project(point)
    assert valid and abs(float(pixel[0, 0]) - (331 + 420 * angle)) < 1e-9
    ray, good = camera.unproject(pixel)
    assert good
    torch.testing.assert_close(ray, point / 2)
    assert not camera.project(torch.tensor([[0.0, 0.0, -1.0]]))[1]


def test_batched_params_match_single_cameras():
    generator = torch.Generator().manual_seed(5)
    points = some_points(60).reshape(3, 20, 3)
    for name, (model, _) in CAMERAS.items():
        params = make(name).params * (1 + 0.05 * torch.rand(3, 1, generator=generator, dtype=torch.float64))
        batch = Camera(model, 640, 480, params)
        pixels, valid, jacobian = batch.project_with_jacobian(points)
        rays, good = batch.unproject(pixels)
        for i in range(3):
            single = Camera(model, 640, 480, params[i])
            expected = (*single.project_with_jacobian(points[i]), *single.unproject(pixels[i]))
            for found, wanted in zip((pixels, valid, jacobian, rays, good), expected, strict=True):
                torch.testing.assert_close(found[i], wanted)
        assert batch.to(torch.float32).project(points.float())[0].dtype == torch.float32


@everywhere
def test_scaling_keeps_pixel_centres(name):
    camera = make(name)
    half = camera.scaled(0.5, 0.25, 320, 120)
    points = some_points()
    expected = (camera.project(points)[0] + 0.5) * torch.tensor([0.5, 0.25]) - 0.5
    torch.testing.assert_close(half.project(points)[0], expected)
    assert (half.width, half.height) == (320, 120)


def test_in_image_is_about_pixel_centres():
    camera = make("pinhole")
    pixels = torch.tensor([[0.0, 0.0], [639.0, 479.0], [639.1, 0.0], [-0.1, 5.0], [1.9, 10.0], [math.nan, 5.0]])
    assert camera.in_image(pixels).tolist() == [True, True, False, False, True, False]
    assert camera.in_image(pixels, 2.0).tolist() == [False] * 6


K = [400.0, 0, 320, 0, 410, 240, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "d", "model"),
    [
        ("", [], "pinhole"),
        ("plumb_bob", [], "pinhole"),
        ("plumb_bob", [0.0] * 5, "pinhole"),
        ("plumb_bob", [-0.1, 0.01, 0.001, 0.002], "plumb_bob"),
        ("plumb_bob", [-0.1, 0.01, 0.001, 0.002, 0.003], "plumb_bob"),
        ("rational_polynomial", [0.1] * 8, "rational_polynomial"),
        ("rational_polynomial", [0.1] * 8 + [0.0] * 6, "rational_polynomial"),
        ("equidistant", [0.0] * 4, "equidistant"),
        ("fisheye", [0.1, 0, 0, 0], "equidistant"),
    ],
)
def test_camera_info_models(name, d, model):
    camera = Camera.from_camera_info(name, 640, 480, K, d)
    assert camera.model == model
    assert camera.params[:4].tolist() == [400, 410, 320, 240]  # already in our convention: no half pixel
    assert camera.params[4:].tolist() == ([*d, 0.0] if len(d) == 4 and model == "plumb_bob" else d)[: len(camera.params) - 4]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"distortion_model": "kannala"}, "not supported"),
        ({"distortion_model": "", "d": [0.1, 0, 0, 0, 0]}, "not supported"),
        ({"d": [0.1, 0.1, 0.0]}, "takes 5"),
        ({"distortion_model": "equidistant", "d": []}, "takes 4"),
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"k": K[:6]}, "instead of 9"),
        ({"k": [400.0, 3.0, *K[2:]]}, "skew"),
        ({"d": [math.nan] * 5}, "NaN"),
        ({"width": 0}, "empty"),
        ({"roi": (600, 0, 100, 100)}, "roi"),
    ],
)
def test_bad_camera_info_is_refused_in_one_line(change, word):
    arguments = {"distortion_model": "plumb_bob", "width": 640, "height": 480, "k": K, "d": [0.1, 0, 0, 0, 0], **change}
    with pytest.raises(InputError, match=word) as caught:
        Camera.from_camera_info(**arguments)
    assert "\n" not in str(caught.value)


def test_camera_info_roi_and_binning():
    full = Camera.from_camera_info("plumb_bob", 640, 480, K, [-0.2, 0.03, 0, 0, 0])
    part = Camera.from_camera_info("plumb_bob", 640, 480, K, [-0.2, 0.03, 0, 0, 0], 2, 4, (100, 40, 400, 320))
    assert (part.width, part.height) == (200, 80)
    points = some_points()
    pixels = full.project(points)[0]
    # Full pixels 100 and 101 make the first binned pixel: its centre, 0, is at 100.5.
    expected = (pixels - torch.tensor([100.5, 41.5])) / torch.tensor([2.0, 4.0])
    torch.testing.assert_close(part.project(points)[0], expected)


def test_unknown_model_or_count():
    with pytest.raises(InputError, match="unknown"):
        Camera("brown", 640, 480, torch.tensor(BASE))
    with pytest.raises(InputError, match="takes 6"):
        Camera("radial", 640, 480, torch.tensor(BASE))
