"""The optimiser of step b): stochastic gradient descent with momentum, as MXNet computes it."""

from __future__ import annotations

from typing import Any, Mapping

from symbols.backend import gluon, mx

__all__ = ["new_trainer"]


class _OneByOne(mx.optimizer.SGD):
    """SGD whose step takes a processor a third of the time, with the same numbers.

    MXNet's own updates several arrays by one call, which spares a GPU launches; on a processor that call is slow.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.aggregate_num = 0  # no call with several arrays

    def update_multi_precision(self, index: int, weight: Any, grad: Any, state: Any) -> None:
        """Make one step of one array; `state` is its momentum, None without."""
        if state is None:  # where its operator for one array rounds otherwise
            super().update_multi_precision(index, weight, grad, state)
            return
        self._update_count(index)
        step = {"lr": self._get_lr(index), "wd": self._get_wd(index), "rescale_grad": self.rescale_grad}
        mx.nd.sgd_mom_update(weight, grad, state, out=weight, momentum=self.momentum, **step)


def new_trainer(
    parameters: gluon.ParameterDict, settings: Mapping[str, float], *, kvstore: Any = None
) -> gluon.Trainer:
    """Return what updates parameters by SGD with momentum, on the contexts where they are.

    Parameters
    ----------
    parameters : ParameterDict
        Of a network, initialised.
    settings : mapping of str to float
        ``learning_rate``, ``momentum`` and weight decay ``wd``.
    kvstore : str or KVStore, optional
        Adds up the gradients of several contexts or processes. The updates are made where the parameters are.
    """
    on_processors = all(context.device_type == "cpu" for context in parameters.list_ctx())
    optimiser = (_OneByOne if on_processors else mx.optimizer.SGD)(**settings)
    return gluon.Trainer(parameters, optimiser, kvstore=kvstore, update_on_kvstore=False if kvstore else None)
