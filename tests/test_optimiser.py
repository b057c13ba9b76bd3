"""SGD on processors: array by array, with the numbers of MXNet's own."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.training.optimiser import new_trainer
from symbols.backend import autograd, gluon, mx

CONTEXTS = (mx.cpu(0), mx.cpu(1))


def network_on(contexts):
    mx.random.seed(0)
    network = gluon.nn.HybridSequential()
    network.add(gluon.nn.Conv2D(4, 3, in_channels=3), gluon.nn.Dense(5, in_units=144))
    network.initialize(mx.init.Normal(0.1), ctx=list(contexts))
    network[0].bias.lr_mult, network[0].bias.wd_mult = 2.0, 0.0
    return network


def trained(make, contexts):
    network = network_on(contexts)
    trainer = make(network.collect_params())
    rng = np.random.default_rng(0)
    for step in range(4):
        trainer.set_learning_rate(0.1 / (step + 1))
        with autograd.record():
            losses = [(network(mx.nd.array(rng.normal(size=(2, 3, 8, 8)), ctx=one)) ** 2).sum() for one in contexts]
        autograd.backward(losses)
        trainer.step(4)
    return [parameter.data(contexts[-1]).asnumpy() for parameter in network.collect_params().values()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("contexts", [CONTEXTS[:1], CONTEXTS], ids=["one context", "two contexts"])
def test_the_numbers_are_mxnets(momentum, contexts):
    settings = {"learning_rate": 0.1, "momentum": momentum, "wd": 5e-3}
    store = {"kvstore": "device"} if len(contexts) > 1 else {"kvstore": None}

    def theirs(parameters):
        update = {"update_on_kvstore": False} if len(contexts) > 1 else {}
        return gluon.Trainer(parameters, "sgd", settings, **store, **update)

    ours = trained(lambda parameters: new_trainer(parameters, settings, **store), contexts)
    for one, other in zip(ours, trained(theirs, contexts)):
        np.testing.assert_array_equal(one, other)
    for one, start in zip(ours, network_on(contexts).collect_params().values()):
        assert (one != start.data(contexts[0]).asnumpy()).any()
