"""The verbs on NDArrays: bit by bit what the arrays of the computer's memory give."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from cbst_mx.selftrain.on_device import count_on_device, full_size
from cbst_mx.selftrain.thresholds import FIDELITIES, POLICIES
from symbols.backend import mx
from tests.maps import random_maps
from tests.test_counting import PORTIONS, SPECIAL, assert_same, random_images


@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("small", "size", "extent"),
    [
        ((5, 7), (40, 56), None),
        ((13, 20), (97, 160), (97 / 8, 20)),
        ((13, 20), (60, 101), (12.125, 19.5)),
        ((20, 30), (7, 11), None),
        ((6, 5), (6, 5), None),
        ((1, 1), (3, 5), (0.5, 0.75)),
    ],
)
def test_maps_at_full_size_are_those_of_class_maps(kind, small, size, extent):
    maps = np.stack([random_maps(seed, (4, *small)) for seed in range(2)])
    for ctx in (mx.cpu(0), mx.cpu(1)):
        whole = full_size(mx.nd.array(maps, ctx=ctx), size, extent=extent, interpolation=kind, stride=8)
        assert whole.context == ctx
        for ours, one in zip(whole.asnumpy(), maps):
            theirs = ClassMaps(one, size, interpolation=kind, extent=extent, stride=8).rows(0, size[0])
            np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("values", [None, np.float32([2**-15, 0.1, 0.5, 1 - 2**-24, 1, 1.5, 2 - 2**-23]), SPECIAL[:10]])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_counting_on_the_device_gives_the_same_state(values, fidelity):
    images = random_images(15, size=(20, 30), values=values)
    host, device = StreamingThresholds(4, fidelity=fidelity), StreamingThresholds(4, fidelity=fidelity)
    for _ in range(2):
        for index, (confidence, predicted) in enumerate(images):
            host.add(str(index), confidence, predicted)
            count_on_device(device, str(index), mx.nd.array(confidence), mx.nd.array(predicted))
        ours, theirs = device.to_arrays(), host.to_arrays()
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
        again = host.refine(POLICIES, PORTIONS)
        assert device.refine(POLICIES, PORTIONS) == again
        if not again:
            break
    assert_same(device, images)
