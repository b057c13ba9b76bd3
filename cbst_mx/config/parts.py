"""The parts of an experiment: data, network, training phases, self-training, evaluation; strict, with limits.

Every default is the paper's or, where the paper is silent, the released program's, unless its comment says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Annotated, Literal

from cbst_mx import METHODS
from cbst_mx.data import FORMATS
from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from cbst_mx.errors import ConfigError
from cbst_mx.networks.spec import check_network
from cbst_mx.strict_yaml import StrictModel

__all__ = [
    "SCALES",
    "Augmentation",
    "Batch",
    "Data",
    "Evaluation",
    "FilePath",
    "Guard",
    "Mining",
    "Name",
    "Network",
    "Optimiser",
    "Paper",
    "Portion",
    "Scale",
    "Seed",
    "SelfTraining",
    "SetName",
    "SourcePortion",
    "SourceTraining",
    "SpatialPrior",
    "WarmUp",
]

#: Smallest and largest factor of an image's height and width.
SCALES = (0.05, 16.0)


def _printable(name: str) -> str:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise ValueError(f"must have 1 to 100 printable characters, got {name[:60]!r}")
    return name


def _key(name: str) -> str:
    # In the files of a stage "NAME", "NAME.classes" and "NAME.images" are arrays, and "NAME.npy" is "NAME".
    if name.endswith((".npy", ".classes", ".images")):
        raise ValueError(f"must not end with .npy, .classes or .images, got {name[:60]!r}")
    return _printable(name)


def _network(name: str) -> str:
    try:
        check_network(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


def _path(text: str) -> str:
    if not text or "\0" in text or len(text) > 4096:
        raise ValueError(f"must be a path, got {text[:60]!r}")
    return text


# Every number has two limits: what no run can have is refused here, and not after hours of training.
Scale = Annotated[float, Field(ge=SCALES[0], le=SCALES[1])]
_Side = Annotated[int, Field(ge=1, le=8192)]  # pixels
_LongSide = Annotated[int, Field(ge=32, le=16384)]  # pixels
Batch = Annotated[int, Field(ge=1, le=4096)]  # images
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Share = Annotated[float, Field(ge=1e-6, le=1)]  # of pixels or images
_Step = Annotated[float, Field(ge=0, le=1)]
_Factor = Annotated[float, Field(ge=0, le=1e6)]
_Rate = Annotated[float, Field(gt=0, le=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Fold = Annotated[int, Field(ge=0, le=10**6)]
Name = Annotated[str, AfterValidator(_printable)]
SetName = Annotated[str, AfterValidator(_key)]
FilePath = Annotated[str, AfterValidator(_path)]


# mypy takes no names that are computed; pydantic does.
if TYPE_CHECKING:
    _FormatName = str
    _MethodName = str
else:
    _FormatName = Literal[tuple(FORMATS)]
    _MethodName = Literal[tuple(METHODS)]


class Data(StrictModel):
    """One set of images."""

    format: _FormatName
    root: FilePath  # absolute, or below the folder named by the environment variable CBST_DATA
    split: Optional[str] = None
    # Which label files. cityscapes: labelIds (default), labelTrainIds; synthia: raw (default), ids, trainIds.
    labels: Optional[Literal["labelIds", "labelTrainIds", "raw", "ids", "trainIds"]] = None
    description: Optional[FilePath] = None  # folder: the YAML file, beside the experiment when relative
    list: Optional[FilePath] = None  # a text file that names the images to use; below the data root when relative
    city: Optional[str] = None  # nthu
    fold: Optional[Fold] = None  # nthu: which fold of the labelled images
    folds: Optional[int] = Field(None, ge=2, le=10**6)  # nthu: of how many; None: 10, as in the paper
    fold_seed: Optional[Seed] = None  # nthu: of which assignment to folds; None: 0

    def selection(self) -> Dict[str, Any]:
        """Return what chooses the images, besides format and root, as the readers' keyword arguments."""
        return self.model_dump(exclude={"format", "root", "labels"})


class Network(StrictModel):
    """The network and the normalisation of its input."""

    name: Annotated[str, AfterValidator(_network)] = "fcn8s"
    options: Dict[str, Any] = {}  # keyword arguments of its constructor
    mean: List[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(list(IMAGENET_MEAN), min_length=3, max_length=3)
    std: List[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(list(IMAGENET_STD), min_length=3, max_length=3)


class Augmentation(StrictModel):
    """Joint scale, crop and flip; colour changes are off in the paper's protocol."""

    crop: List[_Side] = Field([504, 504], min_length=2, max_length=2)  # height, width in pixels
    scale: List[Scale] = Field([0.7, 1.3], min_length=2, max_length=2)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Augmentation:
        try:
            self.transform()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def transform(self, mining: Optional[ClassMining] = None, resampling: str = "linear") -> TrainTransform:
        """Return the transform described, with crops by `mining` and images scaled by `resampling`."""
        values = self.model_dump()
        values.update(crop=tuple(values["crop"]), scale=tuple(values["scale"]), mining=mining, resampling=resampling)
        return TrainTransform(**values)


class Optimiser(StrictModel):
    """SGD over one training phase."""

    iterations: Optional[_Count] = None
    epochs: Optional[_Count] = Field(
        None, validate_default=True
    )  # in place of iterations: passes over all images of the phase
    batch_size: Batch
    learning_rate: _Rate
    warmup: _Count = 0  # iterations of linear increase
    power: _Factor = 0.0  # of the polynomial decay; 0 = constant
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: _Factor = 5e-4
    bias_lr_mult: _Factor = 2.0  # of the learning rate, for all biases and batch-norm betas
    bias_wd_mult: _Factor = 0.0  # of the weight decay, for the same
    checkpoint_every: _Count = 500  # iterations; 0 = not by iterations
    checkpoint_minutes: float = Field(5.0, ge=0, le=1e6)  # and by time; 0 = not by time

    # On fields, not on the whole: pydantic looks at a whole only once all its fields are right, and a user wants to
    # hear of everything at once.
    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: Optional[int], info: ValidationInfo) -> Optional[int]:
        if "iterations" in info.data and (info.data["iterations"] is None) == (epochs is None):
            raise ValueError("exactly one of iterations and epochs must be given")
        return epochs


class SourceTraining(Optimiser):
    """The training on source labels."""

    snapshots: _Count = 0  # epochs from one kept network to the next, the last too, each evaluated; 0 = none


class Portion(StrictModel):
    """The portion p over the rounds."""

    initial: _Share = 0.20
    step: _Step = 0.05
    maximum: _Share = 0.50


class SpatialPrior(StrictModel):
    """The spatial prior of CBST-SP: estimated from the source labels, or read from a file.

    A file is used as it is, as the authors' program uses its own: it takes the place of all other settings, which are
    refused beside it. See `cbst_mx.selftrain.spatial_prior` for what the three normalisations are.
    """

    file: Optional[FilePath] = None  # .npz, or the authors' prior_array.mat; below the data root when relative
    grid: List[_Side] = Field([256, 512], min_length=2, max_length=2)  # rows, columns of the stored maps
    kernel: float = Field(70.0, ge=0, le=2048)  # size of the Gaussian in pixels at 1024 x 2048; 0: no smoothing
    sigma: Optional[float] = Field(None, gt=0, le=2048)  # its standard deviation in those pixels; None: kernel / 6
    normalisation: Literal["sum", "maximum", "frequency"] = "sum"

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


class SourcePortion(StrictModel):
    """The portion of source images a round trains on; the released program's numbers."""

    initial: _Share = 0.03
    step: _Step = 0.0025
    maximum: _Share = 0.06
    policy: Literal["cumulative", "random"] = "cumulative"


class Mining(StrictModel):
    """Rare-class mining: training crops centred on classes that are predicted least."""

    # of these methods; in the paper only CBST's
    methods: List[_MethodName] = Field(["cbst", "cbst-sp"], min_length=1, max_length=len(METHODS))
    # names of the classes to mine in every round, whatever is predicted; None: those predicted least
    classes: Optional[List[Name]] = Field(None, min_length=1, max_length=253)
    worst: int = Field(5, ge=1, le=253)  # classes predicted least; the released program takes 3
    priority: float = Field(0.001, ge=0, le=1)  # classes with a smaller predicted portion come first
    probability: float = Field(0.8, ge=0, le=1)  # of mining an image


class Guard(StrictModel):
    """What is done about a network that may have collapsed; see `cbst_mx.selftrain.guard` for the signs."""

    # before a round trains on a network with a fault: warn, and go on; stop; rollback: train the round before anew,
    # from the network that it started from, at half the learning rate
    policy: Literal["warn", "stop", "rollback"] = "warn"
    rollbacks: int = Field(2, ge=1, le=100)  # at most, in a run
    # a class that is predicted far more often than before round 1 gets no pseudo-labels, or ...
    hold_back: bool = False
    # ... at most as many as if it were predicted as often as before round 1
    cap_share: bool = Field(False, validate_default=True)

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

    method: _MethodName
    rounds: int = Field(7, ge=0, le=1000)
    portion: Portion = Portion()
    fidelity: Literal["paper", "released"] = "paper"
    flip: bool = True  # average with the mirrored image when pseudo-labelling
    scales: List[Scale] = Field([1.0], min_length=1, max_length=32)  # average over these scales when pseudo-labelling
    long_side: Optional[_LongSide] = None  # pixels of the input when pseudo-labelling; None: as it is
    # of the network's output to the image; bicubic is OpenCV's, pillow the released program's: bicubic, twice
    upsampling: Literal["bilinear", "bicubic", "pillow"] = "bilinear"
    # where the network's output stays between thresholds and selection; auto: memory up to 256 MB, else disk, but
    # FCN8s, whose output has the image's size, runs again
    keep_maps: Literal["auto", "memory", "disk", "recompute"] = "auto"
    source_portion: Optional[SourcePortion] = None  # None: all source images in every round (eq. 3 and 6)
    mining: Optional[Mining] = None
    retraining: Optimiser
    learning_rate_factor: _Rate = 1.0  # per round
    target_per_batch: Optional[Batch] = None  # None: one permutation of source and target together
    # source and target part of a batch pass through the network one after the other: batch statistics never mix them
    separate_domains: bool = False
    spatial_prior: SpatialPrior = SpatialPrior()
    guard: Guard = Guard()

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


class Evaluation(StrictModel):
    """Evaluation of the network, always at the size of the labels."""

    flip: bool = True  # average with the mirrored image
    scales: List[Scale] = Field([1.0], min_length=1, max_length=32)  # multi-scale testing
    combine: Literal["mean", "max"] = "mean"  # over the scales; the paper does not say which
    long_side: Optional[_LongSide] = None  # pixels of the network's input at scale 1; None = as it is
    upsampling: Literal["bilinear", "bicubic", "pillow"] = "bilinear"  # as that of self_training


class WarmUp(StrictModel):
    """Adversarial adaptation of the source network in output space, before the first round."""

    optimiser: Optimiser
    weight: _Factor = 0.001  # of the adversarial loss; 0 is the control without it
    discriminator_learning_rate: _Rate = 1e-4
    discriminator_width: int = Field(64, ge=1, le=4096)


class Paper(StrictModel):
    """The row of the paper's tables that an experiment reproduces."""

    table: Literal[1, 2, 3]
    row: str
    network: Literal["resnet38", "fcn8s"]
    expected: Dict[str, float]  # IoU in % per class, and miou; of SYNTHIA miou_star as well
