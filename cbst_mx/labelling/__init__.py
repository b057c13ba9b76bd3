"""The labelling job: a folder of class probabilities of any framework becomes thresholds and pseudo-labels.

C classes, N images of H x W pixels; a stored map is (C, h, w), at full size or at a network's stride. The job reads
the maps up to three times and holds one image at a time in each process: it counts confidences, counts again in the
critical bins where thresholds need it (``selftrain.counting``), and selects. Nothing depends on the number of
processes. Without mxnet.

An output folder::

    OUT/
      job.json               what the job is; a folder of another job is refused
      state.npz              the counts (and the counts per image) and the files they are of; all that further portions
                             need, saved on the way
      image_statistics.npz   predicted pixels and confidences per image and class
      pseudo_labels/NAME.png trainIds with palette, 255 = not selected
      sweep.csv              kept pixels per class for several portions
      kc.json                thresholds, N_c and kept pixels per class, written last

``count`` in ``kc.json`` is the number of pixels predicted as each class (with the released rules, of those that entered
the pool), without the zeros that the released program puts into its pools.

The same call continues a job that was stopped, by an error as well: a file that could not be used may be mended or
taken away. What is counted cannot be taken out of the sums again, so a counted file must stay what it was (size and
time of change), or the count begins anew. For several machines the steps are `count` (each machine its shard),
:meth:`State.merge`, `count` again with the merged state, merge, and `run` with the merged state; thresholds are refused
as long as an image of any shard is not counted.
"""

from __future__ import annotations

from cbst_mx.labelling.job import check_request, count, needs, run
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.labelling.results import sweep_rows
from cbst_mx.labelling.state import State

__all__ = [
    "MapFolder",
    "State",
    "check_request",
    "count",
    "needs",
    "run",
    "sweep_rows",
]
