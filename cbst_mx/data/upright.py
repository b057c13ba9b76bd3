"""Images as viewers show them: turned as the rotation mark of the camera (EXIF) says.

Data sets are read as they are stored, images and labels alike, so that the two stay in step. Images that are only
looked at and segmented are better upright.
"""

from __future__ import annotations

from typing import Iterable

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import read_header

__all__ = ["UprightImageSet", "upright"]


class UprightImageSet(ImageSet):
    """Images by index, each turned as its file's rotation mark says."""

    __slots__ = ()

    def image(self, index: int) -> np.ndarray:
        """Read one image.

        Returns
        -------
        ndarray of shape (H, W, 3), uint8
            RGB; height and width are exchanged where the mark asks for a quarter turn.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return upright(super().image(index), self.turn(index))

    def turn(self, index: int) -> int:
        """Return the rotation mark of one image, 1 to 8; 1 for none.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return read_header(self.image_paths[index]).turn

    def subset(self, indices: Iterable[int]) -> UprightImageSet:
        """Return the set of the chosen images, in the given order.

        Raises
        ------
        ConfigError
            If an index is outside 0 to len - 1.
        DataError
            If an index comes twice.
        """
        chosen = self._checked(indices)
        return UprightImageSet([self.names[i] for i in chosen], [self.image_paths[i] for i in chosen])


def upright(stored: np.ndarray, turn: int) -> np.ndarray:
    """Turn and mirror stored pixels as a rotation mark says (EXIF 2.32, tag 0x0112, Orientation).

    Parameters
    ----------
    stored : ndarray of shape (H, W, ...)
        Pixels in the order of the file.
    turn : int
        The mark: 1 none, 2 mirrored left to right, 3 turned by 180 degrees, 4 mirrored top to bottom, 5 transposed,
        6 to be turned by 90 degrees clockwise, 7 transposed along the other diagonal, 8 by 90 degrees anticlockwise.

    Returns
    -------
    ndarray of shape (H, W, ...) or, for 5 to 8, (W, H, ...)
        The picture as it is meant to be seen.
    """
    turned = np.swapaxes(stored, 0, 1) if turn in (5, 6, 7, 8) else stored
    if turn in (3, 4, 7, 8):
        turned = turned[::-1]
    if turn in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)
