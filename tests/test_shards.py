"""--shard auto: the number that a batch system gives a task."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import ConfigError
from cbst_mx.labelling import State
from cbst_mx.labelling.shards import shard_of_environment
from tests.maps import random_maps, write_maps


def slurm(task, count, first, **others):
    return {
        **{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count), "SLURM_ARRAY_TASK_MIN": str(first)},
        **others,
    }


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        (slurm(1, 64, 1), (1, 64)),
        (slurm(64, 64, 1), (64, 64)),
        (slurm(0, 4, 0), (1, 4)),
        (slurm(13, 4, 10), (4, 4)),
        (slurm(14, 3, 10, SLURM_ARRAY_TASK_STEP="2"), (3, 3)),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "8"}, (1, 8)),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_COMPLETIONS": "8"}, (8, 8)),
    ],
)
def test_the_shard_of_a_task(variables, shard):
    assert shard_of_environment(variables) == shard


def test_all_tasks_of_an_array_have_all_shards():
    found = [shard_of_environment(slurm(task, 5, 3)) for task in range(3, 8)]
    assert found == [(part, 5) for part in range(1, 6)]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "shard auto needs SLURM_ARRAY_TASK_ID, .* or JOB_COMPLETION_INDEX, .* neither is set: give it as I/N"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT must be set to a number of at least 0 .*, got ''"),
        (slurm(9, 3, 1), "a SLURM array without gaps, such as 1-64, got task 9 of 3 from 1 on"),
        (slurm(4, 3, 1, SLURM_ARRAY_TASK_STEP="2"), "a SLURM array without gaps"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS must be set to a number"),
        ({"JOB_COMPLETION_INDEX": "x", "JOB_COMPLETIONS": "2"}, "JOB_COMPLETION_INDEX must be .*, got 'x'"),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "2"}, "must be below JOB_COMPLETIONS, got 2 of 2"),
    ],
)
def test_what_is_no_task_is_one_sentence(variables, sentence):
    with pytest.raises(ConfigError, match=sentence):
        shard_of_environment(variables)


def test_the_shards_of_a_job_array_are_all_images(tmp_path):
    maps = write_maps(tmp_path / "maps", random_maps(0, (5, 3, 4, 6)))
    seen = []
    for index in range(2):
        out = tmp_path / f"{index}.npz"
        task = {"JOB_COMPLETION_INDEX": str(index), "JOB_COMPLETIONS": "2"}
        given = ["label", "count", "--probabilities", str(maps), "--shard", "auto", "--out", str(out)]
        result = CliRunner(env=task).invoke(main, given)
        assert result.exit_code == 0, result.output
        seen += State.load(out).counts.names
    assert sorted(seen) == [f"image-{index}" for index in range(5)]
    result = CliRunner(env={"JOB_COMPLETIONS": "2"}).invoke(main, given)
    assert result.exit_code == 1
    assert "neither is set" in result.output
