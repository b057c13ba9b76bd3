"""Which shard a task of a batch system has: SLURM's job arrays and Kubernetes' indexed jobs number their tasks."""

from __future__ import annotations

from typing import Mapping

from cbst_mx.errors import ConfigError

__all__ = ["shard_of_environment"]

_SLURM = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"
_KUBERNETES = "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"


def shard_of_environment(variables: Mapping[str, str]) -> tuple[int, int]:
    """Return the shard (I, N), I from 1, of this task.

    Parameters
    ----------
    variables : mapping of str to str
        Those of the environment. SLURM sets ``SLURM_ARRAY_TASK_ID``, ``_COUNT`` and ``_MIN`` by itself (and ``_STEP``,
        where it is not 1), for an array without gaps such as ``--array=1-64``. Kubernetes sets
        ``JOB_COMPLETION_INDEX``, which counts from 0; ``JOB_COMPLETIONS``, their number, must be set in the manifest.

    Raises
    ------
    ConfigError
        If there is neither, or they do not fit together.

    Examples
    --------
    >>> shard_of_environment({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "8"})
    (1, 8)
    """
    if _SLURM[0] in variables:
        task, count, first = (_number(variables, name) for name in _SLURM)
        step = _number(variables, "SLURM_ARRAY_TASK_STEP") if variables.get("SLURM_ARRAY_TASK_STEP") else 1
        place, rest = divmod(task - first, max(1, step))
        if rest or not 0 <= place < count:
            raise ConfigError(
                f"shard auto needs a SLURM array without gaps, such as 1-64, got task {task} of {count} from {first} on"
            )
        return place + 1, count
    if _KUBERNETES[0] in variables:
        place, count = (_number(variables, name) for name in _KUBERNETES)
        if not place < count:
            raise ConfigError(f"JOB_COMPLETION_INDEX must be below JOB_COMPLETIONS, got {place} of {count}")
        return place + 1, count
    raise ConfigError(
        "shard auto needs SLURM_ARRAY_TASK_ID, as a SLURM job array sets it, or JOB_COMPLETION_INDEX, as a Kubernetes "
        "indexed job does, and neither is set: give it as I/N, such as 1/4"
    )


def _number(variables: Mapping[str, str], name: str) -> int:
    """Return a variable as a number; refuse what is none."""
    text = variables.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{name} must be set to a number of at least 0 for shard auto, got {text[:40]!r}")
    return int(text)
