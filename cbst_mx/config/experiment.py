"""One experiment: a YAML file, typed and strict. Unknown keys are refused; relative data roots are below ``CBST_DATA``.

The top level is :class:`Experiment`; the text below a key is its description, see `cbst_mx.config.parts`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from typing_extensions import Annotated, Literal

from cbst_mx.config.fields import Batch, Count, FilePath, Name, Seed, SetName
from cbst_mx.config.parts import Augmentation, Data, Evaluation, Network, Paper, SourceTraining, WarmUp
from cbst_mx.config.self_training import SelfTraining, SpatialPrior
from cbst_mx.config.settings import read_settings
from cbst_mx.data import ImageSet, LabelledImageSet, folder, open_images, open_labelled
from cbst_mx.errors import ConfigError
from cbst_mx.files import reading
from cbst_mx.label_space import CITYSCAPES_19, LABEL_SPACES, SYNTHIA_16, LabelSpace
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.strict_yaml import StrictModel, in_one_answer, problems

__all__ = ["DATA_VARIABLE", "NAMED_BATCH", "Experiment", "below_data_root", "load_experiment"]

DATA_VARIABLE = "CBST_DATA"

# Keys that came after run folders had been made, which have none of them and are continued all the same.
_LATER = (
    "starts_from",
    "released_start",
    "images_per_pass",
    "cache_mb",
    "evaluation.upsampling",
    "source_training.snapshots",
    "source_training.checkpoint_minutes",
    "self_training.retraining.checkpoint_minutes",
    "warm_up.optimiser.checkpoint_minutes",
    "self_training.mining.methods",
    "self_training.mining.classes",
    "self_training.guard",
)

#: What records say of `inference_batch` where sizes decide, as those of run folders made before they could.
NAMED_BATCH = 8


class Experiment(StrictModel):
    """Settings of one run."""

    name: Name
    """Name of the experiment, for tables and logs. Origin: ours."""
    seed: Seed = 0
    """Seed of all that is random: parameters, order, crops, dropout. Unit: seed. Origin: ours."""
    label_space: Name = "cityscapes-19"
    """The classes: `cityscapes-19`, `synthia-16`, `nthu-13`, or `folder`: those of the source's own description.
    Origin: paper.
    """
    source: Data
    """The labelled images. Origin: paper."""
    target: Data
    """The images to adapt to; opened without labels, whatever lies on the disk. Origin: paper."""
    validation: Dict[SetName, Data] = {}
    """Labelled image sets for evaluation, by names of your own; summaries lead with the first. Without any, every round
    reports what needs no labels. Origin: paper.
    """
    network: Network = Network()
    """The network and the normalisation of its input. Origin: paper."""
    augmentation: Augmentation = Augmentation()
    """How training crops are made. Origin: released."""
    # run folders that do not say it were made before there was a choice, with "linear"
    resampling: Literal["linear", "program", "draft"] = "program"
    """How images are resized, in training and as the network's input: `program` by Lanczos to fewer pixels and cubic
    to more; `linear` is faster and softer; `draft` is `program`, but decodes JPEGs at 1/2, 1/4 or 1/8 where the input
    is as small. Origin: released.
    """
    source_training: Optional[SourceTraining] = None
    """The training on source labels; exactly one of `source_training` and `initial_parameters` is given. Origin:
    released.
    """
    initial_parameters: Optional[FilePath] = Field(None, validate_default=True)
    """Parameters that take the source training's place: a `.params` file with its sidecar, which `cbst-mx` made or
    imported; a relative path starts at the working folder. Origin: released.
    """
    self_training: SelfTraining
    """The rounds. Origin: paper."""
    released_start: Optional[FilePath] = None
    """Parameters that the authors released, below `CBST_DATA`: taken as `initial_parameters` where they are there.
    Origin: released.
    """
    pretrained: Optional[FilePath] = None
    """Parameters that the source training starts from, such as imported ImageNet weights; a relative path is below
    `CBST_DATA`. Origin: paper.
    """
    warm_up: Optional[WarmUp] = None
    """Adversarial adaptation of the source network before the first round; null: none. Origin: ours."""
    evaluation: Evaluation = Evaluation()
    """How networks are evaluated. Origin: released."""
    inference_batch: Optional[Batch] = None
    """Images of equal size that pass the network together in evaluation; null: at most 8, with no more pixels than one
    of 512 x 1024 has, and on a GPU one. Unit: images. Origin: ours.
    """
    images_per_pass: Count = 0
    """Crops that pass the network at once in training, on all devices together; 0: the whole batch. The gradients of
    the passes add up, in less memory; needs frozen batch norm. Not in the warm-up. Unit: images. Origin: ours.
    """
    workers: int = Field(2, ge=0, le=256)
    """Threads that read and prepare images; any number gives the same batches. Unit: threads. Origin: ours."""
    cache_mb: int = Field(0, ge=0)
    """Memory for decoded training images, which later epochs of a training phase then do not decode again; changes no
    number. Unit: MB. Origin: ours.
    """
    ctx: str = "cpu"
    """Device: `cpu`, `gpu:0`; `gpu:0,1` spreads every training batch over both, each with its own dropout masks.
    Origin: ours.
    """
    amp: Literal["none", "bfloat16", "float16"] = "none"
    """Precision of convolutions: `bfloat16` on CPUs that have it, `float16` on GPUs. Origin: ours."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them: less memory, more time. Origin: ours."""
    starts_from: Optional[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]] = None
    """The experiment whose source network the rounds start from, where make runs both; `cbst-mx run` takes
    `initial_parameters`. Origin: ours.
    """
    paper: Optional[Paper] = None
    """The row of the paper's tables that the experiment reproduces, for `check-paper`. Origin: ours."""
    origin: Dict[str, str] = {}
    """Where this file's settings come from: key with dots to `paper`, `inferred`, `released` or `ours`. Changes
    nothing. Origin: ours.
    """
    smoke: bool = False
    """Tiny and meaningless: only to see that every step runs. Origin: ours."""

    @field_validator("label_space")
    @classmethod
    def _of_some_name(cls, name: str) -> str:
        if name not in (*LABEL_SPACES, "folder"):
            known = ", ".join([*LABEL_SPACES, "folder (with a source of format folder)"])
            raise ValueError(f"label_space must be one of {known}, got {name!r}")
        return name

    @field_validator("source")
    @classmethod
    def _known_classes(cls, source: Data, info: ValidationInfo) -> Data:
        name = info.data.get("label_space")
        if name not in (None, *LABEL_SPACES) and (name != "folder" or source.description is None):
            known = ", ".join([*LABEL_SPACES, "folder (with a source of format folder)"])
            raise ValueError(f"label_space must be one of {known}, got {name!r}")
        return source

    @field_validator("initial_parameters")
    @classmethod
    def _one_start(cls, start: Optional[str], info: ValidationInfo) -> Optional[str]:
        if "source_training" in info.data and (info.data["source_training"] is None) == (start is None):
            raise ValueError("exactly one of source_training and initial_parameters must be given")
        return start

    @field_validator("pretrained")
    @classmethod
    def _for_training(cls, pretrained: Optional[str], info: ValidationInfo) -> Optional[str]:
        if pretrained is not None and info.data.get("source_training", True) is None:
            raise ValueError("pretrained needs source_training, which starts from it")
        return pretrained

    @field_validator("validation")
    @classmethod
    def _not_trained_on(cls, validation: Dict[str, Data], info: ValidationInfo) -> Dict[str, Data]:
        target = info.data.get("target")
        for name, data in validation.items():
            folds = [(d.city, d.fold, d.folds or 10, d.fold_seed or 0) for d in (target, data) if d is not None]
            nthu = target is not None and target.format == data.format == "nthu" and target.split == "rest"
            if nthu and folds[0] != folds[1]:
                raise ValueError(
                    f"target and validation.{name} must have the same city, fold, folds and fold_seed, or images of "
                    "the test would be trained on"
                )
        return validation

    def to_yaml(self) -> str:
        """Return the experiment with all defaults written out, but those of keys that came later or are not in use."""
        unused = self._later_keys()
        prior = self.self_training.spatial_prior
        if not self.self_training.uses_prior and prior.normalisation == SpatialPrior().normalisation:
            unused.setdefault("self_training", {})["spatial_prior"] = {"normalisation"}
        return yaml.safe_dump(self.model_dump(exclude=unused), sort_keys=False)

    def _later_keys(self) -> Dict[str, Any]:
        """Return the keys at their defaults that came later, nested as pydantic excludes them."""
        excluded: Dict[str, Any] = {}
        for key in _LATER:
            *parents, last = key.split(".")
            level: Any = self
            for parent in parents:
                level = getattr(level, parent, None)
            if level is None or getattr(level, last) != type(level).model_fields[last].default:
                continue
            inside = excluded
            for parent in parents:
                inside = inside.setdefault(parent, {})
            inside[last] = True
        return excluded

    @property
    def identity(self) -> Dict[str, Any]:
        """Settings that tell this run from others: all but those that cannot change its numbers."""
        others = ("workers", "cache_mb", "ctx", "images_per_pass", "starts_from", "released_start", "paper", "origin")
        beside: Dict[str, Any] = dict.fromkeys(others, True)
        later = self._later_keys()
        for key, inside in (("self_training", "keep_maps"), ("source_training", "snapshots")):
            later.setdefault(key, {})[inside] = True
        for parents in (("source_training",), ("self_training", "retraining"), ("warm_up", "optimiser")):
            level = later
            for parent in parents:
                level = level.setdefault(parent, {})
            level["checkpoint_minutes"] = True
        # what stops a run, or trains a round anew, may be changed to go on; the record says what was done
        limits = self.self_training.guard.limits
        later["self_training"]["guard"] = {"policy", "rollbacks"} if limits else True
        # run folders made before there was a choice have "linear", and "maximum" as normalisation, and do not say so
        if self.resampling == "linear":
            later["resampling"] = True
        if not self.self_training.uses_prior or self.self_training.spatial_prior.normalisation == "maximum":
            later["self_training"]["spatial_prior"] = {"normalisation"}
        found = self.model_dump(exclude={**later, **beside})
        return {**found, "inference_batch": self.inference_batch or NAMED_BATCH}

    def as_begun(self, file: Path) -> Experiment:
        """Return the experiment as its run goes on, where the run folder's `file` is of before there was a choice.

        Parameters
        ----------
        file : Path
            The ``experiment.yaml`` of the run folder, which need not exist; one that is no experiment is refused later.
        """
        if "resampling" in self.model_fields_set or not file.is_file():
            return self
        with contextlib.suppress(ConfigError):
            if "resampling" not in load_experiment(file).model_fields_set:
                return self.model_copy(update={"resampling": "linear"})
        return self

    def classes(self) -> LabelSpace:
        """Return the label space.

        Raises
        ------
        ConfigError
            If the source's description cannot be used.
        """
        if self.label_space in LABEL_SPACES:
            return LABEL_SPACES[self.label_space]
        return folder.label_space(folder.read_description(str(self.source.description)))

    def network_spec(self) -> NetworkSpec:
        """Return the network's specification."""
        net = self.network
        mean, std = tuple(net.mean), tuple(net.std)
        return NetworkSpec(net.name, self.classes().num_classes, dict(net.options), mean, std)  # type: ignore[arg-type]

    # Relative paths are below `data_root`, by default the folder in CBST_DATA.

    def pretrained_path(self, data_root: Optional[Path] = None) -> Path:
        """Return the parameters the source training starts from."""
        return below_data_root(str(self.pretrained), data_root)

    def prior_path(self, data_root: Optional[Path] = None) -> Optional[Path]:
        """Return the file of the spatial prior; None where it is estimated or no round uses one."""
        file = self.self_training.spatial_prior.file
        return None if file is None or not self.self_training.uses_prior else below_data_root(file, data_root)

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
    base = os.environ.get(DATA_VARIABLE)
    try:
        root = Path(os.path.expandvars(path)).expanduser()
        if root.is_absolute():
            return root
        if data_root is not None:
            return data_root / root
        if base:
            return Path(base).expanduser() / root
    except RuntimeError as error:  # ~name of no user
        raise ConfigError(
            f"path {path} or {DATA_VARIABLE} names the home folder of a user there is not: {error}"
        ) from error
    raise ConfigError(f"path {path} is relative: set the environment variable {DATA_VARIABLE} to the data's folder")


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
        If a file cannot be read or keys are wrong; the message names the file and every such key.
    """
    path = Path(path)
    with reading(path, ConfigError):
        values, _, wrong = read_settings(path, changes)
        try:
            experiment = Experiment.model_validate(values)
        except ValidationError as error:
            wrong += problems(error, Experiment)
        if wrong:
            raise ConfigError(in_one_answer(str(path), wrong))
    return experiment
