"""Class-balanced self-training (CBST) for unsupervised domain adaptation of semantic segmentation, on MXNet and Gluon.

Importing this package does not import mxnet: data, configuration and evaluation serve users of any framework.
"""

from __future__ import annotations

__version__ = "0.1.0"
