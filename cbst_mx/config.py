"""One experiment: a YAML file, typed and strict. Unknown keys are refused; relative data roots are below ``CBST_DATA``.

The top level is :class:`Experiment`; every key's default is the paper's or, where the paper is silent, the released
program's, unless its comment says otherwise.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import yaml
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Annotated, Literal

from cbst_mx.data import FORMATS, ImageSet, LabelledImageSet, folder, open_images, open_labelled
from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import CITYSCAPES_19, LABEL_SPACES, SYNTHIA_16, LabelSpace
from cbst_mx.methods import RULES
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.strict_yaml import StrictModel, one_sentence, parse_value, read_yaml

__all__ = ["DATA_VARIABLE", "Data", "Experiment", "Optimiser", "below_data_root", "load_experiment"]

DATA_VARIABLE = "CBST_DATA"

Scale = Annotated[float, Field(gt=0, lt=100)]  # a factor of an image's height and width


# mypy takes no names that are computed; pydantic does.
if TYPE_CHECKING:
    _FormatName = str
    _MethodName = str
else:
    _FormatName = Literal[tuple(FORMATS)]
    _MethodName = Literal[tuple(RULES)]


class Data(StrictModel):
    """One set of images."""

    format: _FormatName
    root: str  # absolute, or below the folder named by the environment variable CBST_DATA
    split: Optional[str] = None
    # Which label files. cityscapes: labelIds (default), labelTrainIds; synthia: raw (default), ids, trainIds.
    labels: Optional[Literal["labelIds", "labelTrainIds", "raw", "ids", "trainIds"]] = None
    description: Optional[str] = None  # folder: the YAML file, beside the experiment when relative
    list: Optional[str] = None  # a text file that names the images to use; below the data root when relative
    city: Optional[str] = None  # nthu
    fold: Optional[int] = Field(None, ge=0)  # nthu: which fold of the labelled images
    folds: Optional[int] = Field(None, ge=2)  # nthu: of how many; None: 10, as in the paper
    fold_seed: Optional[int] = Field(None, ge=0)  # nthu: of which assignment to folds; None: 0

    def selection(self) -> Dict[str, Any]:
        """Return what chooses the images, besides format and root, as the readers' keyword arguments."""
        return self.model_dump(exclude={"format", "root", "labels"})


class Network(StrictModel):
    """The network and the normalisation of its input."""

    name: str = "fcn8s"
    options: Dict[str, Any] = {}  # keyword arguments of its constructor
    mean: List[float] = Field(list(IMAGENET_MEAN), min_length=3, max_length=3)
    std: List[float] = Field(list(IMAGENET_STD), min_length=3, max_length=3)


class Augmentation(StrictModel):
    """Joint scale, crop and flip; colour changes are off in the paper's protocol."""

    crop: List[int] = Field([504, 504], min_length=2, max_length=2)  # height, width in pixels
    scale: List[float] = Field([0.7, 1.3], min_length=2, max_length=2)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0

    def transform(self, mining: Optional[ClassMining] = None) -> TrainTransform:
        """Return the transform described, with crops by `mining`."""
        values = self.model_dump()
        values.update(crop=tuple(values["crop"]), scale=tuple(values["scale"]), mining=mining)
        return TrainTransform(**values)


class Optimiser(StrictModel):
    """SGD over one training phase."""

    iterations: Optional[int] = Field(None, ge=0)
    epochs: Optional[int] = Field(None, ge=0)  # in place of iterations: passes over all images of the phase
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)  # iterations of linear increase
    power: float = Field(0.0, ge=0)  # of the polynomial decay; 0 = constant
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    bias_lr_mult: float = Field(2.0, ge=0)  # of the learning rate, for all biases and batch-norm betas
    bias_wd_mult: float = Field(0.0, ge=0)  # of the weight decay, for the same
    checkpoint_every: int = Field(500, ge=0)  # iterations; 0 = only at the end of the phase

    @model_validator(mode="after")
    def _one_length(self) -> Optimiser:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("exactly one of iterations and epochs must be given")
        return self


class Portion(StrictModel):
    """The portion p over the rounds."""

    initial: float = Field(0.20, gt=0, le=1)
    step: float = Field(0.05, ge=0)
    maximum: float = Field(0.50, gt=0, le=1)


class SpatialPrior(StrictModel):
    """The spatial prior of CBST-SP."""

    grid: List[int] = Field([256, 512], min_length=2, max_length=2)  # rows, columns of the stored maps
    kernel: float = Field(70.0, ge=0)  # pixels at 1024 x 2048


class SourcePortion(StrictModel):
    """The portion of source images a round trains on; the released program's numbers."""

    initial: float = Field(0.03, gt=0, le=1)
    step: float = Field(0.0025, ge=0)
    maximum: float = Field(0.06, gt=0, le=1)
    policy: Literal["cumulative", "random"] = "cumulative"


class Mining(StrictModel):
    """Rare-class mining: training crops centred on classes that are predicted least; not used by ST."""

    worst: int = Field(5, ge=1)  # classes predicted least; the released program takes 3
    priority: float = Field(0.001, ge=0, le=1)  # classes with a smaller predicted portion come first
    probability: float = Field(0.8, ge=0, le=1)  # of mining an image


class SelfTraining(StrictModel):
    """The rounds."""

    method: _MethodName
    rounds: int = Field(7, ge=0)
    portion: Portion = Portion()
    fidelity: Literal["paper", "released"] = "paper"
    flip: bool = True  # average with the mirrored image when pseudo-labelling
    scales: List[Scale] = Field([1.0], min_length=1)  # average over these scales when pseudo-labelling
    long_side: Optional[int] = Field(None, ge=32)  # pixels of the input when pseudo-labelling; None: as it is
    # of the network's output to the image; the released program's is bicubic
    upsampling: Literal["bilinear", "bicubic"] = "bilinear"
    # where the network's output stays between thresholds and selection; auto: memory up to 256 MB, else disk, but
    # FCN8s, whose output has the image's size, runs again
    keep_maps: Literal["auto", "memory", "disk", "recompute"] = "auto"
    source_portion: Optional[SourcePortion] = None  # None: all source images in every round (eq. 3 and 6)
    mining: Optional[Mining] = None
    retraining: Optimiser
    learning_rate_factor: float = Field(1.0, gt=0)  # per round
    target_per_batch: Optional[int] = Field(None, ge=1)  # None: one permutation of source and target together
    # source and target part of a batch pass through the network one after the other: batch statistics never mix them
    separate_domains: bool = False
    spatial_prior: SpatialPrior = SpatialPrior()

    @property
    def policy(self) -> str:
        """Rule of the method's thresholds: "global" for ``st``, "class-balanced" for ``cbst`` and ``cbst-sp``."""
        return RULES[self.method]

    @model_validator(mode="after")
    def _places_for_source(self) -> SelfTraining:
        if self.target_per_batch is not None and self.target_per_batch >= self.retraining.batch_size:
            raise ValueError(
                f"target_per_batch must be smaller than the batch_size {self.retraining.batch_size}, "
                f"got {self.target_per_batch}"
            )
        if self.separate_domains and self.target_per_batch is None:
            raise ValueError("separate_domains needs target_per_batch, which says how a batch is divided")
        return self


class Evaluation(StrictModel):
    """Evaluation of the network, always at the size of the labels."""

    flip: bool = True  # average with the mirrored image
    scales: List[Scale] = Field([1.0], min_length=1)  # multi-scale testing
    combine: Literal["mean", "max"] = "mean"  # over the scales; the paper does not say which
    long_side: Optional[int] = Field(None, ge=32)  # pixels of the network's input at scale 1; None = as it is


class WarmUp(StrictModel):
    """Adversarial adaptation of the source network in output space, before the first round."""

    optimiser: Optimiser
    weight: float = Field(0.001, ge=0)  # of the adversarial loss; 0 is the control without it
    discriminator_learning_rate: float = Field(1e-4, gt=0)
    discriminator_width: int = Field(64, ge=1)


class Paper(StrictModel):
    """The row of the paper's tables that an experiment reproduces."""

    table: Literal[1, 2, 3]
    row: str
    network: Literal["resnet38", "fcn8s"]
    expected: Dict[str, float]  # IoU in % per class, and miou; of SYNTHIA miou_star as well


class Experiment(StrictModel):
    """Settings of one run."""

    name: str
    seed: int = Field(0, ge=0)
    label_space: str = "cityscapes-19"  # a known one, or "folder": the classes of the source's own description
    source: Data
    target: Data  # opened without labels
    validation: Dict[str, Data]  # labelled image sets for evaluation; the first is the one summaries lead with
    network: Network = Network()
    augmentation: Augmentation = Augmentation()
    source_training: Optional[Optimiser] = None  # None: initial_parameters must be given
    initial_parameters: Optional[str] = None  # a .params file with its sidecar that takes the source training's place
    self_training: SelfTraining
    pretrained: Optional[str] = None  # parameters the source training starts from, e.g. imported ImageNet weights
    warm_up: Optional[WarmUp] = None
    evaluation: Evaluation = Evaluation()
    inference_batch: int = Field(8, ge=1)
    workers: int = Field(2, ge=0)
    ctx: str = "cpu"  # or gpu:0; gpu:0,1 spreads every training batch over both, each with its own dropout masks
    amp: Literal["none", "bfloat16", "float16"] = "none"  # precision of convolutions: bfloat16 on CPU, float16 on GPU
    gradient_checkpointing: bool = False  # recompute activations in training instead of keeping them: less memory
    # the experiment whose source network the rounds start from, where make runs both; a run takes initial_parameters
    starts_from: Optional[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]] = None
    paper: Optional[Paper] = None
    origin: Dict[str, str] = {}  # where settings come from: key with dots to "paper", "released", "author" or "ours"
    smoke: bool = False  # tiny and meaningless: only to see that every step runs

    @model_validator(mode="after")
    def _one_start(self) -> Experiment:
        if (self.source_training is None) == (self.initial_parameters is None):
            raise ValueError("exactly one of source_training and initial_parameters must be given")
        if self.pretrained is not None and self.source_training is None:
            raise ValueError("pretrained needs source_training, which starts from it")
        for name, data in self.validation.items():
            folds = [(d.city, d.fold, d.folds or 10, d.fold_seed or 0) for d in (self.target, data)]
            if self.target.format == data.format == "nthu" and self.target.split == "rest" and folds[0] != folds[1]:
                raise ValueError(
                    f"target and validation.{name} must have the same city, fold, folds and fold_seed, or images of "
                    "the test would be trained on"
                )
        if not self.validation:
            raise ValueError("validation must name at least one image set")
        return self

    def to_yaml(self) -> str:
        """Return the experiment with all defaults written out; `starts_from` only where it is given."""
        unused = {"starts_from"} if self.starts_from is None else set()
        return yaml.safe_dump(self.model_dump(exclude=unused), sort_keys=False)

    @property
    def identity(self) -> Dict[str, Any]:
        """Settings that tell this run from others: all but those that cannot change its numbers."""
        beside: Dict[str, Any] = dict.fromkeys(("workers", "ctx", "starts_from", "paper", "origin"), True)
        return self.model_dump(exclude={**beside, "self_training": {"keep_maps"}})

    def classes(self) -> LabelSpace:
        """Return the label space.

        Raises
        ------
        ConfigError
            If it is unknown.
        """
        if self.label_space in LABEL_SPACES:
            return LABEL_SPACES[self.label_space]
        if self.label_space == "folder" and self.source.description:
            return folder.label_space(folder.read_description(self.source.description))
        known = ", ".join([*LABEL_SPACES, "folder (with a source of format folder)"])
        raise ConfigError(f"label_space must be one of {known}, got {self.label_space!r}")

    def network_spec(self) -> NetworkSpec:
        """Return the network's specification."""
        net = self.network
        mean, std = tuple(net.mean), tuple(net.std)
        return NetworkSpec(net.name, self.classes().num_classes, dict(net.options), mean, std)  # type: ignore[arg-type]

    # Relative paths are below `data_root`, by default the folder in CBST_DATA.

    def pretrained_path(self, data_root: Optional[Path] = None) -> Path:
        """Return the parameters the source training starts from."""
        return below_data_root(str(self.pretrained), data_root)

    def open_source(self, data_root: Optional[Path] = None) -> LabelledImageSet:
        """Open the labelled source images."""
        return _open_labelled(self.source, self.classes(), data_root)

    def open_target(self, data_root: Optional[Path] = None) -> ImageSet:
        """Open the target training images: without labels, whatever lies on the disk."""
        root = below_data_root(self.target.root, data_root)
        return open_images(self.target.format, root, **self.target.selection())

    def open_validation(self, data_root: Optional[Path] = None) -> Dict[str, LabelledImageSet]:
        """Open the labelled image sets of the evaluation."""
        # networks of SYNTHIA's 16 classes are scored on all 19, from which every published protocol follows
        wider = self.label_space == SYNTHIA_16.name
        spaces = {
            name: CITYSCAPES_19 if wider and data.format == "cityscapes" else self.classes()
            for name, data in self.validation.items()
        }
        return {name: _open_labelled(self.validation[name], space, data_root) for name, space in spaces.items()}


def _open_labelled(data: Data, label_space: LabelSpace, data_root: Optional[Path]) -> LabelledImageSet:
    root = below_data_root(data.root, data_root)
    return open_labelled(data.format, root, label_space=label_space, labels=data.labels, **data.selection())


def below_data_root(path: str, data_root: Optional[Path] = None) -> Path:
    """Return `path`, with variables filled in; a relative one is below `data_root`, else below ``CBST_DATA``.

    Raises
    ------
    ConfigError
        If `path` is relative, no `data_root` is given and the variable is not set.
    """
    root = Path(os.path.expandvars(path)).expanduser()
    if root.is_absolute():
        return root
    if data_root is not None:
        return data_root / root
    base = os.environ.get(DATA_VARIABLE)
    if not base:
        raise ConfigError(f"path {path} is relative: set the environment variable {DATA_VARIABLE} to the data's folder")
    return Path(base).expanduser() / root


def load_experiment(path: Path, changes: Tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file.

    Parameters
    ----------
    path : Path
        YAML; the key ``extends`` names another experiment file, relative to this one, whose settings it changes.
    changes : tuple of str
        ``key=value`` pairs that override it, with dots between levels, for example ``self_training.rounds=2``; values
        are YAML.

    Raises
    ------
    ConfigError
        If a file cannot be read or a key is wrong; the sentence names both.
    """
    path = Path(path)
    values = _read_with_bases(path)
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise ConfigError(f"a change must have the form key=value, got {change!r}")
        level = values
        *parents, last = key.split(".")
        for parent in parents:
            if level.get(parent) is None:
                level[parent] = {}
            level = level[parent]
            if not isinstance(level, dict):
                raise ConfigError(f"change {change!r}: {parent} is not a mapping in {path}")
        level[last] = parse_value(text)
    if values.get("smoke") is True:
        _make_smoke(values)
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_sentence(error, str(path), Experiment)) from error
    experiment.augmentation.transform()  # refuses bad numbers now and not hours later
    return experiment


# What makes an experiment a smoke test; everything else stays, so that every step of it runs.
_SMOKE = {
    "pretrained": None,
    "network": {"options": {"width": 1 / 32}},
    "augmentation": {"crop": [64, 64]},
    "evaluation": {"long_side": None},
    "self_training": {
        "long_side": None,
        "target_per_batch": None,
        "spatial_prior": {"grid": [32, 64]},
    },
    "inference_batch": 1,
    "workers": 0,
}


def _make_smoke(values: Dict[str, Any]) -> None:
    _merge(values, _SMOKE)
    training = values["self_training"]
    training["rounds"] = min(training.get("rounds", 7), 2)
    for phase in (
        values.get("source_training"),
        training.get("retraining"),
        (values.get("warm_up") or {}).get("optimiser"),
    ):
        if phase:
            _merge(phase, {"iterations": 1, "epochs": None, "batch_size": 2})


def _merge(values: Dict[str, Any], changes: Dict[str, Any]) -> None:
    """Put `changes` into `values`, mapping by mapping; anything but a mapping replaces what was there."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = copy.deepcopy(value)


def _read_with_bases(path: Path, below: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """Read an experiment over the one it ``extends``, if any, whose path is relative to its own."""
    values = _located(read_yaml(path), path.parent)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the path of an experiment file, got {base!r}")
    base_path = (path.parent / base).resolve()
    if base_path in (path.resolve(), *below):
        raise ConfigError(f"{path}: extends {base} leads back to itself")
    merged = _read_with_bases(base_path, (*below, path.resolve()))
    _merge(merged, values)
    return merged


def _located(values: Dict[str, Any], base: Path) -> Dict[str, Any]:
    """Turn the descriptions' paths, relative to the experiment file, into absolute ones."""

    def located(data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("description"), str):
            return {**data, "description": str((base / data["description"]).resolve())}
        return data

    result = {**values}
    for key in ("source", "target"):
        if key in values:
            result[key] = located(values[key])
    if isinstance(values.get("validation"), dict):
        result["validation"] = {name: located(data) for name, data in values["validation"].items()}
    return result
