"""Loss of step b): cross-entropy of labels and pseudo-labels.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

from cbst_mx.label_space import IGNORE
from symbols.backend import gluon

__all__ = ["SegmentationLoss"]


class SegmentationLoss(gluon.loss.Loss):
    """Softmax cross-entropy, summed over the pixels with a label and divided by their number (eq. 3 per valid pixel).

    A pixel labelled 255 is ignored: the 0 vector of the paper's pseudo-label. Without any valid pixel the loss is 0.

    Parameters
    ----------
    ignore : int
        Label of ignored pixels.

    Inputs:
        - **logits**: float32 (B, C, h, w).
        - **label**: float32 (B, h, w), trainIds.

    Outputs:
        - **loss**: float32 (1,), in nats.
    """

    def __init__(self, ignore: int = IGNORE, **kwargs):
        super().__init__(weight=None, batch_axis=0, **kwargs)
        self._ignore = ignore

    def hybrid_forward(self, F, logits, label):
        valid = label != self._ignore
        picked = F.pick(F.log_softmax(logits, axis=1), label * valid, axis=1)  # (B, h, w)
        # a sum over many pixels loses digits in float32 when done in one go: average rows first
        total = F.sum(F.sum(picked * valid, axis=(1, 2)))
        return -total / F.maximum(F.sum(F.sum(valid, axis=(1, 2))), 1.0)
