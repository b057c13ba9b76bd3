"""Loss of step b): cross-entropy of labels and pseudo-labels.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from cbst_mx.data.transforms import label_at_stride
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import IGNORE
from symbols.backend import gluon, mx
from symbols.bilinear import ending_early
from symbols.softmax import CrossEntropy, is_fast

__all__ = ["BatchLoss", "SegmentationLoss", "label_stride"]


class SegmentationLoss(gluon.loss.Loss):
    """Softmax cross-entropy, summed over the pixels with a label and divided by their number (eq. 3 per valid pixel).

    A pixel labelled 255 is ignored: the 0 vector of the paper's pseudo-label. Without any valid pixel the loss is 0.

    Inputs:
        - **logits**: float32 (B, C, h, w).
        - **label**: float32 (B, h, w), trainIds.
        - **count**: float32 (1,), optional: the number to divide by instead, where `label` is a part of a batch.

    Outputs:
        - **loss**: float32 (1,), in nats.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(weight=None, batch_axis=0, **kwargs)

    def hybrid_forward(self, F: Any, logits: Any, label: Any, count: Any = None) -> Any:
        valid = label != IGNORE
        picked = F.pick(F.log_softmax(logits, axis=1), label * valid, axis=1)  # (B, h, w)
        # a sum over many pixels loses digits in float32 when done in one go: sum every image first
        total = F.sum(F.sum(picked * valid, axis=(1, 2)))
        if count is None:
            count = F.sum(F.sum(valid, axis=(1, 2)))
        return -total / F.maximum(count, 1.0)


class BatchLoss:
    """The :class:`SegmentationLoss` of a batch whose images are spread over several contexts.

    The losses of the parts add up to the loss of the whole batch: each is divided by the number of valid pixels of the
    whole batch, which is counted on the host. So the gradient is the same on one device and on several, however
    unevenly the ignored pixels are spread.

    Labels finer than the logits are sampled at the middle of each logit's cell (at stride 8: rows and columns 4, 12,
    20, ...), as the released program does.

    Parameters
    ----------
    total : callable, optional
        Given the number of valid pixels of the labels that are here, returns that of the whole batch.
    factor : int
        Factor of a bilinear upsampling that the network leaves to the loss, on processors; 1: none.
    """

    def __init__(self, total: Callable[[int], int] = int, *, factor: int = 1) -> None:
        self._loss, self._total, self._factor = SegmentationLoss(), total, factor
        self._loss.hybridize(static_alloc=True, static_shape=True)

    @classmethod
    @contextlib.contextmanager
    def of(cls, network: gluon.HybridBlock, total: Callable[[int], int] = int) -> Iterator[BatchLoss]:
        """Yield the loss for what `network` gives inside the block: it may leave its last upsampling to the loss.

        Parameters
        ----------
        network : HybridBlock
            As for :func:`symbols.bilinear.ending_early`.
        total : callable, optional
            As above.
        """
        with ending_early(network) as factor:
            yield cls(total, factor=factor)

    def __call__(
        self, logits: Sequence[mx.nd.NDArray], labels: np.ndarray, *, batch: np.ndarray | None = None
    ) -> list[mx.nd.NDArray]:
        """Return the loss of every part.

        Parameters
        ----------
        logits : sequence of NDArray of shape (B_i, C, h / s, w / s)
            One per context; the parts follow each other in the batch. Any floating type: the loss is float32. Before an
            upsampling (B_i, C, h / factor, w / factor), rounded up.
        labels : ndarray of shape (B, h, w), float32
            TrainIds of these parts, 255 = ignore.
        batch : ndarray, optional
            Labels of the whole batch, whose valid pixels count, where `labels` are a part of it.

        Returns
        -------
        list of NDArray of shape (1,), float32
            On the contexts of `logits`.

        Raises
        ------
        ConfigError
            If the labels cannot be sampled at the network's stride.
        """
        stride = label_stride((labels.shape[1], labels.shape[2]), logits[0].shape[2:], factor=self._factor)
        labels = label_at_stride(labels, stride)  # (B, h / s, w / s)
        counted = labels if batch is None else label_at_stride(batch, stride)
        count = self._total(np.count_nonzero(counted != IGNORE))
        losses = []
        first = 0
        for part in logits:
            label = labels[first : first + len(part)]
            first += len(part)
            if part.dtype != np.float32:  # mixed precision ends here
                part = part.astype("float32")
            if is_fast(part):
                valid = label != IGNORE
                loss = CrossEntropy((label * valid).astype(np.intp), valid, max(count, 1), self._factor)
                losses.append(loss(part))
                continue
            truth = mx.nd.array(label, ctx=part.context)
            losses.append(self._loss(part, truth, mx.nd.array([count], ctx=part.context)))
        return losses


def label_stride(label_size: tuple[int, int], logit_size: tuple[int, int], *, factor: int = 1) -> int:
    """Return the distance in pixels of neighbouring logits.

    Parameters
    ----------
    label_size : tuple of int
        Rows and columns of the labels.
    logit_size : tuple of int
        Rows and columns of the logits, before the loss upsamples them by `factor` and cuts them to the labels' size.
    factor : int
        1: they are not upsampled.

    Raises
    ------
    ConfigError
        If the one is not the other times a power of two: networks round sizes up, and half a cell has no middle. Before
        an upsampling, if they are not the labels' size over `factor`, rounded up.
    """
    if factor > 1:
        if tuple(-(-size // factor) for size in label_size) != tuple(logit_size):
            raise ConfigError(
                f"logits before an upsampling by {factor} must have the labels' size over {factor}, rounded up, got "
                f"{logit_size[0]} x {logit_size[1]} logits for labels of {label_size[0]} x {label_size[1]}"
            )
        return 1
    stride = label_size[0] // logit_size[0]
    fits = tuple(size * stride for size in logit_size) == tuple(label_size)
    if not fits or stride & (stride - 1):
        raise ConfigError(
            f"training crops must be multiples of the network's stride, got {label_size[0]} x {label_size[1]}, "
            f"for which it gives {logit_size[0]} x {logit_size[1]} logits"
        )
    return stride
