# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What an alignment is worth: the judge's numbers, and single images that are sought where the first answer is doubtful."""

import math
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from alignment_scene import CAMERA, SIZE, perturbed, scene
from mapping_helpers import look_at, pinhole, plane_view, texture
from scenes import plane_map

from pixloc_ros.alignment import AlignmentOptions, ReferencePoints, View, align
from pixloc_ros.errors import InputError
from pixloc_ros.features import FeaturePyramid, load_extractor
from pixloc_ros.geometry import se3
from pixloc_ros.localization import Localizer, alone
from pixloc_ros.tracking.alignment_judge import STATISTICS, AlignmentJudge, statistics_of
from pixloc_ros.tracking.covariances import isotropic
from pixloc_ros.tracking.frame_aligner import inverse_information
from pixloc_ros.tracking.judge import FrameContext, Judge
from pixloc_ros.tracking.options import QualityGates, TrackerOptions
from pixloc_ros.tracking.prior_std import WIDE_PRIOR
from pixloc_ros.tracking.types import FrameAlignment, PreparedFrame

EYE = torch.eye(4, dtype=torch.float64)
GATES = QualityGates()


def statistics(**values):
    """All 0 but those named, spaces and commas being underscores; `width` is the prior's."""
    found = np.zeros(1 + len(STATISTICS))
    found[-1] = values.pop("width", 0.0)
    names = [name.replace(", ", "_").replace(" ", "_") for name in STATISTICS]
    for name, value in values.items():
        found[names.index(name)] = value
    return found


def judge_of(**rows):
    """A judge whose constants and slopes are 0 but those given, each [constant, slope of the first statistic]; for log_odds, of a
    narrow and of a wide prior."""
    numbers = {name: np.zeros(1 + len(STATISTICS)) for name in ("noise", "turn", "shift")}
    numbers["log_odds"] = np.zeros((2, 1 + len(STATISTICS)))
    for name, values in rows.items():
        numbers[name][..., :2] = values
    return AlignmentJudge(**numbers)


# ---- the numbers


@pytest.mark.parametrize(
    "share, gate", [(0.15, GATES.min_probability), (0.32, GATES.min_probability_search), (0.40, GATES.sure_probability)]
)
def test_by_hand_the_share_of_points_that_agree_decides(share, gate):
    """The gates are what they were when shares were compared: on the level before the finest, whatever else is known."""
    others = statistics(agreement_level_4=-0.1, recognised_level_0=1.0, visible_points=-1.0, moved_in_all=0.3)
    for known in (0.0, 1.0):
        likely = [
            AlignmentJudge.by_hand().probability(known * others + statistics(agreement_level_3=math.log10(s + 0.02)))
            for s in (share, 0.99 * share)
        ]
        assert likely[0] == pytest.approx(gate, abs=2e-3) and likely[1] < likely[0]


def test_by_hand_a_covariance_is_what_it_claims():
    claimed = torch.diag(torch.tensor([1e-4, 2e-4, 3e-4, 1e-6, 2e-6, 3e-6], dtype=torch.float64))
    for depth in (3.0, 100.0, math.inf):
        torch.testing.assert_close(AlignmentJudge.by_hand().covariance(claimed, statistics(), depth), claimed, rtol=1e-3, atol=0)


def test_a_covariance_is_noise_times_what_is_claimed_and_what_points_have_in_common():
    """1 + 2 s: at s = 0.25, powers of ten 1.5, -2.5 and -1.5."""
    judge, known = judge_of(noise=[1, 2], turn=[-3, 2], shift=[-2, 2]), statistics(agreement_level_0=0.25)
    root = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 6)))
    claimed = root @ root.T
    expected = 10**1.5 * claimed + torch.diag(torch.tensor([(10**-1.5 * 5) ** 2] * 3 + [(10**-2.5) ** 2] * 3))
    torch.testing.assert_close(judge.covariance(claimed, known, 5.0), expected)
    expected[:3, :3] = 10**1.5 * claimed[:3, :3]  # nothing is in view: a share of no depth
    torch.testing.assert_close(judge.covariance(claimed, known, math.inf), expected)


def test_the_wider_the_prior_the_more_counts_what_is_learned_for_wide_ones():
    """Log odds 1 + 2 s with a narrow prior, -3 + 6 s with a wide one; s = 0.25."""
    judge = judge_of(log_odds=[[1, 2], [-3, 6]], noise=[1, 2])
    for width, expected in ((0.0, 1.5), (1.0, -1.5), (0.25, 0.75)):
        known = statistics(agreement_level_0=0.25, width=width)
        assert judge.probability(known) == pytest.approx(1 / (1 + math.exp(-expected)))
        noise = float(judge.covariance(isotropic(1, 1), known, 1.0)[0, 0] - 1)
        assert noise == pytest.approx(10**1.5), "a covariance that follows the prior counts it twice"


def test_absurd_statistics_stay_within_bounds():
    judge, claimed = judge_of(log_odds=[[0, 1e9]] * 2, noise=[0, 1e9], turn=[0, -1e9], shift=[0, -1e9]), isotropic(0.1, 0.1)
    for sign in (-1, 1):
        known = statistics(agreement_level_0=sign * 1e9)
        assert 0 < judge.probability(known) < 1
        assert bool(torch.linalg.eigvalsh(judge.covariance(claimed, known, 1.0)).isfinite().all())


def test_a_weights_file_s_judge_is_taken_whole_or_refused():
    numbers = np.random.default_rng(0).normal(size=(5, 1 + len(STATISTICS)))
    kept = AlignmentJudge(numbers[:2], *numbers[2:])
    again, known = AlignmentJudge.of(kept.tensors(), "weights"), statistics(visible_share=0.7, agreement_level_3=0.4)
    assert again.probability(known) == pytest.approx(kept.probability(known), rel=1e-5)
    torch.testing.assert_close(
        again.covariance(isotropic(1, 1), known, 2.0), kept.covariance(isotropic(1, 1), known, 2.0), rtol=1e-5, atol=0
    )
    by_hand = AlignmentJudge.of({}, "weights")
    assert by_hand.probability(known) == AlignmentJudge.by_hand().probability(known)
    for wrong in (torch.zeros(1), torch.ones(2), torch.tensor([torch.nan]), torch.tensor([torch.inf])):
        with pytest.raises(InputError, match="weights.*'judge.elsewhere' must hold one number, 1 or more: train it again"):
            AlignmentJudge.of(kept.tensors() | {"judge.elsewhere": wrong}, "weights")
    for name in set(kept.tensors()) - {"judge.elsewhere"}:
        shape, shown = ((2, 22), "2x22") if name == "judge.probability" else ((22,), "22")
        for wrong in (torch.zeros(3), torch.zeros(3, *shape), torch.full(shape, torch.nan)):
            with pytest.raises(InputError, match=f"weights.*'{name}' must hold {shown} finite numbers: train it again"):
                AlignmentJudge.of({**kept.tensors(), name: wrong}, "weights")


# ---- what it is given


def aligned(levels, start_scale=0.5):
    """An alignment with so many levels, and its start."""
    pyramid, points, truth = scene(torch.float32)
    which = [0, 1] if levels == 2 else [min(k, 1) for k in range(levels)]
    pyramid = FeaturePyramid(tuple(pyramid.levels[k] for k in which), SIZE)
    points = ReferencePoints(points.xyz, tuple(points.descriptors[k] for k in which), (None,) * levels)
    start = perturbed(truth.double(), start_scale)
    return align(View(pyramid, CAMERA, points), start, AlignmentOptions(backend="torch")), start


@pytest.mark.parametrize("levels", range(1, 6))
def test_statistics_are_the_same_for_any_number_of_levels(levels):
    """Counted from the finest; the coarsest stands for those that are missing."""
    result, start = aligned(levels)
    found = statistics_of(result, inverse_information(result.information).numpy(), start.numpy(), 4.0)
    assert found.shape == (1 + len(STATISTICS),) and np.isfinite(found).all()
    named = dict(zip(STATISTICS, found))
    for k in range(5):
        trace = result.trace[max(levels - 5 + k, 0)]
        assert named[f"agreement, level {k}"] == pytest.approx(math.log10(float(trace.agreement) + 0.02))
        assert named[f"recognised, level {k}"] == pytest.approx(float(trace.recognised))
        assert named[f"slopes, level {k}"] == pytest.approx(float(trace.slopes))
    visible = int(result.visible.sum())
    assert named["visible points"] == pytest.approx(math.log10(visible / 500))
    assert named["visible share"] == pytest.approx(visible / 120)
    away, turned = se3.pose_difference(se3.inverse(start), se3.inverse(result.camera_from_map.double()))
    assert 10 ** named["moved in all"] == pytest.approx(float(away) / 4 + float(turned), rel=0.01)
    assert named["moved since level 1"] <= named["moved in all"] + 0.5


def test_statistics_of_what_the_image_does_not_tell_are_finite():
    result, start = aligned(2)
    unknown = np.full((6, 6), np.inf)
    for depth in (math.inf, math.nan, 0.0, -3.0):
        found = statistics_of(result, unknown, start.numpy(), depth)
        assert np.isfinite(found).all()
        assert 0 <= AlignmentJudge.by_hand().probability(found) <= 1
    certain = statistics_of(result, np.zeros((6, 6)), start.numpy(), 4.0)
    assert np.isfinite(certain).all()


def test_spreads_are_standard_deviations_in_depths_and_radians():
    result, start = aligned(2)
    found = statistics_of(result, isotropic(0.2, 0.01).numpy(), start.numpy(), 4.0)
    named = dict(zip(STATISTICS, found))
    assert named["spread of translation"] == pytest.approx(math.log10(0.05))
    assert named["spread of rotation"] == pytest.approx(-2)


def test_the_width_of_a_prior_is_between_narrow_and_wide():
    """By the mean of the logarithms: a hundredth of a depth of 4 m and a hundredth of a radian are a quarter of the way."""
    result, start = aligned(2)
    width = lambda prior: statistics_of(result, np.eye(6), start.numpy(), 4.0, prior)[-1]  # noqa: E731
    assert width(None) == 1 and width(isotropic(10.0, 3.0).numpy()) == 1
    assert width(isotropic(0.04, 0.01).numpy()) == pytest.approx(0.25)
    assert width(isotropic(0.004, 0.1).numpy()) == pytest.approx(0.25)
    assert width(isotropic(0.4, 0.1).numpy()) == pytest.approx(0.75)
    assert width(isotropic(0.004, 0.0005).numpy()) == 0


# ---- single images


@dataclass
class ToldAligner:
    """Answers with the nearest of some poses, each with its probability; `agree` is the share of points that agree. As a search
    around a pose it answers with all of them that are not known. `likely`: what a comparison by likeness finds."""

    answers: list[tuple[torch.Tensor, float]]
    agree: float = 0.6
    sought: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    likely: tuple[int, ...] = ()

    def localize_prepared(self, prepared, map_from_camera, prior_covariance=None):
        pose, likely = min(self.answers, key=lambda a: float(se3.pose_difference(a[0], map_from_camera)[0]))
        quality = 0.1, self.agree, 0.9, 300, 5
        return FrameAlignment(pose, isotropic(1e-3, 1e-3), True, "converged", *quality, depth=2.0, probability=likely)

    def around_similar(self, frame, covariance, known):
        return []

    def likeliest(self, prepared, pose, covariance, known):
        return [self.localize_prepared(prepared, self.answers[k][0]) for k in self.likely]

    def around(self, prepared, pose, covariance, known):
        self.sought.append((pose, covariance))
        found = [self.localize_prepared(prepared, answer) for answer, _ in self.answers]
        return [one for one in found if not any(torch.equal(one.map_from_camera, k.map_from_camera) for k in known)]


def at(x, y=0.0):
    pose = EYE.clone()
    pose[0, 3], pose[1, 3] = x, y
    return pose


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A camera and a map of a textured plane, 3 m below."""
    camera = pinhole(320, 240, 260.0)
    poses = torch.stack([look_at((x, -0.6, 3.0), (x, 0.0, 0.0)) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    return camera, plane_map(tmp_path_factory.mktemp("flat") / "images", load_extractor(), camera, poses)


@pytest.fixture
def told(flat):
    """A localizer whose aligner is told what to find."""

    def localizer(*answers):
        made = Localizer(flat[1], load_extractor())
        made.aligner = made.relocalizer = ToldAligner(list(answers))
        return made

    return localizer


def test_a_doubtful_pose_is_sought_again_and_the_likeliest_within_the_prior_is_taken(told):
    vague = isotropic(0.5, 0.1)
    localizer = told((at(0.0), 0.6), (at(0.5), 0.992), (at(-3.0), 0.999))  # the last is six standard deviations away
    found = localizer.locate_prepared(None, None, at(0.0), vague)
    assert found.success and found.probability == pytest.approx(124 / (1 + 124 + 1.5))
    torch.testing.assert_close(found.map_from_camera, at(0.5))
    ((pose, covariance),) = localizer.aligner.sought
    assert torch.equal(pose, at(0.0)) and torch.equal(covariance, vague)
    localizer.locate_prepared(None, None, at(0.0), isotropic(0.1, 0.05))  # repetitions lie at its edge: looked for further away
    torch.testing.assert_close(localizer.aligner.sought[-1][1], WIDE_PRIOR.covariance(2.0))


def test_a_pose_far_from_its_prior_yields_to_a_nearer_one(told):
    """Six standard deviations: places that repeat draw an image further than a prior allows."""
    localizer = told((at(3.0), 0.97), (at(0.6), 0.97))
    nearest = localizer.aligner.localize_prepared
    drawn = lambda prepared, start, prior=None: nearest(prepared, start if prior is None else at(3.0))  # noqa: E731
    localizer.aligner.localize_prepared = drawn
    found = localizer.locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
    assert found.success
    torch.testing.assert_close(found.map_from_camera, at(0.6))


def test_what_lies_outside_its_prior_is_not_taken_however_likely_it_looks(told):
    found = told((at(0.0), 0.2), (at(3.0), 0.999)).locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
    assert not found.success and found.doubtful and found.probability == 0.2
    torch.testing.assert_close(found.map_from_camera, at(0.0))


def test_the_likeliest_of_many_must_be_as_likely_as_one_of_a_search(told):
    """Of many wrong poses one may look fair."""
    for likely, taken in ((0.94, False), (0.96, True)):
        found = told((at(0.0), 0.1), (at(0.5), likely)).locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
        assert found.success == taken and found.doubtful != taken
        assert found.probability == pytest.approx(odds(likely) / (1 + odds(likely) + odds(0.1)))
    for prior, taken in ((isotropic(0.5, 0.1), False), (isotropic(0.02, 0.01), True)):  # a narrow prior holds it
        assert told((at(0.0), 0.86)).locate_prepared(None, None, at(0.0), prior).success == taken


def test_of_two_places_that_look_the_same_none_is_believed(told):
    """Shelves that repeat: both poses look right by themselves, and one of them is not."""
    found = told((at(0.0), 0.975), (at(0.5), 0.97)).locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
    assert not found.success and found.doubtful and found.reason == "another place looks the same"
    assert found.probability == pytest.approx(39 / (1 + 39 + 97 / 3))
    # One of them looks so much better that it is believed.
    found = told((at(0.0), 0.97), (at(0.5), 0.9999)).locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
    assert found.success
    torch.testing.assert_close(found.map_from_camera, at(0.5))


def odds(probability):
    return probability / (1 - probability)


@pytest.mark.parametrize("others, expected", [((), 0.9), ((0.9,), 9 / 19), ((0.5, 0.5), 9 / 12), ((0.0,), 0.9), ((1.0,), 0.0)])
def test_poses_that_exclude_one_another_share_the_odds(told, others, expected):
    """By Bayes' rule: none of n is right with odds 1, each one with its own."""
    answers = [(at(0.0), 0.9), *((at(float(k + 1)), likely) for k, likely in enumerate(others))]
    aligner = told(*answers).aligner
    assert alone([aligner.localize_prepared(None, pose) for pose, _ in answers]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("likely, prior", [(0.981, isotropic(0.5, 0.1)), (0.981, isotropic(0.02, 0.01))])
def test_a_sure_pose_and_a_narrow_prior_are_not_sought(told, likely, prior):
    localizer = told((at(0.0), likely))
    assert localizer.locate_prepared(None, None, at(0.0), prior).success
    assert not localizer.aligner.sought


def test_where_half_of_the_points_do_not_agree_another_pose_may_explain_as_many(told):
    for agree, sought in ((0.45, True), (0.55, False)):
        localizer = told((at(0.0), 0.999), (at(0.5), 0.998))
        localizer.aligner.agree = agree
        found = localizer.locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
        assert bool(localizer.aligner.sought) == sought and found.success != sought


def image_at(camera, x, y, height):
    pose = look_at((x, y - 0.6, height), (x, y, 0.0))
    return plane_view(pose, camera, texture())[0], pose


def distance(location, pose):
    return float(se3.pose_difference(location.map_from_camera, pose)[0])


@pytest.mark.parametrize("likely, sought", [((1,), 0), ((0,), 1), ((), 1), ((1, 2), 1)])
def test_what_the_image_looks_like_is_believed_only_where_it_is_sure_and_alone(told, likely, sought):
    localizer = told((at(0.0), 0.6), (at(0.5), 0.992), (at(0.3), 0.99))
    localizer.aligner.likely = likely
    found = localizer.locate_prepared(None, None, at(0.0), isotropic(0.5, 0.1))
    assert len(localizer.aligner.sought) == sought and found.success == (not sought)
    torch.testing.assert_close(found.map_from_camera, at(0.5))


def test_an_image_is_found_with_a_vague_prior_and_without_one(flat):
    camera, map_ = flat
    localizer, (image, pose) = Localizer(map_, load_extractor()), image_at(camera, 0.3, 0.1, 2.7)
    covariance = isotropic(0.9, 0.6)
    off = pose @ se3.se3_exp(torch.tensor([1.48, 0.83, 0.96, 0.03, 0.55, 0.22], dtype=torch.float64))
    alone = localizer.aligner.localize_prepared(localizer.aligner.prepare(image, camera), off, covariance)
    assert alone.probability < 0.9, "the test needs a prior from which the first alignment fails"
    for found in (localizer.locate(image, camera, off, covariance), localizer.locate(image, camera)):
        assert found.success and distance(found, pose) < 0.02
        assert found.probability > max(0.9, alone.probability)


def test_where_the_map_repeats_the_other_places_are_found_and_none_is_believed(tmp_path):
    """Shelves that repeat every 0.75 m, seen from 3 m: the truth is among what a search finds, and no pose along the shelves is
    called right, but where a prior holds it."""
    camera, shelves = pinhole(320, 240, 260.0), np.tile(texture()[:, :128], (1, 8))
    along = lambda x: look_at((x, -0.6, 3.0), (x, 0.0, 0.0))  # noqa: E731
    map_ = plane_map(tmp_path, load_extractor(), camera, torch.stack([along(x) for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]), shelves)
    localizer, truth = Localizer(map_, load_extractor()), along(0.1)
    image = plane_view(truth, camera, shelves)[0]
    prepared = localizer.aligner.prepare(image, camera)
    wrong = localizer.aligner.localize_prepared(prepared, along(0.85), isotropic(0.05, 0.02))
    assert float(se3.pose_difference(wrong.map_from_camera, along(0.85))[0]) < 0.05, "the test needs a place that looks the same"
    others = localizer.relocalizer.around(prepared, along(0.6), isotropic(0.5, 0.1), [wrong])
    assert any(float(se3.pose_difference(one.map_from_camera, truth)[0]) < 0.05 for one in others)
    frame = PreparedFrame(0, image, prepared.camera, prepared)
    others = localizer.relocalizer.around_similar(frame, WIDE_PRIOR.covariance(wrong.depth), [wrong])
    assert any(float(se3.pose_difference(one.map_from_camera, truth)[0]) < 0.05 for one in others)
    half = image.copy()
    half[:, :170] = plane_view(truth, camera, texture(seed=9))[0][:, :170]
    for found in (localizer.locate(image, camera), localizer.locate(half, camera, along(0.85), isotropic(0.7, 0.1))):
        assert not found.success and found.reason == "another place looks the same"
    a_repetition_off = localizer.locate(half, camera, along(0.85), isotropic(0.25, 0.05))  # three standard deviations
    assert not a_repetition_off.success
    held = localizer.locate(image, camera, truth, isotropic(0.05, 0.02))
    assert held.success and distance(held, truth) < 0.03


def moved_about(image, pixels):
    """The image, blocks of which are moved by so many pixels, each in a direction of its own: similar, not the same."""
    rng, result = np.random.default_rng(0), image.copy()
    for row, column in np.ndindex(image.shape[0] // 40, image.shape[1] // 40):
        block, angle = np.mgrid[40 * row : 40 * row + 40, 40 * column : 40 * column + 40], rng.uniform(0, 2 * np.pi)
        y, x = (round(pixels * part) for part in (math.sin(angle), math.cos(angle)))
        rows, columns = block[0] + y, block[1] + x
        result[tuple(block)] = image[rows.clip(0, image.shape[0] - 1), columns.clip(0, image.shape[1] - 1)]
    return result


@pytest.fixture
def credulous(flat):
    """A localizer of the plane to which any pose looks right, and none other likely."""
    localizer = Localizer(flat[1], load_extractor())
    localizer.aligner.judge = judge_of(log_odds=[[5, 0], [5, 0]])
    localizer.relocalizer.around = lambda *_: []
    return localizer


@pytest.mark.parametrize("pixels, same", [(0, True), (1, True), (6, False)])
def test_what_is_recognised_but_not_in_its_place_is_another_place(flat, credulous, pixels, same):
    """A narrow prior says which place it is."""
    image, pose = image_at(flat[0], 0.3, 0.1, 2.7)
    image = moved_about(image, pixels)
    found = credulous.locate(image, flat[0], pose, isotropic(0.9, 0.6))
    assert found.success == same and found.doubtful != same and found.probability > 0.99
    assert found.reason == ("" if same else "what looks the same is not in the same place to some pixels")
    assert credulous.locate(image, flat[0], pose, isotropic(0.02, 0.01)).success


def test_a_tracker_asks_for_points_in_their_place_where_no_prior_holds_the_pose(flat, credulous):
    image, pose = image_at(flat[0], 0.3, 0.1, 2.7)
    for pixels, same in ((0, True), (6, False)):
        shown = moved_about(image, pixels)
        frame = PreparedFrame(0, shown, flat[0], credulous.aligner.prepare(shown, flat[0]))
        view, judge = FrameContext(frame, EYE, EYE, None, None, 1.0), Judge(TrackerOptions())
        alignment = credulous.aligner.localize_prepared(frame.prepared, pose)
        assert judge.look(view, alignment, False).pose is not None
        free = judge.look(view, alignment, True)
        assert (free.pose is not None) == same
        assert same or re.fullmatch(r"only \d\d% of the map points are where they should be.*looks similar", free.problem)


def test_a_hypothesis_is_judged_by_what_is_known(flat):
    camera, map_ = flat
    localizer, (image, pose) = Localizer(map_, load_extractor()), image_at(camera, 0.3, 0.1, 2.7)
    prepared, narrow, wide = localizer.aligner.prepare(image, camera), isotropic(0.05, 0.02), isotropic(0.9, 0.6)
    held, known = (localizer.aligner.localize_prepared(prepared, pose, narrow, known=wide_) for wide_ in (None, wide))
    assert torch.equal(held.map_from_camera, known.map_from_camera) and torch.equal(held.covariance, known.covariance)
    assert held.probability != known.probability


def test_an_image_of_another_place_is_doubtful_whatever_is_tried(flat):
    camera, map_ = flat
    localizer = Localizer(map_, load_extractor())
    stranger = plane_view(look_at((0, -0.6, 3.0), (0, 0, 0)), camera, texture(seed=9))[0]
    near = look_at((0.2, -0.5, 2.9), (0, 0, 0))
    for found in (localizer.locate(stranger, camera, near), localizer.locate(stranger, camera)):
        assert not found.success and found.probability < 0.99 and found.reason
