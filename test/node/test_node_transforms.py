# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Stamps of the published transform, seen by a tf2 listener; the queue of images; the board of diagnostics."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rclpy.time import Time
from tf2_ros import Buffer

from pixloc_ros.node import conversions
from pixloc_ros.node.diagnostics import ERROR, HOLD_S, OK, WARN, DiagnosticBoard
from pixloc_ros.node.transform_schedule import TransformSchedule
from pixloc_ros.node.work_queue import ReceivedImage, WorkQueue

MS = 1_000_000
START = 10_000 * MS


def transform(x: float) -> torch.Tensor:
    return conversions.matrix_from_euler((x, 0.0, 0.0), 0.0, 0.0, 0.0)


class Listener:
    """A tf2 buffer and what the schedule says."""

    def __init__(self, tolerance_ns: int) -> None:
        self.buffer, self.schedule, self.tolerance_ns = Buffer(), TransformSchedule(), tolerance_ns

    def hear(self, stamped) -> int:
        for stamp_ns, x in stamped:
            self.buffer.set_transform(conversions.transform_stamped("map", "odom", stamp_ns, transform(x)), "test")
        return len(stamped)

    def found(self, x: float, image_ns: int) -> int:
        return self.hear(self.schedule.found(x, image_ns, self.tolerance_ns))

    def due(self, newest_ns: int) -> int:
        return self.hear(self.schedule.due(newest_ns, self.tolerance_ns))

    def at(self, stamp_ns: int) -> float:
        return self.buffer.lookup_transform("map", "odom", Time(nanoseconds=stamp_ns)).transform.translation.x


# Image period equal to the tolerance as well: then stamps of successive images coincide exactly.
@pytest.mark.parametrize("period_ms", [30, 33, 50, 100, 400])
@pytest.mark.parametrize("latency_ms", [5, 60, 90])
@pytest.mark.parametrize("tolerance_ms", [0, 20, 100])
def test_every_lookup_gives_the_newest_transform(period_ms, latency_ms, tolerance_ms):
    """At any time from an image on, up to the data seen so far: no extrapolation and no older value."""
    listener = Listener(tolerance_ms * MS)
    latest, found_ns = None, None
    for now_ms in range(0, 1000, 5):
        now = START + now_ms * MS
        image_ms = now_ms - latency_ms
        if image_ms >= 0 and image_ms % period_ms == 0:
            latest, found_ns = float(image_ms), START + image_ms * MS
            listener.found(latest, found_ns)
            assert listener.at(found_ns) == latest
            assert listener.at(found_ns + tolerance_ms * MS) == latest
        if now_ms % 10 == 0:
            listener.due(now)
        if latest is not None and now_ms % 10 == 0:
            for ahead_ms in range(0, now_ms + tolerance_ms // 2 - image_ms + period_ms, 13):
                stamp = found_ns + ahead_ms * MS
                if stamp <= now + tolerance_ms // 2 * MS:
                    assert listener.at(stamp) == pytest.approx(latest, abs=1e-6), (now_ms, ahead_ms)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 150)), min_size=1, max_size=60), st.integers(0, 300))
def test_any_order_of_images_and_repeats(steps, tolerance_ms):
    listener = Listener(tolerance_ms * MS)
    now, latest = START, None
    for is_image, step_ms in steps:
        now += step_ms * MS
        if is_image:
            latest = float(now // MS)
            sent = listener.found(latest, now)
            assert sent < 60
        elif latest is not None:
            listener.due(now)
        if latest is not None:
            assert listener.at(now) == pytest.approx(latest, abs=1e-6)


def test_silence():
    schedule = TransformSchedule()
    assert schedule.due(START, 100 * MS) == []
    assert schedule.found("t", START, 100 * MS) == [(START, "t"), (START + 100 * MS, "t")]
    assert schedule.due(START + 60 * MS, 100 * MS) == [(START + 160 * MS, "t")]
    assert schedule.due(START + 60 * MS, 100 * MS) == []
    schedule.clear()
    assert schedule.due(START + 500 * MS, 100 * MS) == []


def test_queue_keeps_the_newest():
    queue = WorkQueue(1)
    first, second = (ReceivedImage(None, stamp, 0.0) for stamp in (1, 2))
    assert queue.put(first) is None and queue.put(second) is first
    assert queue.put(first) is first, "a latecomer does not replace a newer image"
    assert queue.take() is second
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(2.0)
    assert waiting == [None]


def test_queue_of_all():
    queue = WorkQueue(3)
    frames = [ReceivedImage(None, stamp, 0.0) for stamp in range(5)]
    assert [queue.put(f) for f in frames] == [None, None, None, frames[0], frames[1]]
    assert queue.take() is frames[2] and queue.clear_frames() == frames[3:]


def test_board():
    now, log = [0.0], []
    board = DiagnosticBoard(lambda level, text: log.append(text), lambda: now[0])
    board.take_changed()
    assert {s.level for s in board.statuses("node", "")} == {OK} and not board.take_changed()
    board.report("image", "format", WARN, "bad 1")
    board.report("image", "format", WARN, "bad 2")
    board.report("image", "silent", ERROR, "worse")
    assert log == ["image: bad 1", "image: worse"], "one line per condition, not per message"
    assert board.take_changed() and not board.take_changed()
    status = next(s for s in board.statuses("node", "site") if s.name == "node: image")
    assert (status.level, status.message, status.hardware_id) == (ERROR, "worse; bad 2", "site")
    board.clear("image")
    assert not board.take_changed(), "conditions stay long enough to be seen"
    now[0] = HOLD_S + 0.1
    assert board.take_changed()
    assert {s.level for s in board.statuses("node", "")} == {OK}
