"""The parts of an experiment beside its rounds: data, network, training phases, evaluation; strict, with limits.

The text below a key is its description in the reference and in the JSON schema. It ends with the unit of a number and
the origin of the default or, where there is none, of the key: "paper", "inferred" (from the paper), "released" (the
authors' program) or "ours".
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from pydantic import Field, ValidationInfo, field_validator, model_validator
from typing_extensions import Annotated, Literal

from cbst_mx.config.fields import (
    Batch,
    Count,
    Factor,
    FilePath,
    Fold,
    FormatName,
    LongSide,
    NetworkName,
    Rate,
    Scale,
    Seed,
    Side,
)
from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from cbst_mx.errors import ConfigError
from cbst_mx.strict_yaml import StrictModel

__all__ = ["Augmentation", "Data", "Evaluation", "Network", "Optimiser", "Paper", "SourceTraining", "WarmUp"]


class Data(StrictModel):
    """One set of images."""

    format: FormatName
    """How the files are laid out: as GTA5, SYNTHIA, Cityscapes or NTHU publish them, or `folder`, your own images with
    a description. Origin: ours.
    """
    root: FilePath
    """Folder of the data set; a relative path is below the folder that the environment variable `CBST_DATA` names.
    Origin: ours.
    """
    split: Optional[str] = None
    """Which part: `train` or `val` of Cityscapes; `train`, `test`, `rest` of NTHU; a split of the description; not of
    GTA5 and SYNTHIA. Origin: ours.
    """
    labels: Optional[Literal["labelIds", "labelTrainIds", "raw", "ids", "trainIds"]] = None
    """Which label files. Cityscapes: `labelIds` (when not given) or `labelTrainIds`; SYNTHIA: `raw` (when not given),
    `ids` or `trainIds`. Origin: ours.
    """
    description: Optional[FilePath] = None
    """The YAML file that describes data of format `folder`; a relative path starts at the experiment file's folder.
    Origin: ours.
    """
    list: Optional[FilePath] = None
    """A text file that names the images to use; a relative path starts at the data root. Origin: released."""
    city: Optional[str] = None
    """City of NTHU: Rome, Rio, Tokyo or Taipei. Origin: paper."""
    fold: Optional[Fold] = None
    """Which fold of NTHU's labelled images, from 0. Unit: number of a fold. Origin: paper."""
    folds: Optional[int] = Field(None, ge=2, le=10**6)
    """Of how many folds; null: 10. Unit: folds. Origin: paper."""
    fold_seed: Optional[Seed] = None
    """Seed of the assignment of images to folds; null: 0. Unit: seed. Origin: ours."""

    def selection(self) -> Dict[str, Any]:
        """Return what chooses the images, besides format and root, as the readers' keyword arguments."""
        return self.model_dump(exclude={"format", "root", "labels"})


class Network(StrictModel):
    """The network and the normalisation of its input."""

    name: NetworkName = "fcn8s"
    """Network: `fcn8s` (FCN8s on VGG-16) or `resnet38` (ResNet-38, model A1), or one that you added. Origin: paper."""
    options: Dict[str, Any] = {}
    """Keyword arguments of the network's constructor, such as `width`, `batch_norm`, `dropout`; see the Python API.
    Origin: ours.
    """
    mean: List[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(list(IMAGENET_MEAN), min_length=3, max_length=3)
    """Subtracted from red, green and blue before the network. Unit: full range of a channel. Origin: released."""
    std: List[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(list(IMAGENET_STD), min_length=3, max_length=3)
    """Divides red, green and blue after that. Unit: full range of a channel. Origin: released."""


class Augmentation(StrictModel):
    """Joint scale, crop and flip; colour changes are off in the paper's protocol."""

    crop: List[Side] = Field([504, 504], min_length=2, max_length=2)
    """Height and width of a training crop; smaller images are filled up with the mean colour and the ignored label.
    Unit: pixels. Origin: released.
    """
    scale: List[Scale] = Field([0.7, 1.3], min_length=2, max_length=2)
    """Smallest and largest factor by which an image is resized before the crop, drawn evenly. Unit: factor. Origin:
    released.
    """
    flip: bool = True
    """Whether every second crop, at random, is mirrored. Origin: released."""
    brightness: float = 0.0
    """Strength s in [0, 1]: the factor of brightness is drawn from [1 - s, 1 + s]; 0 is off. Unit: factor. Origin:
    released.
    """
    contrast: float = 0.0
    """The same for contrast. Unit: factor. Origin: released."""
    saturation: float = 0.0
    """The same for saturation. Unit: factor. Origin: released."""
    hue: float = 0.0
    """Largest turn of the hue, in [0, 0.5]; 0 is off. Unit: full circle. Origin: released."""
    blur: float = 0.0
    """Chance, in [0, 1], that a crop is blurred. Unit: probability. Origin: released."""

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

    iterations: Optional[Count] = None
    """Length of the phase; exactly one of `iterations` and `epochs` is given. Unit: iterations. Origin: released."""
    epochs: Optional[Count] = Field(None, validate_default=True)
    """Length of the phase, in place of `iterations`: passes over all its images. Unit: epochs. Origin: released."""
    batch_size: Batch
    """Crops in one step of SGD, over all devices. Unit: images. Origin: released."""
    learning_rate: Rate
    """Learning rate of SGD, after the warm-up; of the rounds' retraining in the first round. Unit: rate. Origin:
    released.
    """
    warmup: Count = 0
    """The learning rate grows linearly over so many first iterations. Unit: iterations. Origin: ours."""
    power: Factor = 0.0
    """Exponent of the polynomial decay of the learning rate; 0: constant. Unit: exponent. Origin: released."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD. Unit: factor. Origin: released."""
    weight_decay: Factor = 5e-4
    """Weight decay of SGD. Unit: factor. Origin: released."""
    bias_lr_mult: Factor = 2.0
    """Multiplies the learning rate of all biases and batch-norm betas. Unit: factor. Origin: released."""
    bias_wd_mult: Factor = 0.0
    """Multiplies the weight decay of the same. Unit: factor. Origin: released."""
    checkpoint_every: Count = 500
    """A checkpoint after so many iterations; 0: not by iterations. Unit: iterations. Origin: ours."""
    checkpoint_minutes: float = Field(5.0, ge=0, le=1e6)
    """And a checkpoint after so much time; 0: not by time. Unit: minutes. Origin: ours."""

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

    snapshots: Count = 0
    """Keeps and evaluates the network each time so many epochs are done, and at the end; 0: no such snapshots. Unit:
    epochs. Origin: ours.
    """


class Evaluation(StrictModel):
    """Evaluation of the network, always at the size of the labels."""

    flip: bool = True
    """Average with the mirrored image's prediction. Origin: released."""
    scales: List[Scale] = Field([1.0], min_length=1, max_length=32)
    """Factors of the image's size that are tested and combined (multi-scale testing). Unit: factor. Origin: paper."""
    combine: Literal["mean", "max"] = "mean"
    """How the scales' probabilities become one; the paper does not say. Origin: ours."""
    long_side: Optional[LongSide] = None
    """Longer side of the network's input at scale 1; null: as the image is. Unit: pixels. Origin: ours."""
    upsampling: Literal["bilinear", "bicubic", "pillow"] = "bilinear"
    """How the network's output becomes the image's size; as `self_training.upsampling`. Origin: ours."""


class WarmUp(StrictModel):
    """Adversarial adaptation of the source network in output space, before the first round."""

    optimiser: Optimiser
    """SGD of the warm-up. Origin: ours."""
    weight: Factor = 0.001
    """Factor of the adversarial loss; 0: the control without it. Unit: factor. Origin: ours."""
    discriminator_learning_rate: Rate = 1e-4
    """Learning rate of the discriminator. Unit: rate. Origin: ours."""
    discriminator_width: int = Field(64, ge=1, le=4096)
    """Channels of the discriminator's first layer. Unit: channels. Origin: ours."""


class Paper(StrictModel):
    """The row of the paper's tables that an experiment reproduces."""

    table: Literal[1, 2, 3]
    """Which of the paper's tables. Unit: number of a table. Origin: paper."""
    row: str
    """Name of the row. Origin: paper."""
    network: Literal["resnet38", "fcn8s"]
    """The row's network. Origin: paper."""
    expected: Dict[str, float]
    """IoU per class as published, and `miou`; of SYNTHIA `miou_star` as well. Unit: %. Origin: paper."""
