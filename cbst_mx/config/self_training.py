"""The rounds of an experiment: portion, spatial prior, mining, the guard; strict, with limits.

The text below a key is its description, as in `cbst_mx.config.parts`.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Literal

from cbst_mx import METHODS
from cbst_mx.config.fields import Batch, FilePath, LongSide, MethodName, Name, Rate, Scale, Share, Side, Step
from cbst_mx.config.parts import Optimiser
from cbst_mx.strict_yaml import StrictModel

__all__ = ["Guard", "Mining", "Portion", "SelfTraining", "SourcePortion", "SpatialPrior"]


class Portion(StrictModel):
    """The portion p over the rounds."""

    initial: Share = 0.20
    """p in the first round. Unit: share of the pixels. Origin: paper."""
    step: Step = 0.05
    """Added in every later round. Unit: share of the pixels. Origin: paper."""
    maximum: Share = 0.50
    """p stays at most that large. Unit: share of the pixels. Origin: paper."""


class SourcePortion(StrictModel):
    """The portion of source images a round trains on; the released program's numbers."""

    initial: Share = 0.03
    """Portion in the first round. Unit: share of the source images. Origin: released."""
    step: Step = 0.0025
    """Added in every later round. Unit: share of the source images. Origin: released."""
    maximum: Share = 0.06
    """The portion stays at most that large. Unit: share of the source images. Origin: released."""
    policy: Literal["cumulative", "random"] = "cumulative"
    """Whether a round adds to the images of the rounds before, or draws all anew. Origin: released."""


class SpatialPrior(StrictModel):
    """The spatial prior of CBST-SP: estimated from the source labels, or read from a file.

    A file is used as it is, as the authors' program uses its own: it takes the place of all other settings, which are
    refused beside it. See `cbst_mx.selftrain.spatial_prior` for what the three normalisations are.
    """

    file: Optional[FilePath] = None
    """A prior that is used as it is: an `.npz` of `prior build`, or the authors' `prior_array.mat`; a relative path is
    below `CBST_DATA`. Origin: released.
    """
    grid: List[Side] = Field([256, 512], min_length=2, max_length=2)
    """Rows and columns of the estimated maps, which are resized to the images. Unit: pixels. Origin: ours."""
    kernel: float = Field(70.0, ge=0, le=2048)
    """Size of the Gaussian that smooths the maps; 0: no smoothing. Unit: pixels at 1024 x 2048. Origin: paper."""
    sigma: Optional[float] = Field(None, gt=0, le=2048)
    """Standard deviation of the Gaussian; null: `kernel` / 6. Unit: pixels at 1024 x 2048. Origin: ours."""
    normalisation: Literal["sum", "maximum", "frequency"] = "sum"
    """Each class map has mean 1 (`sum`), largest value 1 (`maximum`), or is the share of the label maps that show the
    class (`frequency`). Origin: inferred.
    """

    @field_validator("sigma")
    @classmethod
    def _smooths(cls, sigma: Optional[float], info: ValidationInfo) -> Optional[float]:
        if sigma is not None and info.data.get("kernel") == 0:
            raise ValueError(f"sigma must not be given with a kernel of 0, which does not smooth, got {sigma}")
        return sigma

    @model_validator(mode="after")
    def _file_or_estimate(self) -> SpatialPrior:
        needless = sorted(self.model_fields_set - {"file"})
        if self.file is not None and needless:
            raise ValueError(
                f"file must not be given with {', '.join(needless)}: a file is used as it is, the others say how a "
                "prior is estimated"
            )
        return self

    @model_serializer(mode="wrap")
    def _in_use(self, write: SerializerFunctionWrapHandler) -> Dict[str, Any]:
        """Return the file alone or else all other settings, so that what is written can be read again."""
        values: Dict[str, Any] = write(self)
        if self.file is not None:
            return {"file": self.file}
        return {key: value for key, value in values.items() if value is not None}


class Mining(StrictModel):
    """Rare-class mining: training crops centred on classes that are predicted least."""

    methods: List[MethodName] = Field(["cbst", "cbst-sp"], min_length=1, max_length=len(METHODS))
    """Methods whose rounds mine; others ignore the key. Origin: paper."""
    classes: Optional[List[Name]] = Field(None, min_length=1, max_length=253)
    """Names of the classes to mine in every round; null: those that are predicted least. Origin: paper."""
    worst: int = Field(5, ge=1, le=253)
    """How many of the least predicted classes are mined; the released program takes 3. Unit: classes. Origin: paper."""
    priority: float = Field(0.001, ge=0, le=1)
    """Classes with a smaller predicted portion come first. Unit: share of the pixels. Origin: paper."""
    probability: float = Field(0.8, ge=0, le=1)
    """Chance that a crop is centred on such a class. Unit: probability. Origin: released."""


class Guard(StrictModel):
    """What is done about a network that may have collapsed; see `cbst_mx.selftrain.guard` for the signs."""

    policy: Literal["warn", "stop", "rollback"] = "warn"
    """Before a round trains on a network with a fault: warn and go on; stop; or train the round before anew, from the
    network that it started from, at half the learning rate. Origin: ours.
    """
    rollbacks: int = Field(2, ge=1, le=100)
    """So many rollbacks at most in a run. Unit: rollbacks. Origin: ours."""
    hold_back: bool = False
    """A class that is predicted far more often than before round 1 gets no pseudo-labels. Origin: ours."""
    cap_share: bool = Field(False, validate_default=True)
    """Such a class gets at most as many as if it were predicted as often as before round 1. Origin: ours."""

    @field_validator("cap_share")
    @classmethod
    def _one_action(cls, cap: bool, info: ValidationInfo) -> bool:
        if cap and info.data.get("hold_back"):
            raise ValueError("cap_share must not be given with hold_back, which leaves no pseudo-labels to cap")
        return cap

    @property
    def limits(self) -> bool:
        """Whether pseudo-labels of single classes may be left out."""
        return self.hold_back or self.cap_share


class SelfTraining(StrictModel):
    """The rounds."""

    method: MethodName
    """`st`: one threshold for all classes; `cbst`: one for each class; `cbst-sp`: the same on probabilities times the
    spatial prior. Origin: paper.
    """
    rounds: int = Field(7, ge=0, le=1000)
    """Rounds of pseudo-labelling and retraining; 0: the source network alone. Unit: rounds. Origin: inferred."""
    portion: Portion = Portion()
    """Portion p of the pixels that get pseudo-labels. Origin: paper."""
    fidelity: Literal["paper", "released"] = "paper"
    """Rules of ranks and ties: the paper's on all pixels, or the released program's on every 4th. Origin: paper."""
    flip: bool = True
    """Average with the mirrored image's prediction when pseudo-labelling. Origin: released."""
    scales: List[Scale] = Field([1.0], min_length=1, max_length=32)
    """Average over these factors of the image's size when pseudo-labelling. Unit: factor. Origin: released."""
    long_side: Optional[LongSide] = None
    """Longer side of the network's input when pseudo-labelling; null: as the image is. Unit: pixels. Origin: ours."""
    upsampling: Literal["bilinear", "bicubic", "pillow"] = "bilinear"
    """How the network's output becomes the image's size: `bicubic` as OpenCV, `pillow` as the released program, twice.
    Origin: ours.
    """
    keep_maps: Literal["auto", "memory", "disk", "recompute"] = "auto"
    """Where the network's output stays between thresholds and selection. `auto`: in memory up to 256 MB, else on the
    disk; of FCN8s, whose output has the image's size, what labels can come of in up to 1 GB of memory, else it runs
    again. Changes no result. Origin: ours.
    """
    source_portion: Optional[SourcePortion] = None
    """Which part of the source images a round trains on; null: all of them, as in equations 3 and 6. Origin: paper."""
    mining: Optional[Mining] = None
    """Rare-class mining; null: none. The paper mines for GTA5 and NTHU, in CBST and CBST-SP. Origin: ours."""
    retraining: Optimiser
    """SGD of step b) of every round. Origin: released."""
    learning_rate_factor: Rate = 1.0
    """Multiplies the retraining's learning rate from one round to the next; the released program divides by the root of
    2. Unit: factor. Origin: ours.
    """
    target_per_batch: Optional[Batch] = None
    """How many crops of a batch are of the target; null: one permutation of source and target images together. Unit:
    images. Origin: released.
    """
    separate_domains: bool = False
    """Source and target part of a batch pass through the network one after the other, so that batch norm never mixes
    them. Origin: ours.
    """
    spatial_prior: SpatialPrior = SpatialPrior()
    """The prior of `cbst-sp`; other methods ignore it. Origin: paper."""
    guard: Guard = Guard()
    """What is done about a network that may have collapsed. Origin: ours."""

    @property
    def policy(self) -> str:
        """Rule of the method's thresholds: "global" for ``st``, "class-balanced" for ``cbst`` and ``cbst-sp``."""
        return METHODS[self.method]

    @property
    def uses_prior(self) -> bool:
        """Whether any round multiplies by the spatial prior."""
        return self.method == "cbst-sp" and self.rounds > 0

    @field_validator("target_per_batch")
    @classmethod
    def _places_for_source(cls, number: Optional[int], info: ValidationInfo) -> Optional[int]:
        retraining = info.data.get("retraining")
        if number is not None and retraining is not None and number >= retraining.batch_size:
            raise ValueError(
                f"target_per_batch must be smaller than the batch_size {retraining.batch_size}, got {number}"
            )
        return number

    @field_validator("separate_domains")
    @classmethod
    def _divided(cls, separate: bool, info: ValidationInfo) -> bool:
        if separate and info.data.get("target_per_batch", 1) is None:
            raise ValueError("separate_domains needs target_per_batch, which says how a batch is divided")
        return separate
