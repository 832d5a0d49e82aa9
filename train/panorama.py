"""Owns reading high-dynamic-range panoramas (equirectangular OpenEXR): tone mapping and rectilinear views."""

from __future__ import annotations

import io
import math

import av
import cv2
import numpy as np
import numpy.typing as npt

MIDDLE_GREY = 0.20
WHITE_POINT = 4.0


def read_exr(data: bytes) -> npt.NDArray[np.float32]:
    """float32 linear RGB [H, W, 3] of an OpenEXR file, decoded by FFmpeg. Raises ValueError if not planar RGB."""
    with av.open(io.BytesIO(data), format="exr_pipe") as container:
        frame = next(container.decode(video=0))
    kinds = {"gbrpf16le": np.float16, "gbrpf32le": np.float32}
    if frame.format.name not in kinds:
        raise ValueError(f"the panorama decodes as {frame.format.name}; float planar RGB was expected")
    green, blue, red = (
        np.frombuffer(plane, kinds[frame.format.name]).reshape(frame.height, -1)[:, : frame.width].astype(np.float32)
        for plane in frame.planes
    )
    linear = np.nan_to_num(np.stack([red, green, blue], -1), nan=60000, posinf=60000, neginf=60000)
    # A sun beyond the half-precision range decodes as a hole; fill it from its bright rim.
    hole = linear.min(-1, keepdims=True) <= 0
    return np.where(hole, cv2.dilate(linear, np.ones((9, 9), np.uint8)), linear).clip(0, 60000).astype(np.float32)


def tone_map(linear: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """uint8 sRGB of linear light: exposure by the log average near the horizon, then extended Reinhard.

    Reinhard et al. 2002, "Photographic tone reproduction for digital images", eq. 1 and 4; applied to luminance.
    """
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    height = linear.shape[0]
    band = luminance[height // 4 : 3 * height // 4]
    exposed = luminance * (MIDDLE_GREY / float(np.exp(np.log(band + 1e-4).mean())))
    mapped = exposed * (1 + exposed / WHITE_POINT**2) / (1 + exposed)
    display = linear * (mapped / np.maximum(luminance, 1e-6))[..., None]
    encoded = np.where(display <= 0.0031308, 12.92 * display, 1.055 * np.maximum(display, 1e-9) ** (1 / 2.4) - 0.055)
    return np.asarray(encoded.clip(0, 1) * 255 + 0.5, dtype=np.uint8)


def view(
    panorama: npt.NDArray[np.uint8], *, yaw_deg: float, pitch_deg: float, field_deg: float, size_px: int
) -> npt.NDArray[np.uint8]:
    """uint8 [size, size, 3]: what a pinhole camera in the panorama's centre sees. field_deg: its field of view."""
    height, width = panorama.shape[:2]
    line = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    reach = math.tan(math.radians(field_deg) / 2)
    x, y = np.meshgrid(line * reach, -line * reach)
    pitch = math.radians(pitch_deg)
    up = y * math.cos(pitch) + math.sin(pitch)
    ahead = math.cos(pitch) - y * math.sin(pitch)
    longitude = np.arctan2(x, ahead) + math.radians(yaw_deg)
    latitude = np.arctan2(up, np.hypot(x, ahead))
    map_x = (longitude / (2 * math.pi) % 1.0) * width - 0.5
    map_y = (0.5 - latitude / math.pi) * height - 0.5
    seen = cv2.remap(
        panorama, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP
    )
    return np.asarray(seen, dtype=np.uint8)
