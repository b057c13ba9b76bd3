"""One experiment: a YAML file, typed and strict. Unknown keys are refused; relative data roots are below ``CBST_DATA``.

The top level is :class:`Experiment`; every key's default is the paper's or, where the paper is silent, the released
program's, unless its comment says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Literal

from cbst_mx.data import ImageSet, LabelledImageSet, folder, open_images, open_labelled
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import LABEL_SPACES, LabelSpace
from cbst_mx.network_spec import NetworkSpec
from cbst_mx.validation import one_sentence, parse_value, read_yaml

__all__ = ["DATA_VARIABLE", "Experiment", "load_experiment"]

DATA_VARIABLE = "CBST_DATA"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(_Strict):
    """One set of images."""

    format: Literal["gta5", "cityscapes", "folder"]
    root: str  # absolute, or below the folder named by the environment variable CBST_DATA
    split: Optional[str] = None
    labels: Optional[Literal["labelIds", "labelTrainIds"]] = None  # cityscapes: which label files
    description: Optional[str] = None  # folder: the YAML file, beside the experiment when relative


class Network(_Strict):
    """The network and what it sees."""

    name: str = "fcn8s"
    options: Dict[str, Any] = {}  # keyword arguments of its constructor
    mean: List[float] = Field(list(IMAGENET_MEAN), min_length=3, max_length=3)
    std: List[float] = Field(list(IMAGENET_STD), min_length=3, max_length=3)


class Augmentation(_Strict):
    """Joint scale, crop and flip; colour changes are off in the paper's protocol."""

    crop: List[int] = Field([504, 504], min_length=2, max_length=2)  # height, width in pixels
    scale: List[float] = Field([0.7, 1.3], min_length=2, max_length=2)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0

    def transform(self) -> TrainTransform:
        """Return the transform described."""
        values = self.model_dump()
        return TrainTransform(**{**values, "crop": tuple(values["crop"]), "scale": tuple(values["scale"])})


class Optimiser(_Strict):
    """SGD over one training phase."""

    iterations: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)  # iterations of linear increase
    power: float = Field(0.0, ge=0)  # of the polynomial decay; 0 = constant
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    checkpoint_every: int = Field(500, ge=0)  # iterations; 0 = only at the end of the phase


class Portion(_Strict):
    """The portion p over the rounds."""

    initial: float = Field(0.20, gt=0, le=1)
    step: float = Field(0.05, ge=0)
    maximum: float = Field(0.50, gt=0, le=1)


class SpatialPrior(_Strict):
    """The spatial prior of CBST-SP."""

    grid: List[int] = Field([256, 512], min_length=2, max_length=2)  # rows, columns of the stored maps
    kernel: float = Field(70.0, ge=0)  # pixels at 1024 x 2048


class SelfTraining(_Strict):
    """The rounds."""

    method: Literal["st", "cbst", "cbst-sp"]
    rounds: int = Field(7, ge=0)
    portion: Portion = Portion()
    fidelity: Literal["paper", "released"] = "paper"
    flip: bool = True  # average with the mirrored image when pseudo-labelling
    scales: List[float] = Field([1.0], min_length=1)  # average over these scales when pseudo-labelling
    retraining: Optimiser
    learning_rate_factor: float = Field(1.0, gt=0)  # per round
    target_per_batch: Optional[int] = Field(None, ge=1)  # None: one permutation of source and target together
    spatial_prior: SpatialPrior = SpatialPrior()

    @property
    def policy(self) -> str:
        """Return the threshold policy of the method."""
        return "global" if self.method == "st" else "class-balanced"

    @model_validator(mode="after")
    def _places_for_source(self) -> SelfTraining:
        if self.target_per_batch is not None and self.target_per_batch >= self.retraining.batch_size:
            raise ValueError(
                f"target_per_batch must be smaller than the batch_size {self.retraining.batch_size}, "
                f"got {self.target_per_batch}"
            )
        return self


class Experiment(_Strict):
    """Everything one run needs."""

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
    evaluation_flip: bool = True
    inference_batch: int = Field(8, ge=1)
    workers: int = Field(2, ge=0)
    ctx: str = "cpu"

    @model_validator(mode="after")
    def _one_start(self) -> Experiment:
        if (self.source_training is None) == (self.initial_parameters is None):
            raise ValueError("exactly one of source_training and initial_parameters must be given")
        if not self.validation:
            raise ValueError("validation must name at least one image set")
        return self

    def to_yaml(self) -> str:
        """Return the experiment with all defaults written out."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    @property
    def identity(self) -> Dict[str, Any]:
        """What makes a run this run: all but the settings that cannot change its numbers."""
        return self.model_dump(exclude={"workers", "ctx"})

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

    def open_source(self) -> LabelledImageSet:
        """Open the labelled source images."""
        return self._labelled(self.source)

    def open_target(self) -> ImageSet:
        """Open the target training images: without labels, whatever lies on the disk."""
        return open_images(
            self.target.format, _root(self.target), split=self.target.split, description=self.target.description
        )

    def open_validation(self) -> Dict[str, LabelledImageSet]:
        """Open the labelled image sets of the evaluation."""
        return {name: self._labelled(data) for name, data in self.validation.items()}

    def _labelled(self, data: Data) -> LabelledImageSet:
        return open_labelled(
            data.format,
            _root(data),
            label_space=self.classes(),
            split=data.split,
            labels=data.labels,
            description=data.description,
        )


def _root(data: Data) -> Path:
    root = Path(os.path.expandvars(data.root)).expanduser()
    if root.is_absolute():
        return root
    base = os.environ.get(DATA_VARIABLE)
    if not base:
        raise ConfigError(
            f"data root {data.root} is relative: set the environment variable {DATA_VARIABLE} to its folder"
        )
    return Path(base).expanduser() / root


def load_experiment(path: Path, changes: Tuple[str, ...] = ()) -> Experiment:
    """Read an experiment file.

    Parameters
    ----------
    path : Path
        YAML.
    changes : tuple of str
        ``key=value`` pairs that override it, with dots between levels, for example ``self_training.rounds=2``; values
        are YAML.

    Raises
    ------
    ConfigError
        With one sentence that names the file and the key.
    """
    path = Path(path)
    values = read_yaml(path)
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
    try:
        experiment = Experiment.model_validate(_located(values, path.parent))
    except ValidationError as error:
        raise ConfigError(one_sentence(error, str(path), Experiment)) from error
    experiment.augmentation.transform()  # refuses bad numbers now and not hours later
    return experiment


def _located(values: Dict[str, Any], base: Path) -> Dict[str, Any]:
    """Turn the descriptions' paths, relative to the experiment file, into absolute ones."""

    def located(data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("description"), str):
            return {**data, "description": str((base / data["description"]).resolve())}
        return data

    result = {**values}
    for key in ("source", "target"):
        result[key] = located(values.get(key)) if key in values else None
        if key not in values:
            del result[key]
    if isinstance(values.get("validation"), dict):
        result["validation"] = {name: located(data) for name, data in values["validation"].items()}
    return result
