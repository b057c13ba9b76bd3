"""Joint transforms of a training image and its labels, and the normalisation of what a network sees.

Images are uint8 (H, W, 3) RGB, labels uint8 (H, W) trainId with 255 = ignore; sizes are (height, width) in pixels.
OpenCV's global settings (such as its number of threads) are left as they are; none of the operations used here changes
its result with them, nor does Pillow's.
"""

from __future__ import annotations

import math
from typing import Sequence

import cv2
import numpy as np
from PIL import Image

from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.image_files import Draft
from cbst_mx.data.png_pixels import Rows
from cbst_mx.data.resampling import resized_window
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import IGNORE

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RESAMPLINGS",
    "TrainTransform",
    "label_at_stride",
    "normalise",
    "resize_image",
    "resize_label",
    "scale_for_long_side",
]

#: Mean and standard deviation of ImageNet's training images, RGB, in units of the full range [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: How images are resized, see :func:`resize_image`.
RESAMPLINGS = ("linear", "program", "draft")

# Range of the Gaussian blur's standard deviation, in pixels of the crop.
_BLUR_SIGMA = (0.3, 1.5)

_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def normalise(
    image: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> np.ndarray:
    """Turn an RGB image into the network's input, ``(image / 255 - mean) / std``.

    Parameters
    ----------
    image : ndarray of shape (h, w, 3), uint8
    mean, std : three numbers each
        Per channel R, G, B, in units of the full range [0, 1]; `std` above 0.

    Returns
    -------
    ndarray of shape (3, h, w), float32

    Raises
    ------
    ConfigError
        If `mean` or `std` cannot be used.
    DataError
        If `image` is not uint8 RGB.
    """
    _check_image(image)
    offset, gain = _channels("mean", mean), _channels("std", std)
    if not (gain > 0).all():
        raise ConfigError(f"std must hold numbers above 0, got {tuple(std)}")
    out = np.empty((3,) + image.shape[:2], np.float32)
    np.multiply(image.transpose(2, 0, 1), (1 / (255 * gain)).astype(np.float32)[:, None, None], out=out)
    out -= (offset / gain).astype(np.float32)[:, None, None]
    return out


def resize_image(image: np.ndarray | Draft, size: tuple[int, int], resampling: str = "linear") -> np.ndarray:
    """Resize an image with aligned pixel areas.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8, or Draft
    size : tuple of int
        Height h and width w of the result.
    resampling : {"linear", "program", "draft"}
        "linear": bilinear, of two pixels along each side whatever the factor. "program": as the authors' released
        program does with Pillow, Lanczos' kernel (three lobes, widened by the factor) to fewer pixels and Keys' cubic
        one (a = -0.5) to more; it keeps edges sharper and takes about ten times as long for a whole image. "draft": the
        same, of a draft where the image is one.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8

    Raises
    ------
    ConfigError
        If `size` is no height and width, or `resampling` is unknown.
    DataError
        If `image` is not uint8 RGB.
    """
    pixels = image.pixels if isinstance(image, Draft) else image
    _check_image(pixels)
    rows, columns = map(float, pixels.shape[:2])
    if isinstance(image, Draft):  # whose last pixels may lie in part beyond the image
        rows, columns = image.shape[0] / image.part, image.shape[1] / image.part
    height, width = _size("size", size)
    check_choice("resampling", resampling, RESAMPLINGS)
    if resampling == "linear":
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if (height, width) == (rows, columns):
        return pixels.copy()
    kernel = Image.Resampling.LANCZOS if height * width < rows * columns else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((width, height), kernel, box=(0, 0, columns, rows)))


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map to `size` = (h, w) by taking the nearest pixel; uint8 (h, w), no new values."""
    _check_label(label)
    height, width = _size("size", size)
    # INTER_NEAREST takes the upper left pixel of each area, up to half a pixel away from what INTER_LINEAR does to
    # the image; the exact variant takes the one at the centre.
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def label_at_stride(label: np.ndarray, stride: int) -> np.ndarray:
    """Sample label maps at the centres of the cells of a network's stride, as the released program trains.

    Rows and columns stride // 2, stride // 2 + stride, ... are taken. A last cell that the image fills only in part,
    so that its centre lies outside, takes the last row or column.

    Parameters
    ----------
    label : ndarray of shape (B, H, W)
        TrainIds of any type; other leading axes, or none, are allowed too.
    stride : int
        Side of a cell in pixels; 1 returns the labels themselves, not a copy.

    Returns
    -------
    ndarray of shape (B, ceil(H / stride), ceil(W / stride))
        Labels of the type of `label`. A 504 x 504 crop gives 63 x 63 at stride 8.

    Raises
    ------
    ConfigError
        If `stride` is not an integer above 0.
    DataError
        If `label` has fewer than two axes.
    """
    if not isinstance(stride, (int, np.integer)) or isinstance(stride, bool) or stride < 1:
        raise ConfigError(f"stride must be an integer of at least 1, got {stride!r}")
    if label.ndim < 2:
        raise DataError(f"label must have the shape (B, H, W), got {label.shape}")
    if stride == 1:
        return label
    rows, columns = (
        np.minimum(np.arange(stride // 2, size + stride // 2, stride), size - 1) for size in label.shape[-2:]
    )
    return label[..., rows[:, None], columns]


def scale_for_long_side(height: int, width: int, long_side: int) -> float:
    """Return the factor by which an image is resized so that its longer side becomes `long_side` pixels.

    The released program makes pseudo-labels at 1850 and evaluates at 2048 pixels.

    Parameters
    ----------
    height, width : int
        Size of the image, in pixels.
    long_side : int
        Length wanted, in pixels.

    Raises
    ------
    ConfigError
        If a length is not above 0.
    """
    for name, value in (("height", height), ("width", width), ("long_side", long_side)):
        if not value > 0:
            raise ConfigError(f"{name} must be above 0 pixels, got {value}")
    return long_side / max(height, width)


class TrainTransform:
    """Random scale, crop, flip and (off by default) colour changes of one training sample.

    In this order: image and labels are scaled together by one factor; a window of the size `crop` is placed at random,
    inside the scaled image where it fits, else around it, or with `mining` around a pixel of a rare class; what lies
    outside gets the colour `fill` and the label 255; half of the samples are mirrored left to right; the image alone
    is changed in colour and blurred. Switching on a later step never changes what the earlier ones do for the same
    generator.

    Parameters
    ----------
    crop : (int, int)
        Height and width of the result, in pixels.
    scale : (float, float)
        Range of the scale factor, drawn uniformly. The published protocol is 0.7 to 1.3.
    flip : bool
        Mirror with probability 0.5.
    brightness, contrast, saturation : float
        Strength s in [0, 1]: the factor is drawn uniformly from [1 - s, 1 + s]; 0 is off.
    hue : float
        Strength in [0, 0.5]: the hue is turned by at most this part of a full circle; 0 is off.
    blur : float
        Probability in [0, 1] of a Gaussian blur (standard deviation 0.3 to 1.5 pixels).
    fill : (int, int, int)
        RGB outside the image; the mean of ImageNet by default, so that it is near 0 after `normalise`.
    mining : ClassMining, optional
        Chooses pixels of rare classes to centre windows on, among those around which the window stays inside the
        scaled image. Along an axis on which all of the image is in the window anyway every pixel may be chosen, and
        the window is placed at random as without mining. By default no crop is mined.
    resampling : {"linear", "program", "draft"}
        How images are scaled, see :func:`resize_image`; of a draft no crop is made.

    Raises
    ------
    ConfigError
        If an argument is outside its range.
    """

    def __init__(
        self,
        *,
        crop: tuple[int, int],
        scale: tuple[float, float] = (0.7, 1.3),
        flip: bool = True,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        blur: float = 0.0,
        fill: tuple[int, int, int] = (124, 116, 104),
        mining: ClassMining | None = None,
        resampling: str = "linear",
    ) -> None:
        self.crop = _size("crop", crop)
        self.scale = _scale(scale)
        if not isinstance(flip, bool):
            raise ConfigError(f"flip must be true or false, got {flip!r}")
        self.flip = flip
        self.brightness = _strength("brightness", brightness, 1.0)
        self.contrast = _strength("contrast", contrast, 1.0)
        self.saturation = _strength("saturation", saturation, 1.0)
        self.hue = _strength("hue", hue, 0.5)
        self.blur = _strength("blur", blur, 1.0)
        self.fill = _fill(fill)
        self.mining = mining
        check_choice("resampling", resampling, RESAMPLINGS)
        self.resampling = resampling

    def __call__(
        self, image: np.ndarray | Rows, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a changed copy of one sample.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8, or Rows
        label : ndarray of shape (H, W), uint8
            trainIds, 255 = ignore.
        rng : numpy.random.Generator
            The only source of chance.

        Returns
        -------
        image : ndarray of shape (h, w, 3), uint8, with (h, w) = `crop`
        label : ndarray of shape (h, w), uint8

        Raises
        ------
        DataError
            If image and labels are not of these types or not of one size.
        """
        _check_image(image)
        _check_label(label)
        if image.shape[:2] != label.shape:
            raise DataError(
                f"image and label must have the same size, got {_text(image.shape[:2])} and {_text(label.shape)}"
            )
        factor = rng.uniform(*self.scale)
        size = (max(1, round(label.shape[0] * factor)), max(1, round(label.shape[1] * factor)))
        window, label = self._cropped(image, label if size == label.shape else resize_label(label, size), rng)
        if self.flip and rng.random() < 0.5:
            window, label = window[:, ::-1], label[:, ::-1]
        window, label = np.ascontiguousarray(window), np.ascontiguousarray(label)
        window = self._recoloured(window, rng)
        if self.blur and rng.random() < self.blur:
            window = cv2.GaussianBlur(window, (0, 0), rng.uniform(*_BLUR_SIGMA))
        return window, label

    def _cropped(
        self, image: np.ndarray | Rows, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a window of the sample; the label has been scaled, the image is scaled where the window is."""
        # Offset of the window from the image's corner; negative when the window is the larger one.
        top, left = (
            int(rng.integers(min(0, have - want), max(0, have - want) + 1))
            for have, want in zip(label.shape, self.crop)
        )
        if self.mining is not None:
            top, left = self._mined(label, (top, left), rng)
        height, width = self.crop
        rows = slice(max(top, 0), min(top + height, label.shape[0]))
        columns = slice(max(left, 0), min(left + width, label.shape[1]))
        window, label = self._window(image, label.shape, rows, columns), label[rows, columns]
        if label.shape == self.crop:
            # A copy: the caller's arrays must not change with the result.
            return window.copy(), label.copy()
        new_image = np.empty((height, width, 3), np.uint8)
        new_image[:] = self.fill
        new_label = np.full((height, width), IGNORE, np.uint8)
        inner = (
            slice(max(-top, 0), max(-top, 0) + label.shape[0]),
            slice(max(-left, 0), max(-left, 0) + label.shape[1]),
        )
        new_image[inner], new_label[inner] = window, label
        return new_image, new_label

    def _window(self, image: np.ndarray | Rows, size: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        """Return a window of the image at the size (H, W)."""
        if size == image.shape[:2]:
            return image[rows, columns]
        if self.resampling != "linear":
            return resized_window(image, (size[0], size[1]), rows, columns)
        return resize_image(np.asarray(image), (size[0], size[1]), self.resampling)[rows, columns]

    def _mined(self, label: np.ndarray, corner: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return the corner of the window around a pixel of a rare class, or `corner` where mining finds none."""
        assert self.mining is not None
        larger = [have > want for have, want in zip(label.shape, self.crop)]
        rows, columns = (
            slice(want // 2, want // 2 + have - want + 1) if cut else slice(None)
            for have, want, cut in zip(label.shape, self.crop, larger)
        )
        pixel = self.mining.pixel(label[rows, columns], rng)
        if pixel is None:
            return corner
        # The part starts half a window from the image's edge, so a pixel's place in it is its window's place.
        top, left = (place if cut else start for place, cut, start in zip(pixel, larger, corner))
        return top, left

    def _recoloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return image
        brightness, contrast, saturation = (
            rng.uniform(1 - strength, 1 + strength) for strength in (self.brightness, self.contrast, self.saturation)
        )
        angle = 2 * math.pi * rng.uniform(-self.hue, self.hue)
        # All four are affine in RGB, so one matrix and one rounding do: luminance stays, the two chroma axes are
        # turned by the hue angle and stretched by the saturation, then everything moves about the mean luminance.
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = contrast * (_YIQ_TO_RGB @ chroma @ _RGB_TO_YIQ)
        pivot = (1 - contrast) * float(_RGB_TO_YIQ[0] @ cv2.mean(image)[:3])
        return cv2.transform(image, brightness * np.column_stack([matrix, np.full(3, pivot)]))


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _check_image(image: np.ndarray | Rows) -> None:
    if not isinstance(image, (np.ndarray, Rows)) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"image must be a uint8 array of shape (H, W, 3), got {_kind(image)}")
    if image.size == 0:
        raise DataError(f"image must hold at least one pixel, got {_text(image.shape[:2])}")


def _check_label(label: np.ndarray) -> None:
    if not isinstance(label, np.ndarray) or label.dtype != np.uint8 or label.ndim != 2:
        raise DataError(f"label must be a uint8 array of shape (H, W), got {_kind(label)}")


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _channels(name: str, values: Sequence[float]) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise ConfigError(f"{name} must hold three finite numbers (R, G, B), got {values!r}")
    return numbers


def _pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _size(name: str, value: tuple[int, int]) -> tuple[int, int]:
    if not _pair(value) or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in value):
        raise ConfigError(f"{name} must be two integers (height, width), got {value!r}")
    if min(value) < 1:
        raise ConfigError(f"{name} must be at least 1 x 1 pixel, got {_text(tuple(value))}")
    return int(value[0]), int(value[1])


def _scale(value: tuple[float, float]) -> tuple[float, float]:
    if not _pair(value) or not all(_number(n) for n in value) or not 0 < value[0] <= value[1] < math.inf:
        raise ConfigError(f"scale must be two numbers with 0 < low <= high, got {value!r}")
    return float(value[0]), float(value[1])


def _strength(name: str, value: float, limit: float) -> float:
    if not _number(value) or not 0 <= value <= limit:
        raise ConfigError(f"{name} must be a number in [0, {limit:g}], got {value!r}")
    return float(value)


def _fill(value: tuple[int, int, int]) -> tuple[int, int, int]:
    ok = isinstance(value, (tuple, list)) and len(value) == 3
    if not ok or not all(isinstance(n, (int, np.integer)) and 0 <= n <= 255 for n in value):
        raise ConfigError(f"fill must be three integers in [0, 255], got {value!r}")
    return int(value[0]), int(value[1]), int(value[2])
