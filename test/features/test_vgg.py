# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The paper's network: weights in the layout of the published files, read without running what is in them, and its features."""

import copy
import fractions
import hashlib
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_scene import level_weights
from authors_network import checkpoint, saved, their_forward, their_pose
from mapping_helpers import look_at, numbers_map, pinhole, plane_images, texture
from torch.nn import functional as F
from training_scene import invented_photo

from pixloc_ros.alignment import AlignmentOptions, LevelWeights, RobustLoss, damping_of
from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.features import load_extractor
from pixloc_ros.features.checkpoint_import import import_checkpoint
from pixloc_ros.features.extractor import Extractor
from pixloc_ros.features.sampling import sample_level
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry import se3
from pixloc_ros.io.images import load_image
from pixloc_ros.mapping.build.building import build_map
from pixloc_ros.tracking.alignment_judge import STATISTICS, AlignmentJudge
from pixloc_ros.tracking.frame_aligner import AlignerOptions, FrameAligner


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(the checkpoint, its file, the weights file that the command made of it)."""
    folder = tmp_path_factory.mktemp("weights")
    content = checkpoint(full=True)
    file = saved(folder / "checkpoint_best.tar", content)
    output = folder / "vgg.safetensors"
    assert main(["weights", "import", str(file), "-o", str(output)]) == 0
    return content, file, output


@torch.inference_mode()
def test_imported_network_computes_what_the_checkpoint_does(full):
    content, _, output = full
    extractor = load_extractor(output)
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    theirs = their_forward(content["model"], torch.from_numpy(image / 255.0).permute(2, 0, 1)[None].float())
    for level, (features, uncertainty) in zip(extractor.extract(image).levels, reversed(theirs), strict=True):
        torch.testing.assert_close(level.features, F.normalize(features, dim=1), atol=1e-4, rtol=0)
        torch.testing.assert_close(level.confidence, torch.sigmoid(-uncertainty)[:, 0], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("iterations", [1, 8])
def test_poses_are_those_of_the_paper_s_method(full, tmp_path, iterations):
    """From an image and points to a map to the pose of another image: references are brought to unit length after they are
    interpolated, as there."""
    content, _, output = full
    camera = pinhole(160, 128, 130.0)
    poses = torch.stack([look_at((0.2 * k - 0.4, -1.5, 2.5), (0, 0, 0)) for k in range(2)])
    xyz = np.random.default_rng(0).uniform((-2, -2, 0), (2, 2, 0), (600, 3))
    source = plane_images(tmp_path, poses, camera, xyz, np.stack([texture(seed=k) for k in range(3)], -1))
    reference, query = (their_forward(content["model"], as_input(load_image(path)) / 255) for path in source.paths)
    seen = source.observation_image == 0
    source = replace(source, observation_image=source.observation_image[seen], observation_point=source.observation_point[seen])
    extractor = load_extractor(output)
    options = AlignmentOptions("paper", iterations, RobustLoss("cauchy", 0.01), border_cells=2.5, stop_cells=0.0)
    aligner = FrameAligner(build_map(source, extractor)[0], extractor, AlignerOptions(options, 600, float("inf")))
    start = poses[1] @ se3.se3_exp(torch.tensor([0.02, -0.01, 0.03, 0.01, -0.01, 0.02], dtype=torch.float64))
    found = aligner.localize(load_image(source.paths[1]), camera, start)
    points = torch.from_numpy(aligner.map.xyz[found.views[0].points.point_ids])
    pixels, _ = camera.project(se3.transform(se3.inverse(poses[0]), points))
    const = [content["model"][f"optimizer.{k}.dampingnet.const"] for k in range(3)]
    arguments = (points.float(), camera.params.float(), se3.inverse(start).float(), const, iterations)
    theirs = se3.inverse(their_pose((reference, pixels.float()), query, *arguments)).double()
    distance, angle = se3.pose_difference(found.map_from_camera, theirs)
    moved, _ = se3.pose_difference(found.map_from_camera, start)
    assert found.success and moved > 0.003
    assert distance < 1e-4 and angle < 1e-4


def test_the_damping_of_the_checkpoint_arrives(full):
    content, _, output = full
    weights = Weights.open(output)
    for level, k in enumerate((2, 1, 0)):
        constant = content["model"][f"optimizer.{k}.dampingnet.const"]
        assert torch.equal(weights.companions["damping.theta"][level], constant)
        torch.testing.assert_close(damping_of(load_extractor(output))(level), 10 ** (-6 + 11 * torch.sigmoid(constant)))


def test_card_says_where_the_weights_come_from(full):
    _, file, output = full
    card = Weights.open(output).card
    assert card["architecture"] == "vgg19" and card["training_data"] == "megadepth" and card["epoch"] == 12
    assert card["source"] == file.name and card["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["figures"] == {"loss/total": 1.5, "R_error_median": 0.5, "t_error_median": 0.5, "pairs": 3}
    assert "without a licence" in card["licence"] and "initial_weights" in card


def test_smaller_network_is_recognised(tmp_path):
    weights = import_checkpoint(saved(tmp_path / "cmu.tar", checkpoint("vgg16")))
    weights.save(tmp_path / "cmu.safetensors")
    assert weights.card["architecture"] == "vgg16"
    assert sum(p.numel() for p in load_extractor(tmp_path / "cmu.safetensors").network.parameters()) == 15_712_387


@pytest.mark.parametrize(
    ("written", "instead"),
    [(b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"numpy.core.multiarray", b"numpy._core.multiarray")],
)
def test_numpy_scalars_are_read_as_either_numpy_wrote_them(tmp_path, written, instead):
    """The name of their constructor moved with NumPy 2; published files are older."""
    file, other = saved(tmp_path / "one.tar", checkpoint("vgg16")), tmp_path / "other.tar"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(other, "w") as target:
        for item in source.infolist():
            data, name = source.read(item), item.filename
            target.writestr(name, data.replace(written, instead) if name.endswith("data.pkl") else data)
    assert import_checkpoint(other).card["figures"]["R_error_median"] == 0.5


def changed(content, *path, value):
    for key in path[:-1]:
        content = content[key]
    if value is KeyError:
        del content[path[-1]]
    else:
        content[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("model", "optimizer.2.dampingnet.const"), KeyError, "lacks tensors of vgg19: optimizer.2.dampingnet.const"),
        (("model", "extractor.encoder.5.0.weight"), torch.zeros(1), "unknown tensors of vgg19: extractor.encoder.5.0"),
        (("model", "extractor.uncertainty.0.0.weight"), torch.zeros(2, 32), r"uncertainty.0.0.weight has shape \[2, 32\]"),
        (("model", "extractor.encoder.0.0.bias"), torch.full((64,), torch.nan), "encoder.0.0.bias holds .* not finite"),
        (("model", "extractor.encoder.0.0.bias"), 3, "not a table of tensors"),
        (("model",), KeyError, "lacks entries: model"),
        (("surprise",), 1, "unknown entries: surprise"),
        (("conf", "model"), KeyError, "no section 'model'"),
        (("conf", "model", "extractor"), 3, "conf.model.extractor is not a table"),
        (("conf", "model", "extractor", "encoder"), "vgg16", "conf says vgg16, its tensors are those of vgg19"),
        (("conf", "model", "extractor", "encoder"), "resnet18", "encoder is resnet18: only vgg16 or vgg19"),
        (("conf", "model", "extractor", "dilation"), 2, "unknown settings in conf.model.extractor: dilation"),
        (("conf", "model", "optimizer", "damping", "log_range"), [-3, 3], r"log_range is \[-3, 3\]"),
    ],
)
def test_other_checkpoints_are_refused_by_name(tmp_path, path, value, says):
    content = checkpoint()
    changed(content, *path, value=value)
    with pytest.raises(InputError, match=says) as error:
        import_checkpoint(saved(tmp_path / "odd.tar", content))
    assert "\n" not in str(error.value) and "odd.tar" in str(error.value)


def test_files_that_are_no_checkpoint_say_so(tmp_path):
    good = saved(tmp_path / "good.tar", checkpoint("vgg16")).read_bytes()
    short = {"cut.tar": good[:-3000], "empty.tar": b"", "text.tar": b"not a checkpoint\n" * 99, "pickle.tar": pickle.dumps({})}
    for name, data in short.items():
        (tmp_path / name).write_bytes(data)
    saved(tmp_path / "list.tar", [1, 2])
    with zipfile.ZipFile(tmp_path / "zip.tar", "w") as other:
        other.writestr("readme", "hello")
    words = {"zip.tar": "cannot be read", "list.tar": "holds a list", "nowhere.tar": "no checkpoint"}
    for name, says in (dict.fromkeys(short, "cut short") | words).items():
        with pytest.raises(InputError, match=says) as error:
            import_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)


class Payload:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    content, trace = checkpoint("vgg16"), tmp_path / "trace"
    content["conf"]["data"]["x"] = Payload(trace)
    with pytest.raises(InputError, match="--trust") as error:
        import_checkpoint(saved(tmp_path / "bad.tar", content))
    assert not trace.exists() and "\n" not in str(error.value)


def test_trusted_objects_are_read_with_a_warning(tmp_path, capsys):
    content = checkpoint("vgg16")
    content["conf"]["data"]["overlap"] = fractions.Fraction(1, 3)
    file, output = saved(tmp_path / "objects.tar", content), tmp_path / "out.safetensors"
    assert main(["weights", "import", str(file), "-o", str(output)]) == 2
    assert "fractions.Fraction" in capsys.readouterr().err and not output.exists()
    assert main(["weights", "import", str(file), "-o", str(output), "--trust"]) == 0
    assert "warning" in capsys.readouterr().err and load_extractor(output).name == "out"


def test_show_prints_card_parameters_and_damping(full, capsys):
    content, _, output = full
    assert main(["weights", "show", str(output), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"]["total"] == 21_022_083 and shown["strides"] == [16, 4, 1]
    assert shown["damping"][2]["R_y"] == pytest.approx(
        10 ** (-6 + 11 * float(torch.sigmoid(content["model"]["optimizer.0.dampingnet.const"][4]))), rel=1e-4
    )
    assert main(["weights", "show", str(output)]) == 0
    table = capsys.readouterr().out
    assert "21,022,083" in table and "R_z" in table and f"{shown['damping'][2]['R_y']:.3g}" in table
    assert main(["weights", "show", "compact", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["card"]["architecture"] == "compact" and shown["parameters"]["total"] > 100_000
    assert main(["weights", "show", "nowhere.safetensors"]) == 2


def map_of(extractor):
    """A map of a few points that says it is of a network."""
    xyz = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    map_ = numbers_map(look_at((0.0, -4.0, 0.0), (0.0, 0.0, 0.0))[None], xyz, pinhole())
    kind = {"extractor_fingerprint": extractor.fingerprint, "strides": extractor.strides, "channels": extractor.channels}
    return replace(map_, extractor_name=extractor.name, **kind)


def test_what_the_optimizer_learned_is_no_part_of_the_features(tmp_path):
    """Kept by the file, and by the network at other strides; maps of the network without it stay usable."""
    plain = replace(Weights.open("compact"), companions={})
    plain.save(tmp_path / "without.safetensors")
    theta, levels = torch.randn(5, 6), level_weights(5)
    replace(plain, companions={"damping.theta": theta, **levels.tensors()}).save(tmp_path / "with.safetensors")
    without, having = (load_extractor(tmp_path / f"{name}.safetensors") for name in ("without", "with"))
    assert damping_of(without) is None and torch.equal(damping_of(having).theta, theta)
    assert LevelWeights.of(without.companions, 5, "x") is None
    assert torch.equal(LevelWeights.of(having.with_strides((64, 16, 8, 2, 1)).companions, 5, "x").table, levels.table)
    assert without.fingerprint == having.fingerprint and damping_of(having.with_strides(having.strides)) is not None
    assert torch.equal(FrameAligner(map_of(without), having).weights.table, levels.table)
    assert FrameAligner(map_of(having), without).weights is None


@pytest.mark.parametrize("name,shape", [("damping.theta", (5, 6)), ("levels.weights", (5, 6, 6))])
def test_what_the_optimizer_learned_must_fit(tmp_path, name, shape):
    plain = Weights.open("compact")
    for odd in (torch.zeros(3, *shape[1:]), torch.full(shape, torch.nan)):
        replace(plain, companions={name: odd}).save(tmp_path / "odd.safetensors")
        extractor = load_extractor(tmp_path / "odd.safetensors")
        with pytest.raises(InputError, match=f"{name}.*{'x'.join(map(str, shape))}"):
            FrameAligner(map_of(extractor), extractor)
        assert main(["weights", "show", str(tmp_path / "odd.safetensors")]) == 2


def test_weights_of_levels_are_shown_and_drawn(tmp_path, capsys):
    file, levels = tmp_path / "learned.safetensors", level_weights(5)
    replace(Weights.open("compact"), companions=levels.tensors()).save(file)
    assert main(["weights", "show", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["levels"]
    assert len(shown) == 5 and shown[4]["hold, rotation"]["constant"] == pytest.approx(10 ** float(levels.table[4, 3, 0]))
    assert shown[2]["robust scale"]["slopes"]["points"] == pytest.approx(float(levels.table[2, 0, 4]))
    assert main(["weights", "show", str(file)]) == 0
    table = capsys.readouterr().out
    assert f"{shown[1]['trust, translation']['constant']:.3g}" in table and "residuals of" in table
    assert f"{shown[3]['residual variance']['slopes']['expected error']:.2f}" in table
    assert main(["weights", "plot", str(file), "-o", str(tmp_path / "learned.png")]) == 0
    assert (tmp_path / "learned.png").read_bytes()[:4] == b"\x89PNG"


def test_a_judge_is_kept_and_shown(tmp_path, capsys):
    file, numbers = tmp_path / "learned.safetensors", np.random.default_rng(0).normal(size=(5, 1 + len(STATISTICS)))
    replace(Weights.open("compact"), companions=AlignmentJudge(numbers[:2], *numbers[2:]).tensors()).save(file)
    extractor = load_extractor(file)
    assert extractor.fingerprint == load_extractor("compact").fingerprint
    np.testing.assert_allclose(AlignmentJudge.of(extractor.companions, "x").noise, numbers[2], rtol=1e-6)
    assert main(["weights", "show", str(file), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    shown = summary["judge"]
    assert summary["judge_elsewhere"] == 1.0
    for name, row in zip(("log odds, narrow", "log odds, wide"), numbers):
        assert shown[name]["slopes"][STATISTICS[-1]] == pytest.approx(row[len(STATISTICS)])
    assert main(["weights", "show", str(file)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in STATISTICS) and f"{numbers[2][0]:.2f}" in table and "times 1.00" in table
    replace(
        Weights.open("compact"),
        companions={f"judge.{name}": torch.zeros(3) for name in ("probability", "noise", "turn", "shift")},
    ).save(file)
    assert main(["weights", "show", str(file)]) == 2
    assert "must hold 2x22 finite numbers" in capsys.readouterr().err


def test_features_of_an_image_are_written(full, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    _, _, output = full
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    target = tmp_path / "new" / "features.npz"
    command = ["features", str(tmp_path / "photo.png"), "--weights", str(output), "-o", str(target)]
    assert main([*command, "--max-side", "100"]) == 0
    with np.load(target) as arrays:
        assert arrays["strides"].tolist() == [16, 4, 1] and arrays["image_size"].tolist() == [100, 80]
        assert arrays["original_size"].tolist() == [200, 160]
        assert [arrays[f"features_{k}"].shape for k in range(3)] == [(128, 5, 6), (128, 20, 24), (32, 80, 96)]
        pyramid = load_extractor(output).extract(cv2.resize(image, (100, 80), interpolation=cv2.INTER_AREA))
        for k, level in enumerate(pyramid.levels):
            np.testing.assert_allclose(arrays[f"features_{k}"], level.features[0], atol=1e-5)
            np.testing.assert_allclose(arrays[f"confidence_{k}"], level.confidence[0], atol=1e-5)
    assert main(["features", str(tmp_path / "photo.png"), "-o", str(target)]) == 0
    with np.load(target) as arrays:
        assert arrays["image_size"].tolist() == [200, 160] and len(arrays["strides"]) == 5
        assert all(arrays[f"confidence_{k}"].shape == arrays[f"features_{k}"].shape[1:] for k in range(5))
    capsys.readouterr()
    text = [*command[:-1], str(tmp_path / "features.txt")]
    for wrong in ([*command, "--max-side", "0"], [*command, "--max-side", "20"], text):
        assert main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [file.name for file in target.parent.iterdir()] == ["features.npz"]


# ---- the network, with weights that were imported


def colours(width, height):
    """uint8 [H, W, 3]"""
    return np.stack([invented_photo(k, width, height) for k in range(3)], -1)


def as_input(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()


@pytest.fixture(scope="module")
def network(full):
    return load_extractor(full[2]).network


@pytest.mark.parametrize(("width", "height"), [(96, 64), (95, 65), (111, 79)])
def test_levels_of_odd_sizes_lose_less_than_sixteen_pixels(network, width, height):
    pyramid = network(as_input(colours(width, height)))
    assert pyramid.image_size == (width, height)
    for level, stride, channels in zip(pyramid.levels, network.strides, network.channels, strict=True):
        cells = (height // 16 * 16 // stride, width // 16 * 16 // stride)
        assert level.features.shape == (1, channels, *cells) and level.confidence.shape == (1, *cells)
        assert level.features.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(level.features.norm(dim=1), torch.ones(1, *cells))
        assert level.confidence.min() > 0 and level.confidence.max() < 1


def test_cells_are_where_the_pixel_convention_puts_them(network):
    """With kernels that are their own mirror image, a mirrored picture has mirrored features at every image pixel. Any
    other place of the cells than (p + 0.5) / stride - 0.5 would not be symmetric."""
    mirrored = copy.deepcopy(network)
    for module in mirrored.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    image = colours(96, 64)
    pixels = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor((80.0, 48.0)) + 7.5
    opposite = torch.stack((95 - pixels[..., 0], pixels[..., 1]), -1)
    one, two = (mirrored(as_input(i)) for i in (image, image[:, ::-1]))
    for a, b in zip(one.levels, two.levels):
        value_a, confidence_a, inside_a = sample_level(a, pixels)
        value_b, confidence_b, inside_b = sample_level(b, opposite)
        assert inside_a.all() and inside_b.all()
        torch.testing.assert_close(value_a, value_b, atol=1e-4, rtol=0)
        torch.testing.assert_close(confidence_a, confidence_b, atol=1e-4, rtol=0)


def test_extractor_takes_colour_and_grey(network):
    extractor, image = Extractor(network, "test", "0"), colours(80, 64)
    grey = image[..., 1].copy()
    for given, wanted in ((image, image), (grey, np.repeat(grey[..., None], 3, 2))):
        for a, b in zip(extractor.extract(given).levels, network(as_input(wanted)).levels):
            torch.testing.assert_close(a.features, b.features, atol=1e-5, rtol=0)


def test_levels_are_the_same_for_every_map(network):
    assert network.suited_to(4000, 3000) is network and network.with_strides([16, 4, 1]) is network
    with pytest.raises(InputError, match="32, 8"):
        network.with_strides((32, 8))
