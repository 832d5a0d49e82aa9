"""What is done with each frame of a stream that reuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cache.features.frames import PRESETS, Action, Choice, FrameReuse

FULL, STORE, WINDOWS, HOLD = Action
SIDE = 96  # pixels: 24 latents, 6 cells


def frame_reuse(preset: str = "balanced", chains: int = 1, **changes: object) -> FrameReuse:
    settings = replace(PRESETS[preset], margin=0, **changes)  # type: ignore[arg-type]
    return FrameReuse(settings, SIDE, SIDE, factor=4, cell=4, chains=chains)


def scene(x: int | None = None) -> np.ndarray:
    """A grey picture, with a white square of 16 pixels whose left edge is at x."""
    picture = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
    if x is not None:
        picture[40:56, x : x + 16] = 255
    return picture


def actions(reuse: FrameReuse, pictures: list[np.ndarray], *, can_store: bool = True) -> list[Action]:
    return [reuse.choose(picture, can_store=can_store).action for picture in pictures]


def noise(seed: int) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )


def test_exact_holds_repeats_to_the_bit_only() -> None:
    almost = scene()
    almost[0, 0, 0] += 1
    reuse = frame_reuse("exact")
    assert actions(reuse, [scene(), scene(), almost, almost, scene()]) == [FULL, HOLD, FULL, HOLD, FULL]
    reuse.invalidate()
    assert actions(reuse, [scene(), scene()]) == [FULL, HOLD]


def test_a_still_picture_is_held_and_refreshed_window_by_window() -> None:
    reuse = frame_reuse(refresh_frames=2)
    flicker = [scene() + np.uint8(i % 2) for i in range(12)]
    assert actions(reuse, flicker) == [FULL, HOLD, HOLD, STORE, *[HOLD, HOLD, WINDOWS] * 2, HOLD, HOLD]


def test_windows_in_turn_reach_every_cell() -> None:
    reuse = frame_reuse(refresh_frames=0, oldest_frames=1000)
    reached = np.zeros((6, 6), dtype=bool)
    for i in range(60):
        for window in reuse.choose(scene() + np.uint8(i % 2), can_store=True).windows:
            reached[window.slices] = True
    assert reached.all()


def test_exact_repeats_are_held_for_ever() -> None:
    assert actions(frame_reuse(), [scene()] * 300) == [FULL, *[HOLD] * 299]


def test_a_moving_square_is_a_window_where_it_was_and_is() -> None:
    reuse = frame_reuse()
    choices = [reuse.choose(scene(x), can_store=True) for x in (0, 8, 16, 24, 32)]
    assert [choice.action for choice in choices] == [FULL, FULL, STORE, WINDOWS, WINDOWS]
    for choice, x in zip(choices[3:], (16, 24), strict=True):  # from where it was to where it is
        (window,) = choice.windows
        assert window.column * 16 <= x
        assert (window.column + window.size[1]) * 16 >= x + 24
        assert choice.still is not None
        assert not choice.still[2:4, x // 16].any()


def test_all_is_computed_again_after_some_frames_with_motion() -> None:
    reuse = frame_reuse(store_frames=3)
    moving = [scene(8 * (i % 2)) for i in range(11)]
    assert actions(reuse, moving) == [FULL, FULL, STORE, *[WINDOWS] * 3, STORE, *[WINDOWS] * 3, STORE]


def test_a_cut_is_noticed_at_once_and_nothing_is_kept_while_all_moves() -> None:
    reuse = frame_reuse()
    pictures = [scene(0), scene(8), scene(16), scene(24), noise(0), noise(1), noise(2), noise(2)]
    assert actions(reuse, pictures) == [FULL, FULL, STORE, WINDOWS, FULL, FULL, FULL, HOLD]


def test_what_is_invalid_is_computed() -> None:
    reuse = frame_reuse()
    actions(reuse, [scene(0), scene(8), scene(16), scene(24)])
    reuse.invalidate()
    assert actions(reuse, [scene(24), scene(24), scene(32)]) == [FULL, HOLD, FULL]


def test_nothing_is_stored_for_a_single_frame_that_moves_little() -> None:
    pictures = [noise(0), noise(1), noise(1) ^ np.uint8(0), noise(2), noise(2)]
    pictures[2][:16, :16] = 0
    pictures[4][:16, :16] = 0
    assert actions(frame_reuse(), pictures) == [FULL] * 5


def test_without_memory_frames_are_held_or_computed() -> None:
    flicker = scene(8)
    flicker[0, 0] += 1
    pictures = [scene(0), scene(8), flicker, scene(16)]
    assert actions(frame_reuse(), pictures, can_store=False) == [FULL, FULL, HOLD, FULL]


def test_without_memory_a_still_picture_is_computed_again_after_a_while() -> None:
    flicker = [scene() + np.uint8(i % 2) for i in range(12)]
    reuse = frame_reuse(held_frames=3)
    assert actions(reuse, flicker[:6], can_store=False) == [FULL, *[HOLD] * 3, FULL, HOLD]
    choices = [reuse.choose(picture, can_store=False) for picture in flicker[6:9]]
    assert choices[2].still is not None
    assert choices[2].still.all()


def test_the_share_of_windows() -> None:
    reuse = frame_reuse()
    choices: list[Choice] = [reuse.choose(scene(x), can_store=True) for x in (0, 8, 16, 24)]
    (window,) = choices[3].windows
    assert reuse.share(choices[3].windows) == window.cells / 36


def test_each_chain_takes_over_from_its_own_frames() -> None:
    """Frames alternate between two chains: a square that moves on is where both of a chain's frames had it."""
    reuse = frame_reuse(chains=2)
    choices = [reuse.choose(scene(8 * i), can_store=True, chain=i % 2) for i in range(8)]
    assert [choice.action for choice in choices] == [*[FULL] * 4, STORE, STORE, WINDOWS, WINDOWS]
    (window,) = choices[7].windows
    assert window.column * 16 <= 40
    assert (window.column + window.size[1]) * 16 >= 72


def test_a_frame_is_held_only_if_the_last_one_shown_looks_like_it() -> None:
    """The square comes back to where the frame before the last had it, which was of the same chain."""
    reuse = frame_reuse(chains=2, store_frames=100)
    for i in range(8):
        reuse.choose(scene(8 * (i % 2)), can_store=True, chain=i % 2)
    back = [scene(0) for _ in range(3)]
    for i, picture in enumerate(back):
        picture[0, 0] += i + 1  # none repeats another to the bit
    assert reuse.choose(back[0], can_store=True, chain=0).action is WINDOWS
    assert reuse.choose(back[1], can_store=True, chain=1).action is WINDOWS  # it had the square elsewhere
    assert reuse.choose(back[2], can_store=True, chain=0).action is HOLD
