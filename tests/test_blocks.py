"""What the networks share: channel counts, the convolution unit, the checks of options."""

from __future__ import annotations

import numpy as np
import pytest

from symbols.backend import mx
from symbols.blocks import BATCH_NORM, check_choice, conv_unit, scaled


@pytest.mark.parametrize(("width", "channels"), [(1, 64), (0.5, 32), (1 / 32, 2), (1e-3, 1), (0.07, 4)])
def test_channels_scale_and_at_least_one_is_left(width, channels):
    assert scaled(64, width) == channels


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("batch_norm", BATCH_NORM)
def test_a_unit_keeps_the_size_and_has_a_bias_where_no_batch_norm_shifts(batch_norm, kernel):
    unit = conv_unit(5, kernel, batch_norm)
    unit.initialize()
    out = unit(mx.nd.random.normal(shape=(2, 3, 9, 8)))
    assert out.shape == (2, 5, 9, 8)
    assert out.min().asscalar() >= 0  # ReLU is last
    names = {name.rpartition("_")[2] for name in unit.collect_params()}
    assert names == ({"weight", "bias"} if batch_norm == "none" else {"weight", "gamma", "beta", "mean", "var"})


@pytest.mark.parametrize("value", ["c", None, 1, [], {}, ["a"]])
def test_a_choice_is_one_of_the_names_and_anything_may_come(value):
    with pytest.raises(ValueError, match="^form must be one of a, b, got ") as caught:
        check_choice("form", value, {"a": 1, "b": 2})
    assert str(caught.value).endswith(f"got {value!r}")
    for name in np.array(["a", "b"]):
        check_choice("form", str(name), ("a", "b"))
