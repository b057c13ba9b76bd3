"""Forward and backward pass of one training batch: plainly, or with gradient checkpointing.

Both leave the gradient of the whole batch's loss in the parameters, on every context its part. The images of a batch
are spread over the contexts, so there is one array of images per context.
"""

from __future__ import annotations

import itertools
from typing import Callable, Iterable, List, Sequence, Tuple

import numpy as np

from cbst_mx.errors import ConfigError
from symbols.backend import autograd, gluon, mx

__all__ = [
    "Backward",
    "checkpointed_step",
    "has_batch_statistics",
    "plain_step",
    "prepare_segments",
    "segments_of",
]

#: What passes between two segments, of the images on one context.
Maps = Tuple[mx.nd.NDArray, ...]
#: Starts the backward pass at the losses of all parts; scaling them, where that is wanted, happens inside.
Backward = Callable[[List[mx.nd.NDArray]], None]
#: Gives the losses of all parts for their logits and labels: a :class:`.losses.BatchLoss`.
LossOf = Callable[[List[mx.nd.NDArray], np.ndarray], List[mx.nd.NDArray]]


def plain_step(
    network: gluon.HybridBlock,
    images: Sequence[mx.nd.NDArray],
    labels: np.ndarray,
    loss_of: LossOf,
    *,
    rng: np.random.Generator,
    backward: Backward = autograd.backward,
) -> list[mx.nd.NDArray]:
    """Compute the gradient of one batch.

    Parameters
    ----------
    network : HybridBlock
        Its parameters get their gradients.
    images : sequence of NDArray of shape (B_i, 3, h, w), float32
        One per context.
    labels : ndarray of shape (B, h, w), float32
        TrainIds of all images.
    loss_of : callable
        The loss.
    rng : Generator
        Seeds dropout. The contexts draw differently from each other, so a batch spread over more of them meets other
        masks.
    backward : callable
        Starts the backward pass.

    Returns
    -------
    list of NDArray of shape (1,), float32
        One per context; their sum is the loss of the batch.
    """
    mx.random.seed(int(rng.integers(2**31)))
    with autograd.record():
        losses = loss_of([network(part) for part in images], labels)
        backward(losses)
    return losses


def checkpointed_step(
    segments: Sequence[gluon.HybridBlock],
    images: Sequence[mx.nd.NDArray],
    labels: np.ndarray,
    loss_of: LossOf,
    *,
    rng: np.random.Generator,
    backward: Backward = autograd.backward,
) -> list[mx.nd.NDArray]:
    """Compute the gradient of one batch, keeping only what passes between segments of the network.

    The forward pass is not recorded. The backward pass takes the segments from the last to the first, runs each again
    with recording, sends the gradient through it and forgets it, so the activations inside a segment exist for one
    segment at a time (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016), for one more forward pass.
    Both runs of a segment draw the same dropout masks, because both start from the same seed.

    Parameters
    ----------
    segments : sequence of HybridBlock
        From :func:`prepare_segments`.
    images, labels, loss_of, rng, backward
        As for :func:`plain_step`; `rng` gives other masks than there.

    Returns
    -------
    list of NDArray of shape (1,), float32
        One per context.
    """
    seeds = rng.integers(2**31, size=(len(segments), len(images)))
    passed: list[list[Maps]] = [[(part,) for part in images]]  # before every segment and behind the last, per context
    with autograd.train_mode():
        for segment, row in zip(segments, seeds):
            passed.append([_run(segment, maps, seed) for maps, seed in zip(passed[-1], row)])
            _finish()
    losses, gradients = _loss_and_gradients([part for (part,) in passed.pop()], labels, loss_of, backward)
    while passed:
        inputs = passed.pop()
        segment, row = segments[len(passed)], seeds[len(passed)]
        if passed:  # nobody needs the gradient of the images
            _ask_for_gradients(itertools.chain(*inputs))
        with autograd.record():
            outputs = [x for maps, seed in zip(inputs, row) for x in _run(segment, maps, seed)]
        autograd.backward(outputs, gradients)
        gradients = [x.grad for x in itertools.chain(*inputs)]  # context after context
        _finish()
        del inputs, outputs
    return losses


def _loss_and_gradients(
    logits: list[mx.nd.NDArray], labels: np.ndarray, loss_of: LossOf, backward: Backward
) -> tuple[list[mx.nd.NDArray], list[mx.nd.NDArray]]:
    """Return the losses and their gradients with respect to the logits, which are not kept."""
    _ask_for_gradients(logits)
    with autograd.record():
        losses = loss_of(logits, labels)
        backward(losses)
    _finish()
    return losses, [part.grad for part in logits]


def _run(segment: gluon.HybridBlock, maps: Maps, seed: int) -> Maps:
    mx.random.seed(int(seed), ctx=maps[0].context)
    result = segment(*maps)
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def _finish() -> None:
    """Wait for the devices: MXNet allocates when work is asked for, so running ahead would need the memory of all."""
    mx.nd.waitall()


def _ask_for_gradients(maps: Iterable[mx.nd.NDArray]) -> None:
    """Do what ``attach_grad`` does, also in mixed precision, where that makes a gradient of another type than x."""
    for x in maps:
        autograd.mark_variables([x], [mx.nd.empty(x.shape, x.context, x.dtype)])


def segments_of(network: gluon.HybridBlock) -> list[gluon.HybridBlock]:
    """Return the segments of a network, after checking that gradient checkpointing is possible with it.

    Parameters
    ----------
    network : HybridBlock
        Offers ``segments()``: blocks that give the network when each is applied to what the one before gives, one map
        or several.

    Raises
    ------
    ConfigError
        If it offers none or has batch norm with batch statistics: the second run of a segment would update the moving
        statistics a second time.
    """
    if not hasattr(network, "segments"):
        raise ConfigError(
            "gradient_checkpointing needs a network that comes in segments (fcn8s, resnet38), got "
            f"{type(network).__name__}"
        )
    if has_batch_statistics(network):
        raise ConfigError(
            "gradient_checkpointing needs frozen batch norm (network option batch_norm: frozen): "
            "batch statistics would be counted twice"
        )
    return list(network.segments())


def has_batch_statistics(network: gluon.Block) -> bool:
    """Return whether a network has batch norm that normalises by the batch while it is trained."""
    blocks: list[gluon.Block] = []
    network.apply(blocks.append)
    return any(isinstance(one, gluon.nn.BatchNorm) and not one._kwargs["use_global_stats"] for one in blocks)


def prepare_segments(network: gluon.HybridBlock, contexts: Sequence[mx.Context]) -> list[gluon.HybridBlock]:
    """Return the segments of `network`, hybridised for :func:`checkpointed_step`.

    Parameters
    ----------
    network : HybridBlock
        As for :func:`segments_of`. As a whole it stays usable, for inference as before.
    contexts : sequence of mx.Context
        Where the segments will run.

    Raises
    ------
    ConfigError
        As :func:`segments_of`, and if dropout on these contexts does not repeat its masks.
    """
    segments = segments_of(network)
    for context in contexts:
        if not _dropout_repeats(context):
            raise ConfigError(
                f"gradient_checkpointing does not work on {context}: its dropout draws other masks from the same seed"
            )
    network.hybridize(static_alloc=True, static_shape=True)  # also gives back the memory of earlier calls
    for segment in segments:
        segment.hybridize()  # memory that is allocated once and kept would take as much as a plain step
    return segments


def _dropout_repeats(context: mx.Context) -> bool:
    """Tell whether the dropout of `symbols.blocks` draws the same mask from the same seed."""
    drawn = []
    for _ in range(2):
        mx.random.seed(0, ctx=context)
        with autograd.train_mode():
            drawn.append(mx.nd.Dropout(mx.nd.ones((1024,), ctx=context), p=0.5, cudnn_off=True).asnumpy())
    return bool(np.array_equal(*drawn))
