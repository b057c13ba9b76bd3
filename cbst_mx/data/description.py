"""Description of one's own data: the YAML file, typed and strict (its form is in `cbst_mx.data.folder`)."""

# pydantic evaluates annotations, and Python 3.8 has no list[str] or X | None there.
# ruff: noqa: UP006, UP007, UP045
from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple, Type, Union

import numpy as np
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import Annotated, Literal

from cbst_mx.data.colour_masks import ColourMasks
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.label_files import LabelPaths, check_below_root, check_expression, check_pattern
from cbst_mx.errors import CBSTError, ConfigError
from cbst_mx.files import reading
from cbst_mx.label_space import IGNORE, LABEL_SPACES, LabelSpace, get_label_space
from cbst_mx.strict_yaml import StrictModel, one_sentence, read_yaml

__all__ = [
    "FolderDescription",
    "FolderSplit",
    "KnownClasses",
    "OwnClasses",
    "is_description",
    "label_space",
    "read_description",
    "read_label_space",
]

_OWN_CONVENTION = "folder"
_COLOURS = "colours"
_LONGEST_NAME = 100  # characters of a class name
_IGNORE = "ignore"
_MOST_DEEP = 2  # ** in a glob

_Ids = Dict[int, Union[int, str]]  # id in the label files -> trainId, name of a class, or "ignore"


def _or_text(schema: Dict[str, Any]) -> None:
    """Let the JSON schema take a pattern as it stands, which the model makes a rule of."""
    schema["anyOf"].insert(0, {"type": "string"})


class LabelRule(StrictModel):
    """Where the label of an image is: a pattern, or replacements in the image's path."""

    pattern: Optional[str] = None
    """Path below the data root with `{stem}`, the image's name without its ending, and `{folder}`, its folder. Origin:
    ours.
    """
    replace: Optional[List[List[str]]] = Field(None, min_length=1, max_length=20)
    """In place of `pattern`: pairs of a regular expression and its replacement that turn an image's path into its
    label's, one after the other. Origin: ours.
    """
    ignore_case: bool = False
    """Whether upper and lower case are alike, in expressions and in names of label files. Origin: ours."""

    @field_validator("pattern")
    @classmethod
    def _fills_in(cls, pattern: Optional[str]) -> Optional[str]:
        if pattern is not None:
            check_pattern(pattern)
        return pattern

    @field_validator("replace")
    @classmethod
    def _replaces(cls, pairs: Optional[List[List[str]]]) -> Optional[List[List[str]]]:
        for pair in pairs or ():
            if len(pair) != 2:
                raise ValueError(f"must be pairs of an expression and its replacement, got {len(pair)} texts")
            check_expression(*pair)
        return pairs

    @model_validator(mode="after")
    def _one_rule(self) -> LabelRule:
        if (self.pattern is None) == (self.replace is None):
            raise ValueError("exactly one of pattern and replace must be given")
        return self

    def paths(self) -> LabelPaths:
        """Return the rule as an object that gives paths."""
        return LabelPaths(self.pattern, self.replace or (), self.ignore_case)


class FolderSplit(StrictModel):
    """One split: globs of its images and, where it has labels, where they are."""

    images: List[str] = Field(min_length=1)
    """Globs below the data root; `*` within a folder, `**` through all. Origin: ours."""
    labels: Annotated[Optional[LabelRule], Field(json_schema_extra=_or_text)] = None
    """Where an image's label is: a pattern such as `labels/{stem}.png`, or a mapping; null: there are none. Origin:
    ours.
    """
    unlabelled: Literal["refuse", "skip"] = "refuse"
    """What is done where an image has no label file: refuse the split, or leave such images out. Origin: ours."""
    list: Optional[str] = None
    """A text file that names the images to use; a relative path starts at the data root. Origin: ours."""

    @field_validator("images")
    @classmethod
    def _images_below_root(cls, patterns: List[str]) -> List[str]:
        for pattern in patterns:
            check_below_root(pattern)
            if pattern.count("**") > _MOST_DEEP:  # each multiplies the folders that are looked through
                raise ValueError(f"must have ** at most {_MOST_DEEP} times, got {pattern[:60]!r}")
        return patterns

    @field_validator("labels", mode="before")
    @classmethod
    def _pattern_alone(cls, labels: Any) -> Any:
        return {"pattern": labels} if isinstance(labels, str) else labels


class FolderDescription(StrictModel):
    """A data description as an object; made by `read_description`."""

    splits: Dict[str, FolderSplit] = Field(min_length=1)
    """The sets of images, by names of your own. Origin: ours."""
    ignore_colours: List[List[int]] = []
    """With `ids: colours`: further colours `[R, G, B]` whose pixels count nowhere. Unit: 0 to 255. Origin: ours."""
    _origin: str = PrivateAttr("the data description")
    _space: LabelSpace = PrivateAttr()  # the classes
    _coding: LabelSpace = PrivateAttr()  # the same with the ids of the label files
    _convention: str = PrivateAttr(_OWN_CONVENTION)
    _read: Optional[Callable[[PathLike], np.ndarray]] = PrivateAttr(None)  # of the label files; None: ids

    @field_validator("splits")
    @classmethod
    def _usable_names(cls, splits: Dict[str, FolderSplit]) -> Dict[str, FolderSplit]:
        for name in splits:
            _check_name("split", name)
        return splits

    @field_validator("ignore_colours")
    @classmethod
    def _colours(cls, colours: List[List[int]]) -> List[List[int]]:
        for colour in colours:
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"must be colours of three values from 0 to 255, got {str(colour)[:60]}")
        return colours

    def coding(self) -> Tuple[LabelSpace, str]:
        """Return the classes with the ids of the label files, and the name of their convention.

        Raises
        ------
        ConfigError
            If the label files hold colours.
        """
        if self._read is not None:
            raise ConfigError(f"{self._origin} must have ids, got colours: a picture in the classes' colours has them")
        return self._coding, self._convention

    def _code_by(self, space: LabelSpace, ids: Union[str, _Ids], key: str) -> None:
        """Set the classes and how label files code them; what is wrong is a ValueError for the schema."""
        self._space = self._coding = space
        if ids != _COLOURS and self.ignore_colours:
            raise ValueError("ignore_colours must not be given without ids: colours")
        try:
            if ids == _COLOURS:
                self._read = ColourMasks(space, [tuple(colour) for colour in self.ignore_colours])
                self._convention = "trainId"
            elif isinstance(ids, str):
                space.check_convention(ids)
                self._convention = ids
            else:
                self._coding = _with_ids(space, ids, key)
                self._convention = _OWN_CONVENTION
        except CBSTError as error:
            raise ValueError(str(error)) from error


class _OwnLabelSpace(StrictModel):
    """Classes of your own."""

    name: str = Field(min_length=1)
    """A name of your own for the set of classes. Origin: ours."""
    names: List[str] = Field(min_length=1)
    """Names of the classes, in order: the first is class 0. Origin: ours."""
    palette: List[List[int]]
    """One colour `[R, G, B]` for each class, in the same order. Unit: 0 to 255. Origin: ours."""
    ids: Union[None, _Ids, Literal["colours"]] = None
    """What a number in a label file stands for: a class by name or number, or `ignore`; or `colours`, where label files
    are images in the palette's colours. Unit: number in a label file. Origin: ours.
    """

    @field_validator("name", "names")
    @classmethod
    def _usable(cls, value: Union[str, List[str]]) -> Union[str, List[str]]:
        for name in [value] if isinstance(value, str) else value:
            _check_name("class" if isinstance(value, list) else "label space", name)
        if isinstance(value, str) and value in LABEL_SPACES:
            raise ValueError(f"the name of your own label space must not be that of a known one, got {value!r}")
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f"must name each class once, got {twice!r} more than once")
        return value

    @field_validator("palette")
    @classmethod
    def _colours(cls, palette: List[List[int]], info: ValidationInfo) -> List[List[int]]:
        for colour in palette:
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"must have colours of three values from 0 to 255, got {str(colour)[:60]}")
        count = len(info.data.get("names", palette))
        if len(palette) != count:
            raise ValueError(f"must have one colour per class, got {len(palette)} for {count} classes")
        return palette

    @field_validator("ids", mode="before")
    @classmethod
    def _either(cls, ids: Any) -> Any:
        if ids is not None and ids != _COLOURS and not isinstance(ids, dict):
            raise ValueError(f"must be a mapping or 'colours', got {str(ids)[:60]!r}")
        return ids


class OwnClasses(FolderDescription):
    """Description of data with classes of your own."""

    label_space: _OwnLabelSpace
    """Your own classes. Origin: ours."""
    ids: Optional[Literal["colours"]] = None
    """`colours` may stand here in place of `label_space.ids`. Origin: ours."""

    @model_validator(mode="after")
    def _fits_together(self) -> OwnClasses:
        own = self.label_space
        if (own.ids is None) == (self.ids is None):
            raise ValueError("exactly one of label_space.ids (a mapping, or colours) and ids: colours must be given")
        palette: Tuple[Any, ...] = tuple(tuple(colour) for colour in own.palette)
        try:
            space = LabelSpace(own.name, tuple(own.names), palette, {})
            if isinstance(own.ids, dict):
                space = _with_ids(space, own.ids, "label_space.ids")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        self._code_by(space, _OWN_CONVENTION if isinstance(own.ids, dict) else _COLOURS, "label_space.ids")
        return self


class KnownClasses(FolderDescription):
    """Description of data with the classes of a known label space."""

    label_space: str
    """Name of a known label space: `cityscapes-19`, `synthia-16` or `nthu-13`. Origin: ours."""
    ids: Union[str, _Ids]
    """What a number in a label file stands for: `trainId`, the publisher's ids (`cityscapes`, `synthia`), a mapping of
    numbers to classes or `ignore`, or `colours`. Unit: number in a label file. Origin: ours.
    """

    @field_validator("label_space")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            get_label_space(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("ids")
    @classmethod
    def _convention_of_one(cls, ids: Union[str, _Ids], info: ValidationInfo) -> Union[str, _Ids]:
        if "label_space" not in info.data:
            known = sorted({convention for space in LABEL_SPACES.values() for convention in space.raw_ids})
            if isinstance(ids, str) and ids not in (*known, _COLOURS):
                raise ValueError(f"must be one of {', '.join(map(repr, [*known, _COLOURS]))} or a mapping, got {ids!r}")
        elif isinstance(ids, str) and ids != _COLOURS:
            try:
                get_label_space(info.data["label_space"]).check_convention(ids)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return ids

    @model_validator(mode="after")
    def _fits_together(self) -> KnownClasses:
        self._code_by(get_label_space(self.label_space), self.ids, "ids")
        return self


def _check_name(what: str, name: str) -> None:
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"must give each {what} a name of 1 to {_LONGEST_NAME} printable characters, got {name[:60]!r}"
        )


def _with_ids(space: LabelSpace, ids: _Ids, key: str) -> LabelSpace:
    """Return the label space with one convention more.

    Raises
    ------
    ConfigError
        If an id stands for no class.
    """
    train_ids = {}
    for raw, to in ids.items():
        if to == _IGNORE:
            train_ids[raw] = IGNORE
        elif isinstance(to, int):
            train_ids[raw] = to
        elif to in space.names:
            train_ids[raw] = space.names.index(to)
        else:
            raise ConfigError(f"key '{key}[{raw}]' must be a trainId, the name of a class or 'ignore', got {to[:60]!r}")
    return LabelSpace(space.name, space.names, space.palette, {**space.raw_ids, _OWN_CONVENTION: train_ids})


def read_description(path: PathLike) -> FolderDescription:
    """Read and check a data description.

    Raises
    ------
    ConfigError
        If it cannot be used; the message names the file and, for every problem, the key and what is allowed.
    """
    content = read_yaml(path)
    model: Type[FolderDescription] = OwnClasses if isinstance(content.get("label_space"), dict) else KnownClasses
    with reading(path, ConfigError):
        try:
            description = model.model_validate(content)
        except ValidationError as error:
            raise ConfigError(one_sentence(error, str(path), model)) from error
    description._origin = str(path)
    return description


def is_description(path: PathLike) -> bool:
    """Return whether a YAML file describes data, be it right or wrong, rather than an experiment.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    return "splits" in read_yaml(path)


def label_space(description: FolderDescription) -> LabelSpace:
    """Return the label space of a data description."""
    return description._space


def read_label_space(path: PathLike) -> LabelSpace:
    """Return the label space of a YAML data description.

    Raises
    ------
    ConfigError
        If it cannot be used; the message names the file, the key and what is allowed.
    """
    return label_space(read_description(path))
