# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Learning what the optimizer believes and what its results are worth: samples, search, judge, and the run as a whole."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment_scene import CAMERA, perturbed, scene
from training_scene import one_thread, write_photos  # noqa: F401

from pixloc_ros.alignment import LevelWeights, View
from pixloc_ros.alignment.level_weights import CUES, OUTPUTS
from pixloc_ros.cli.main import main
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.reliability import calibration_error
from pixloc_ros.features import FeaturePyramid, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.tracking.alignment_judge import STATISTICS, AlignmentJudge
from pixloc_ros.training.alignment_samples import (
    AlignmentSample,
    PhotoSamples,
    PriorKind,
    SampleOptions,
    draw_prior,
    draw_samples,
    with_foreign_image,
)
from pixloc_ros.training.alignment_weights import (
    LEVEL_CUES,
    AlignmentConfig,
    Objective,
    Parameters,
    PhotoSection,
    SearchSection,
    learn_weights,
    read_config,
)
from pixloc_ros.training.judge_training import Outcome, fit_judge, honest_elsewhere
from pixloc_ros.training.pairs import BadSample, PairShape
from pixloc_ros.training.photos import MotionRange, PhotoPairs, list_photos, repeated

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = PriorKind("small", 1.0, 0.02, 1.0), PriorKind("large", 10.0, 0.2, 3.0)
OPTIONS = SampleOptions(KINDS, points=(40, 60))


def silent(_):
    pass


# ---- samples


def test_priors_are_as_wrong_as_they_claim_or_as_much_more_as_they_are_pushed():
    truth, rng = se3.se3_exp(torch.tensor([1.0, 2, 3, 0.4, -0.5, 0.6], dtype=torch.float64)), np.random.default_rng(0)
    for pushed, expected in ((0.0, 6.0), (1.0, 6.0 * 9)):
        options = replace(OPTIONS, spread=0.0, pushed=pushed, pushed_factor=3.0)
        distances, names = [], []
        for _ in range(1500):
            kind, start, information = draw_prior(truth, 4.0, options, rng)
            error = se3.se3_log(start @ se3.inverse(truth))
            distances.append(float(error @ information @ error))
            names.append(kind)
            # 0.3 to 1.5 times the kind's whole angle, of which each axis has a third of the variance
            degrees = math.degrees(float(information[5, 5]) ** -0.5) * 3**0.5
            assert 0.3 <= degrees / {"small": 1.0, "large": 10.0}[kind.split()[0]] <= 1.5
        assert np.mean(distances) == pytest.approx(expected, rel=0.06)
        assert {name.endswith(" pushed") for name in names} == {pushed == 1.0}
        assert np.mean([name.startswith("large") for name in names]) == pytest.approx(0.75, abs=0.04)


def photo_samples(folder, extractor=None):
    files = sorted(write_photos(folder / "photos", 6).iterdir())
    return PhotoSamples(PhotoPairs(files, PairShape(128, 96, 96)), extractor or load_extractor(), "photos")


def test_samples_are_a_function_of_the_seed(tmp_path):
    source = photo_samples(tmp_path)
    one, again, other = (draw_samples(source, 3, OPTIONS, (seed, 0)) for seed in (5, 5, 6))
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a.start, b.start) and torch.equal(a.truth, b.truth) and a.kind == b.kind
        assert torch.equal(a.view.points.xyz, b.view.points.xyz)
        for x, y in zip(a.view.pyramid.levels, b.view.pyramid.levels):
            assert torch.equal(x.features, y.features)
    assert not any(torch.equal(a.start, b.start) for a, b in zip(one, other))
    for sample in one:
        assert 40 <= len(sample.view.points) <= 60 and sample.kind.split()[0] in ("small", "large")
        assert sample.error(sample.truth) == pytest.approx((0, 0), abs=1e-5)
        # The points are seen in the image where the truth puts them.
        pixels, valid = sample.view.camera.project(se3.transform(sample.truth, sample.view.points.xyz.double())[None])
        assert float((valid & sample.view.camera.in_image(pixels)).double().mean()) > 0.5


class Unusable:
    """A source of which hardly any draw is usable."""

    name, draws = "blank photos", 0

    def __init__(self, usable=()):
        self.usable = list(usable)

    def draw(self, options, rng):
        self.draws += 1
        if self.draws % 10 == 0 and self.usable:
            return self.usable.pop()
        raise BadSample("blank photo")


def test_data_that_gives_hardly_any_sample_ends_with_what_to_do():
    source = Unusable()
    with pytest.raises(InputError, match="blank photos: only 0 of .* draws are usable: check the data"):
        draw_samples(source, 2, OPTIONS, (0,))
    assert source.draws < 200
    assert draw_samples(Unusable("ab"), 2, OPTIONS, (0,)) == ["b", "a"]  # one in ten is enough


def toy(seed, scale=1.0, claimed=1.0):
    """A sample whose features tell the pose exactly; its prior is off by `scale` times what `claimed` is to 1."""
    pyramid, points, truth = scene(torch.float32, seed=seed)
    truth = truth.double()
    start = perturbed(truth, scale, seed)
    std = torch.tensor([0.06] * 3 + [0.02] * 3, dtype=torch.float64) * claimed
    return AlignmentSample(View(pyramid, CAMERA, points), truth, start, torch.diag(std**-2), 4.0, "toy", "small")


def test_a_foreign_image_takes_the_place_of_the_sample_s_own():
    one, other = toy(0), toy(1)
    foreign = with_foreign_image(one, other)
    assert foreign.kind == "foreign image" and foreign.view.pyramid is other.view.pyramid
    assert foreign.view.points is one.view.points and torch.equal(foreign.start, one.start)
    fewer = replace(other, view=replace(other.view, pyramid=FeaturePyramid(other.view.pyramid.levels[:1], (256, 192))))
    assert with_foreign_image(one, fewer) is None


# ---- the search


@pytest.mark.parametrize("cues", [CUES, CUES[2:], ()])
def test_a_table_is_its_vector_and_what_is_not_sought_stays(cues):
    parameters, rng = Parameters(3, cues), np.random.default_rng(0)
    start = rng.normal(size=(3, 6, 6))
    vector = rng.normal(size=len(parameters.vector(start)))
    table = parameters.table(vector, start)
    np.testing.assert_array_equal(parameters.vector(table), vector)
    np.testing.assert_array_equal(parameters.table(parameters.vector(table), table), table)
    assert table[0, 2, 0] == start[0, 2, 0] and table[0, 3, 0] == start[0, 3, 0]  # nothing is coarser than the first level
    assert (table[1:, :, 0] != start[1:, :, 0]).all()
    if cues:
        changed = table[..., 1:] != start[..., 1:]
        np.testing.assert_array_equal(table[:, 2, 1:][changed[:, 2]], table[:, 3, 1:][changed[:, 3]])
        np.testing.assert_array_equal(table[:, 4, 1:][changed[:, 4]], table[:, 5, 1:][changed[:, 5]])
        shared = [k for k, cue in enumerate(CUES) if cue not in LEVEL_CUES]
        assert all(len(np.unique(table[:, o, 1 + c])) == 1 for o in range(6) for c in shared if changed[0, o, c])
        assert {cue for k, cue in enumerate(CUES) if changed[..., k].any()} == set(cues)
        assert all(len(np.unique(table[:, 0, 1 + CUES.index(cue)])) == 3 for cue in set(LEVEL_CUES) & set(cues))
    else:
        np.testing.assert_array_equal(table[..., 1:], start[..., 1:])


def toy_config(generations):
    search = SearchSection(generations=generations, population=6, batch=8, step=0.5, held_out=4, threads=1, pull=0.0)
    return AlignmentConfig(OPTIONS, (PhotoSection(("none",), 1),), search=search)


def test_weights_that_believe_the_prior_too_much_are_unlearned_and_a_run_goes_on(tmp_path):
    """Images that tell the pose exactly, priors that claim a hundredth of their error."""
    samples = [toy(seed, 0.5, 0.01) for seed in range(12)]
    objective, shares = Objective(samples, 2, 1), np.ones(len(samples))
    start = LevelWeights.constant(2, 0.15, 0.15, 0.1, 1.0).table.double().numpy()
    before = objective.losses([start], range(len(samples)))
    said = []
    learn_weights(objective, shares, start, toy_config(3), tmp_path, False, said.append)
    assert json.loads((tmp_path / "search.json").read_text())["done"] == 3
    table = learn_weights(objective, shares, start, toy_config(12), tmp_path, True, said.append)
    after = objective.losses([table], range(len(samples)))
    assert before.shape == after.shape == (1, 12) and after.mean() < before.mean() - 0.5
    assert "going on after generation 3" in said and json.loads((tmp_path / "search.json").read_text())["done"] == 12
    rows = [json.loads(line) for line in (tmp_path / "alignment_log.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows] == [3, 10, 12] and rows[-1]["held_out"] < rows[0]["held_out"]
    assert learn_weights(objective, shares, start, toy_config(12), tmp_path, True, silent) == pytest.approx(table)


def test_a_pose_that_gets_lost_costs_no_more_than_any_other():
    samples = [toy(0), replace(toy(0), start=perturbed(toy(0).truth, 60.0))]
    lost = Objective(samples, 2, 1).losses([LevelWeights.constant(2).table.double().numpy()], range(2))
    assert lost[0, 0] < 0 < lost[0, 1] <= 3.0


# ---- the judge


def synthetic(count, seed, source="a", times=1.0):
    """Outcomes by a rule: even odds at s0 = -1/4 with a narrow prior, whatever s0 with a wide one; noise 10^(0.4 + 0.5 s3), turn
    10^-2, shift 10^-1.5; errors times a factor."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        known, width = rng.normal(size=len(STATISTICS)), rng.random()
        root = rng.normal(size=(6, 6)) * 0.003
        claimed = root @ root.T + 1e-6 * np.eye(6)
        covariance = 10 ** (0.4 + 0.5 * known[3]) * claimed + np.diag([10.0**-3] * 3 + [10.0**-4] * 3)
        error = times * np.linalg.cholesky(covariance) @ rng.normal(size=6)
        likely = 1 / (1 + math.exp(-(0.5 - width + 2 * (1 - width) * known[0] - known[20])))
        found.append(Outcome(np.r_[known, width], bool(rng.random() < likely), error, claimed, number, source))
    return found


def test_a_judge_learns_the_rule_by_which_outcomes_were_made():
    judge, fresh = fit_judge(synthetic(4000, 0), 3.0), synthetic(3000, 1)
    expected = np.zeros((2, 1 + len(STATISTICS)))
    expected[:, [0, 1, 21]] = (0.5, 2.0, -1.0), (-0.5, 0.0, -1.0)
    np.testing.assert_allclose(judge.log_odds, expected, atol=0.4)
    assert judge.noise[0] == pytest.approx(0.4, abs=0.1) and judge.noise[4] == pytest.approx(0.5, abs=0.1)
    assert judge.turn[0] == pytest.approx(-2, abs=0.05) and judge.shift[0] == pytest.approx(-1.5, abs=0.05)
    right = [one for one in fresh if one.right]
    assert np.mean([one.nees(judge) for one in right]) == pytest.approx(6, abs=0.4)
    assert np.mean([one.nees(AlignmentJudge.by_hand()) for one in right]) > 20
    likely = np.array([judge.probability(one.statistics) for one in fresh])
    assert calibration_error(likely, np.array([one.right for one in fresh])) < 0.03


def test_covariance_is_honest_where_errors_are_larger_than_what_taught_it():
    found = [*synthetic(1500, 0), *synthetic(1500, 1, "b", times=2.0)]
    judge = fit_judge(found, 3.0)
    wider = honest_elsewhere(judge, found, 3.0)
    # Taught by b and tried on a: 6 / 4; the other way round: 6 * 4.
    assert wider.elsewhere == pytest.approx((0.25 + 4) / 2, rel=0.1)
    assert found[0].nees(wider) == pytest.approx(found[0].nees(judge) / wider.elsewhere)
    assert wider.probability(found[0].statistics) == judge.probability(found[0].statistics)
    assert honest_elsewhere(judge, found[:100], 3.0) is judge  # one kind only: nothing to compare


def test_nees_is_the_error_in_units_of_the_covariance():
    judge = AlignmentJudge.by_hand()
    one = Outcome(
        np.zeros(1 + len(STATISTICS)), True, np.array([0.3, 0, 0, 0, 0, 0.02]), np.diag([0.01] * 3 + [1e-4] * 3), 0, "a"
    )
    assert one.nees(judge) == pytest.approx(9 + 4)


@pytest.mark.parametrize(
    "likely, right, error",
    [
        ([0.75] * 4, [1, 1, 1, 0], 0.0),
        ([0.95] * 4, [1, 1, 1, 0], 0.2),
        ([0.0, 1.0], [0, 1], 0.0),
        ([0.0, 1.0], [1, 0], 1.0),
        ([0.1] * 3 + [0.9], [0, 0, 0, 0], (3 * 0.1 + 0.9) / 4),
    ],
)
def test_calibration_error(likely, right, error):
    assert calibration_error(np.array(likely), np.array(right, bool)) == pytest.approx(error)


# ---- a run


def write_config(folder, **change):
    write_photos(folder / "photos", 30)
    values = {
        "samples": {"priors": [{"name": "small", "rotation_deg": 2, "depth_share": 0.03, "weight": 1}], "points": [50, 90]},
        "photos": [{"folders": ["photos"], "samples": 12, "view": [128, 96]}],
        "search": {"generations": 2, "population": 4, "batch": 6, "held_out": 3, "threads": 1},
        "judge": {"alignments": 4},
        "card": {"alignment": "invented photos"},
        **change,
    }
    path = folder / "alignment.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sampels": {}}, "unknown key 'sampels'"),
        ({"search": {"populaton": 3}}, "unknown key 'search.populaton'"),
        ({"search": {"generations": -1}}, "generations below 0"),
        ({"search": {"population": 1}}, "population below 4"),
        ({"search": {"batch": "many"}}, "'search.batch' must be int"),
        ({"search": {"held_out": 1}}, "held_out below 2"),
        ({"judge": {"alignments": 1}}, "1 or more but not all must be foreign"),
        ({"photos": []}, "give at least one"),
        ({"cues": ["points", "colour"]}, "cues: 'colour' is none of residuals at the start"),
        (
            {"photos": [{"folders": ["photos"], "samples": 3, "augmentation": {"blurr": 1}}]},
            "unknown key 'photos.0..augmentation.blurr'",
        ),
        ({"photos": [{"folders": ["photos"], "samples": 0}]}, "a sample or more"),
        ({"photos": [{"folders": ["photos"], "samples": 3, "repeated": 1.5}]}, "repeated is a share"),
        ({"photos": [{"samples": 3}]}, "lacks 'folders'"),
        ({"places": [{"map": "a.pixmap", "samples": 3}]}, "a.pixmap needs queries and images, or a drive"),
        ({"places": [{"map": "a.pixmap", "samples": 3, "queries": "q"}]}, "needs queries and images"),
        ({"samples": {"priors": []}}, "priors must not be empty"),
        ({"samples": {"priors": [{"name": "x", "rotation_deg": 0, "depth_share": 1, "weight": 1}]}}, "'x' must be above 0"),
        ({"samples": {"priors": [{"name": "x", "rotation_deg": 1, "depth_share": 1}]}}, "lacks 'weight'"),
        ({"samples": {}}, "at least the section 'samples'"),
    ],
)
def test_mistakes_in_the_configuration_are_told_in_one_line(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        read_config(write_config(tmp_path, **change))
    assert "\n" not in str(caught.value)


def test_a_run_from_the_command_line_gives_weights_that_serve_and_its_folder_is_not_overwritten(tmp_path, capsys):
    config, out = write_config(tmp_path, judge={"alignments": 4, "rounds": 2}), tmp_path / "run"
    assert main(["train", str(config), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    first, both = (int(number) for number in re.findall(r"judge: (\d+) alignments", said))
    assert 0 < first < both
    assert "generation 2/2" in said and "calibration error" in said and str(out / "best.safetensors") in said
    learned, shipped = load_extractor(out / "best.safetensors"), load_extractor()
    assert learned.fingerprint == shipped.fingerprint  # maps stay usable
    levels = len(learned.strides)
    assert LevelWeights.of(learned.companions, levels, "x").table.shape == (levels, len(OUTPUTS), 1 + len(CUES))
    judge = AlignmentJudge.of(learned.companions, "x")
    assert not np.array_equal(judge.log_odds, AlignmentJudge.by_hand().log_odds)
    kept = (out / "best.safetensors").read_bytes()
    assert main(["train", str(config), "-o", str(out)]) == 2
    assert "holds a run already: go on with --resume, or choose another folder" in capsys.readouterr().err
    assert (out / "best.safetensors").read_bytes() == kept
    assert main(["train", str(config), "-o", str(out), "--resume"]) == 0
    assert "going on after generation 2" in capsys.readouterr().out


def test_a_run_gives_the_means_of_its_weights_and_of_earlier_ones(tmp_path):
    def companions(name, **change):
        assert main(["train", str(write_config(tmp_path, **change)), "-o", str(tmp_path / name)]) == 0
        return load_extractor(tmp_path / name / "best.safetensors").companions

    one = companions("one")
    other = companions("other", search={"generations": 2, "population": 4, "batch": 6, "held_out": 3, "threads": 1, "seed": 1})
    both = companions("both", average=["one/best.safetensors", "other/best.safetensors"])
    name = "levels.weights"
    assert not torch.equal(one[name], other[name])
    torch.testing.assert_close(both[name], (2 * one[name] + other[name]) / 3)
    # The judge has learned from what these weights do.
    assert not torch.equal(both["judge.probability"], (2 * one["judge.probability"] + other["judge.probability"]) / 3)


def test_data_that_is_missing_is_told_in_one_line(tmp_path, capsys):
    for change, word in (
        ({"photos": [{"folders": ["nowhere"], "samples": 3}]}, "no folder"),
        ({"start": "nothing"}, "no weights"),
        ({"weights": "earlier.safetensors"}, "earlier.safetensors"),
        ({"average": ["earlier.safetensors"]}, "earlier.safetensors"),
        ({"photos": [], "places": [{"map": "a.pixmap", "samples": 3, "drive": "d"}]}, "a.pixmap"),
    ):
        assert main(["train", str(write_config(tmp_path, **change)), "-o", str(tmp_path / word.replace(" ", "_"))]) == 2
        error = capsys.readouterr().err
        assert word in error and "Traceback" not in error


@pytest.mark.parametrize("seed", range(8))
def test_a_part_of_a_photo_repeats_and_what_is_around_it_stays(seed):
    photo = np.random.default_rng(99).integers(0, 256, (120, 200), np.uint8)
    result = repeated(photo, 160, np.random.default_rng(seed))
    assert result.shape == photo.shape and result.dtype == photo.dtype
    rows, columns = np.nonzero(result != photo)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1

    def repeats(image, shift):
        return np.array_equal(image[:, shift:], image[:, :-shift])

    band = result[top:bottom, left:right]
    assert any(repeats(one, shift) for one in (band, band.T) for shift in range(10, 57) if shift < one.shape[1])
    outside = np.ones(photo.shape, bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(result[outside], photo[outside])


def test_pairs_of_photos_repeat_only_where_they_shall(tmp_path):
    files, shape = list_photos([write_photos(tmp_path, 12)], False), PairShape(128, 96, 64)
    draw = lambda *share: PhotoPairs(files, shape, MotionRange(), *share).draw(np.random.default_rng(3)).reference  # noqa: E731
    assert np.array_equal(draw(), draw(0.0)) and not np.array_equal(draw(), draw(1.0))
