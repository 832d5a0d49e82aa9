"""A session's sound: which listener hears which source, and that nothing is queued without listeners."""

from __future__ import annotations

import sys

import av
import numpy as np

from app.session.sound import SoundHub


def frame(value: int = 0) -> av.AudioFrame:
    made = av.AudioFrame.from_ndarray(np.full((1, 1920), value, np.int16), format="s16", layout="stereo")
    made.sample_rate = 48_000
    return made


def test_several_listeners_hear_each_frame_with_its_time_until_they_leave() -> None:
    hub = SoundHub()
    source = hub.open()
    first: list[tuple[av.AudioFrame, int]] = []
    second: list[tuple[av.AudioFrame, int]] = []
    leave = hub.listen(lambda sound, at_ns: first.append((sound, at_ns)))
    hub.listen(lambda sound, at_ns: second.append((sound, at_ns)))
    sounds = [frame(), frame(), frame()]
    source.give(sounds[0], 100)
    source.give(sounds[1], 200)
    leave()
    leave()
    source.give(sounds[2], 300)
    assert first == [(sounds[0], 100), (sounds[1], 200)]
    assert second == [(sounds[0], 100), (sounds[1], 200), (sounds[2], 300)]


def test_the_same_listener_twice_is_one_that_leaves_alone() -> None:
    hub = SoundHub()
    source, heard = hub.open(), list[int]()

    def listener(_: av.AudioFrame, at_ns: int) -> None:
        heard.append(at_ns)

    leave = hub.listen(listener)
    hub.listen(listener)
    source.give(frame(), 1)
    leave()
    source.give(frame(), 2)
    assert heard == [1, 1, 2]


def test_nothing_is_wanted_and_nothing_kept_while_nobody_listens() -> None:
    hub = SoundHub()
    source = hub.open()
    assert not source.wanted
    sound = frame()
    references = sys.getrefcount(sound)
    for _ in range(1000):
        source.give(sound, 0)
    assert sys.getrefcount(sound) == references
    leave = hub.listen(lambda sound, at_ns: None)
    assert source.wanted
    leave()
    assert not source.wanted


def test_the_newest_source_is_heard_and_the_one_before_it_when_that_has_ended() -> None:
    hub = SoundHub()
    heard: list[int] = []
    hub.listen(lambda sound, at_ns: heard.append(at_ns))
    old, new = hub.open(), hub.open()
    assert (old.wanted, new.wanted) == (False, True)
    old.give(frame(), 1)
    new.give(frame(), 2)
    new.close()
    new.close()
    old.give(frame(), 3)
    new.give(frame(), 4)
    assert (old.wanted, new.wanted) == (True, False)
    old.close()
    old.give(frame(), 5)
    assert heard == [2, 3]
