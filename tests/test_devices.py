"""Several contexts, learning-rate multipliers, gradient checkpointing and mixed precision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.networks import devices
from cbst_mx.networks.build import build_network, output_size
from cbst_mx.networks.devices import parse_context, parse_contexts, set_precision
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.training import sgd, steps
from cbst_mx.training.losses import BatchLoss, SegmentationLoss, label_stride
from cbst_mx.training.sgd import Schedule, train
from cbst_mx.training.steps import checkpointed_step, plain_step, prepare_segments, segments_of
from symbols.backend import autograd, gluon, has_bfloat16, mx

ROOT = Path(__file__).parent.parent
ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]
nn = gluon.nn

# Sums over a batch that is split are rounded in another order: a few units in float32's seventh digit, per step.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def fcn8s(batch_norm="none", dropout=0.0, classes=3, **options):
    spec = NetworkSpec("fcn8s", classes, {"width": 0.03125, "batch_norm": batch_norm, "dropout": dropout, **options})
    return build_network(spec, mx.cpu(), seed=3)


def resnet38(dropout=0.0, batch_norm="frozen"):
    options = {"width": 0.03125, "dropout": [dropout, dropout], "batch_norm": batch_norm}
    return build_network(NetworkSpec("resnet38", 3, options), mx.cpu(), seed=3)


def batches(count, size=3, shape=(32, 48), seed=0):
    """Return batches whose images have very different numbers of ignored pixels: the first almost only those."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        labels = rng.integers(0, 3, (size, *shape)).astype(np.float32)
        for index, label in enumerate(labels):
            label[rng.random(shape) < 0.95 * (1 - index / size)] = 255
        made.append((rng.normal(size=(size, 3, *shape)).astype(np.float32), labels))
    return made


def loader(data, stop=None):
    """Return what `train` calls for batches; after `stop` of them the process 'dies'."""

    def make(start):
        for index in range(start, len(data)):
            if index == stop:
                raise InterruptedError
            yield data[index]

    return make


def values(network, context=0):
    return {name: p.list_data()[context].asnumpy() for name, p in network._collect_params_with_prefix().items()}


def assert_equal(mine, theirs, **tolerance):
    assert set(mine) == set(theirs)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], err_msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def trained(network, data, ctx, **options):
    train(network, loader(data), Schedule(0.05, len(data)), ctx=ctx, seed=3, **options)
    return values(network)


# ----------------------------------------------------------------------------------------------------------- contexts


def test_contexts_by_name():
    assert parse_contexts("cpu") == ONE
    assert parse_contexts("cpu:0,1") == TWO
    assert parse_contexts("cpu:3") == [mx.cpu(3)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cpu:0,", "ctx must be cpu, cpu:N, gpu, gpu:N or several as in gpu:0,1, got 'cpu:0,'"),
        ("cpu:0;1", "got 'cpu:0;1'"),
        ("cpu:", "got 'cpu:'"),
        ("gpu:", "got 'gpu:'"),
        ("cpu:\u00b2", "got 'cpu:\u00b2'"),
        ("cpu:99999999999", "got 'cpu:99999999999'"),
        ("tpu:0,1", "got 'tpu:0,1'"),
        ("cpu:1,1", "ctx must name every device once, got 'cpu:1,1'"),
        ("gpu:0,97", "ctx gpu:0,97 is not available: "),
    ],
)
def test_other_names_are_refused(name, sentence):
    with pytest.raises(ConfigError) as error:
        parse_contexts(name)
    assert sentence in str(error.value)


def test_one_context_where_several_make_no_sense():
    with pytest.raises(ConfigError, match=r"ctx must be one device here \(cpu, cpu:N, gpu or gpu:N\), got 'cpu:0,1'"):
        parse_context("cpu:0,1")


# ------------------------------------------------------------------------------------------------------ data-parallel


@pytest.mark.parametrize("batch_norm", ["none", "frozen"])
def test_two_contexts_train_like_one(batch_norm):
    data = batches(3)  # 3 images: parts of 2 and 1
    before = values(fcn8s(batch_norm))
    network = fcn8s(batch_norm)
    one = trained(fcn8s(batch_norm), data, ONE)
    two = trained(network, data, TWO)
    assert_equal(two, one, **CLOSE)
    assert_equal(values(network, 1), two)  # every context made the same update
    moved = [name for name in before if not np.array_equal(before[name], two[name])]
    still = set(before) - set(moved)
    assert still == {name for name in before if "running_" in name or "upscore" in name}


def test_the_loss_of_parts_adds_up_to_the_loss_of_the_batch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 6, 5)).astype(np.float32)
    labels = rng.integers(0, 4, (3, 6, 5)).astype(np.float32)
    labels[0], labels[1, :3] = 255, 255
    whole = SegmentationLoss()(mx.nd.array(logits), mx.nd.array(labels)).asscalar()
    parts = BatchLoss()([mx.nd.array(logits[:1]), mx.nd.array(logits[1:], ctx=mx.cpu(1))], labels)
    assert [part.context for part in parts] == TWO
    assert parts[0].asscalar() == 0  # nothing but ignored pixels
    assert sum(part.asscalar() for part in parts) == pytest.approx(whole, rel=1e-6)


def test_labels_are_sampled_in_the_middle_of_a_logits_cell():
    labels = np.full((1, 16, 24), 255, dtype=np.float32)
    labels[0, 4::8, 4::8] = [[0, 1, 2], [2, 1, 0]]
    logits = mx.nd.array(np.random.default_rng(2).normal(size=(1, 3, 2, 3)))
    (loss,) = BatchLoss()([logits], labels)
    expected = SegmentationLoss()(logits, mx.nd.array([[[0, 1, 2], [2, 1, 0]]]))
    assert loss.asscalar() == pytest.approx(expected.asscalar(), rel=1e-6)


@pytest.mark.parametrize(("size", "logits"), [((60, 64), (8, 8)), ((49, 49), (7, 7)), ((64, 60), (8, 8))])
def test_crops_that_are_no_multiple_of_the_stride_are_refused(size, logits):
    with pytest.raises(ConfigError, match="training crops must be multiples of the network's stride, got"):
        label_stride(size, logits)


@pytest.mark.parametrize("size", [(24, 32), (40, 60), (96, 128), (48, 72)])
def test_labels_of_another_size_than_the_upsampling_gives_are_refused(size):
    logits = mx.nd.zeros((1, 3, 6, 8))  # of images of 48 x 64
    expected = f"size over 8, rounded up, got 6 x 8 logits for labels of {size[0]} x {size[1]}"
    with pytest.raises(ConfigError, match=expected):
        BatchLoss(factor=8)([logits], np.zeros((1, *size), np.float32))
    BatchLoss(factor=8)([logits], np.zeros((1, 45, 64), np.float32))


def test_output_sizes_are_known_without_computing():
    assert output_size(resnet38(), (64, 40)) == (8, 5)
    assert output_size(fcn8s(), (64, 40)) == (64, 40)


def test_fewer_images_than_contexts_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size must be at least the number of devices in ctx \(2\), got 1"):
        trained(fcn8s(), batches(1, size=1), TWO)


@pytest.mark.parametrize("ctx", [ONE, TWO])
def test_a_continued_phase_equals_a_whole_one_bit_for_bit(tmp_path, ctx):
    data = batches(7)
    options = {"checkpoint_every": 2, "weight_decay": 5e-4}  # with dropout and batch statistics
    whole = trained(fcn8s("batch", 0.5), data, ctx, checkpoint=tmp_path / "whole.params", **options)
    path = tmp_path / "cut.params"
    with pytest.raises(InterruptedError):
        train(fcn8s("batch", 0.5), loader(data, stop=5), Schedule(0.05, 7), ctx=ctx, seed=3, checkpoint=path, **options)
    network = fcn8s("batch", 0.5)
    assert_equal(trained(network, data, ctx, checkpoint=path, **options), whole)
    for context in range(1, len(ctx)):
        assert_equal(values(network, context), whole)


def test_a_phase_may_continue_on_another_number_of_contexts(tmp_path):
    data = batches(4)
    path = tmp_path / "c.params"
    with pytest.raises(InterruptedError):
        train(
            fcn8s(), loader(data, 2), Schedule(0.05, 4), ctx=TWO, seed=3, checkpoint=path, checkpoint_every=2
        )  # fmt: skip
    assert_equal(trained(fcn8s(), data, ONE, checkpoint=path), trained(fcn8s(), data, ONE), **CLOSE)


def test_moving_statistics_are_the_mean_over_the_contexts():
    ((images, labels),) = batches(1, size=2)
    network, halves = fcn8s("batch"), []
    for index in (0, 1):
        half = fcn8s("batch")
        halves.append(trained(half, [(images[index : index + 1], labels[index : index + 1])], ONE))
    both = trained(network, [(images, labels)], TWO)
    names = [name for name in both if "running_" in name]
    assert names
    for name in names:
        np.testing.assert_allclose(both[name], (halves[0][name] + halves[1][name]) / 2, **CLOSE)
    assert_equal(values(network, 1), both)


# -------------------------------------------------------------------------------------------------------- multipliers


@pytest.mark.parametrize(("learning_rate", "weight_decay"), [(2.0, 0.0), (1.0, 1.0)])
def test_a_step_moves_biases_and_betas_by_their_multipliers(learning_rate, weight_decay):
    (batch,) = batches(1)
    network = fcn8s("frozen")
    for name, parameter in network.collect_params().items():  # biases of 0 would not decay anyway
        if name.endswith(("bias", "beta")):
            parameter.set_data(mx.nd.full(parameter.shape, 0.5))
    before = values(network)
    plain_step(network, [mx.nd.array(batch[0])], batch[1], BatchLoss(), rng=np.random.default_rng(0))
    gradients = {
        name: p.grad().asnumpy() for name, p in network._collect_params_with_prefix().items() if p.grad_req != "null"
    }
    options = {} if learning_rate == 2 else {"bias_lr_mult": learning_rate, "bias_wd_mult": weight_decay}
    after = trained(network, [batch], ONE, weight_decay=0.1, momentum=0.0, **options)
    kinds = set()
    for name, gradient in gradients.items():
        kind = name.rpartition(".")[2]
        kinds.add(kind)
        small = kind in ("bias", "beta")
        rate, decay = (0.05 * learning_rate, 0.1 * weight_decay) if small else (0.05, 0.1)
        expected = before[name] - rate * (gradient + decay * before[name])
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    assert kinds == {"weight", "bias", "gamma", "beta"}


# --------------------------------------------------------------------------------------------- gradient checkpointing


class Chain(gluon.HybridBlock):
    """Three segments with dropout in the first two."""

    def __init__(self, batch_statistics=False, dropout=0.5):
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential()
            for channels in (8, 8):
                block = nn.HybridSequential()
                block.add(nn.Conv2D(channels, 3, padding=1), nn.BatchNorm(use_global_stats=not batch_statistics))
                block.add(nn.Activation("tanh"), nn.Dropout(dropout))
                self.body.add(block)
            self.body.add(nn.Conv2D(3, 1))

    def segments(self):
        return list(self.body)

    def hybrid_forward(self, F, x):
        return self.body(x)


def chain(**options):
    mx.random.seed(5)
    network = Chain(**options)
    network.initialize(mx.init.Normal(0.5))
    network(mx.nd.zeros((1, 3, 8, 8)))
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def fcn8s_dropping():
    return fcn8s("frozen", 0.5)


def gradients_of(network):
    """Return the gradients, summed over the contexts."""
    return {
        name: sum(g.asnumpy() for g in p.list_grad())
        for name, p in network._collect_params_with_prefix().items()
        if p.grad_req != "null"
    }


@pytest.mark.parametrize("ctx", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize(
    ("make", "shape", "weight"),
    [(chain, (8, 8), "body.0.0.weight"), (fcn8s_dropping, (37, 45), "trunk.stage1.0.0.weight")],
)
def test_checkpointed_gradients_are_those_of_one_recorded_pass_with_the_same_masks(ctx, make, shape, weight):
    images, labels = batches(1, shape=shape)[0]
    network = make()
    network.collect_params().reset_ctx(ctx)
    segments = prepare_segments(network, ctx)
    losses = checkpointed_step(
        segments, sgd.spread(images, ctx), labels, BatchLoss(), rng=np.random.default_rng(4)
    )  # fmt: skip
    mine = gradients_of(network)
    seeds = np.random.default_rng(4).integers(2**31, size=(len(segments), len(ctx)))
    with autograd.record():
        parts = [(part,) for part in sgd.spread(images, ctx)]
        for segment, row in zip(segments, seeds):
            parts = [steps._run(segment, maps, seed) for maps, seed in zip(parts, row)]
        expected = BatchLoss()([logits for (logits,) in parts], labels)
    autograd.backward(expected)
    assert [x.asscalar() for x in losses] == [x.asscalar() for x in expected]
    assert_equal(mine, gradients_of(network), **CLOSE)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in mine.values())
    # other masks give other gradients, so the comparison above saw them
    checkpointed_step(segments, sgd.spread(images, ctx), labels, BatchLoss(), rng=np.random.default_rng(5))
    other, mine = gradients_of(network)[weight], mine[weight]
    assert np.abs(other - mine).max() > 0.01 * np.abs(mine).max()


@pytest.mark.parametrize("ctx", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("make", [resnet38, fcn8s])
def test_networks_train_alike_with_gradient_checkpointing(ctx, make):
    data = batches(2, size=2)
    network = make()
    before = values(network)
    mine = trained(network, data, ctx, gradient_checkpointing=True)
    # a segment is fused otherwise than the whole: rounding, over two steps
    assert_equal(mine, trained(make(), data, ctx), rtol=1e-4, atol=1e-6)
    assert any((before[name] != mine[name]).any() for name in mine)
    images = mx.nd.array(data[0][0])
    assert network(images).shape == (2, 3, *output_size(network, (32, 48)))  # as a whole it is still usable


def test_networks_that_cannot_be_recomputed_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"needs a network that comes in segments \(fcn8s, resnet38\), got Dense"):
        segments_of(nn.Dense(3))
    with pytest.raises(ConfigError, match="needs frozen batch norm"):
        trained(fcn8s("batch"), batches(1), ONE, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="needs frozen batch norm .*batch statistics would be counted twice"):
        segments_of(chain(batch_statistics=True))
    monkeypatch.setattr(mx.random, "seed", lambda *args, **kwargs: None)
    with pytest.raises(ConfigError, match=r"does not work on cpu\(0\): its dropout draws other masks from the same se"):
        prepare_segments(chain(), ONE)


MEMORY = """
import json, re, sys
import numpy as np
from tests.test_devices import BatchLoss, mx, plain_step, checkpointed_step, prepare_segments
from cbst_mx.networks.build import build_network
from cbst_mx.networks.spec import NetworkSpec
peak = lambda: int(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])  # KiB
name, width, size = sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
network = build_network(NetworkSpec(name, 3, {"width": width}), mx.cpu(), seed=0)
mx.nd.waitall()
before = peak()
images, labels = mx.nd.zeros((2, 3, size, size)), np.zeros((2, size, size), np.float32)
for _ in range(2):
    if sys.argv[1] == "plain":
        plain_step(network, [images], labels, BatchLoss(), rng=np.random.default_rng(0))
    else:
        checkpointed_step(prepare_segments(network, [mx.cpu()]), [images], labels, BatchLoss(),
                          rng=np.random.default_rng(0))
    mx.nd.waitall()
print(json.dumps(peak() - before))
"""


def child(code, *arguments):
    """Run `code` in a process of its own and return what its last line of output says, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    # measured: 199 of 334 MB; 337 of 394 MB, since the two maps of full size are in one stage that takes most alone
    ("name", "width", "size", "share"),
    [("resnet38", 0.125, 256, 0.75), ("fcn8s", 0.25, 512, 0.95)],
)
def test_checkpointing_needs_less_memory(monkeypatch, name, width, size, share):
    # maps this small would stay with the allocator, in pieces; those of a real training are given back
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    checkpointed, plain = (child(MEMORY, how, name, str(width), str(size)) for how in ("checkpointed", "plain"))
    assert checkpointed < share * plain


# ---------------------------------------------------------------------------------------------------- mixed precision


def test_precisions_that_devices_lack_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="amp float16 needs GPUs, got ctx cpu: use bfloat16 on a CPU that has it"):
        set_precision("float16", ONE)
    with pytest.raises(ConfigError, match="amp bfloat16 needs a CPU, got ctx gpu: use float16"):
        set_precision("bfloat16", [mx.gpu(0)])
    monkeypatch.setattr(devices, "has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="amp bfloat16 needs a CPU with AVX512_BF16, which this one lacks: use none"):
        set_precision("bfloat16", ONE)
    set_precision("none", TWO)


BFLOAT16 = """
import json, sys
from tests.test_devices import *
set_precision("bfloat16", ONE)
set_precision("bfloat16", TWO)
try:
    set_precision("none", ONE)
except ConfigError as error:
    refusal = str(error)
network = resnet38()
images, labels = batches(1)[0]
logits = network(mx.nd.array(images))
(loss,) = BatchLoss()([logits], labels)
print(json.dumps(dict(
    losses=[losses_of(name) for name in sys.argv[1:]],
    refusal=refusal,
    half_logits=logits.dtype != np.float32,
    loss_type=np.dtype(loss.dtype).name,
    loss=float(loss.asscalar()),
    expected=cross_entropy(logits.astype("float32").asnumpy(), labels[:, 4::8, 4::8]),
    types=sorted({np.dtype(p.dtype).name for p in network.collect_params().values()}),
)))
"""


def cross_entropy(logits, labels):
    """Return the mean over valid pixels in float64."""
    z = logits.astype(np.float64)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(z, np.where(labels == 255, 0, labels).astype(int)[:, None], axis=1)[:, 0]
    return float(-picked[labels != 255].mean())


def losses_of(name):
    """Return the losses of a few steps in this process's precision; "recomputed" and "chain" are the same network."""
    made = {"resnet38": resnet38, "fcn8s": lambda: fcn8s("frozen"), "fcn8s, 1 x 1": lambda: fcn8s("frozen", kernel=1)}
    network = made.get(name, lambda: chain(dropout=0.0))()
    found = []
    with BatchLoss.of(network) as loss_of:
        step, net = plain_step, network
        if name == "recomputed":
            step, net = checkpointed_step, prepare_segments(network, ONE)
        for images, labels in batches(2, size=2):
            (loss,) = step(net, [mx.nd.array(images)], labels, loss_of, rng=np.random.default_rng(0))
            found.append(float(loss.asscalar()))
            for parameter in network.collect_params().values():
                if parameter.grad_req != "null":
                    parameter.data()[:] = parameter.data() - 0.001 * parameter.grad()
    return found


# FCN8s, whose upsampling is left to the loss: oneDNN takes seconds to compile its 7 x 7 convolution in bfloat16
@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 instructions (AVX512_BF16)")
@pytest.mark.parametrize(
    "names", [("resnet38", "chain", "recomputed", "fcn8s, 1 x 1"), pytest.param(("fcn8s",), marks=pytest.mark.slow)]
)
def test_bfloat16_agrees_with_float32(names):
    half = child(BFLOAT16, *names)
    for name, losses in zip(names, half["losses"]):
        full = losses_of(name)
        # bfloat16 has 8 bits: 0.4 % an operation, which mostly cancels over a network (measured: 0.8 % for ResNet-38,
        # whose new head gives logits of order 1 here, 0.03 % for the others)
        np.testing.assert_allclose(losses, full, rtol=0.02, err_msg=name)
        assert losses != full
    if "recomputed" in names:  # recomputing changes nothing in bfloat16 either
        assert half["losses"][1] == half["losses"][2]
    assert half["half_logits"]
    assert half["types"] == ["float32"]
    # the loss is float32: computed in bfloat16 it would be off in the third digit
    assert half["loss_type"] == "float32"
    assert half["loss"] == pytest.approx(half["expected"], rel=1e-6)
    assert half["refusal"] == "amp: this process computes in bfloat16 for good: start another one for none"


SCALED = """
import json, pathlib, sys
from tests.test_devices import *
from symbols.backend import load_amp
folder = pathlib.Path(sys.argv[1])
data = batches(4)
plain = trained(fcn8s(), data, TWO)
# float16 convolutions need a GPU; the scaling does not
load_amp().init("float16", target_precision_ops=[])
options = dict(loss_scaling=True, checkpoint_every=2)
scaled = trained(fcn8s(), data, TWO, checkpoint=folder / "whole.params", **options)
path = folder / "cut.params"
try:
    train(fcn8s(), loader(data, 3), Schedule(0.05, 4), ctx=TWO, seed=3, checkpoint=path, **options)
except InterruptedError:
    pass
stored = mx.nd.load(str(path))["loss_scale"].asnumpy().tolist()
continued = trained(fcn8s(), data, TWO, checkpoint=path, **options)
class Large(load_amp().loss_scaler.LossScaler):
    def __init__(self):
        super().__init__()
        self._loss_scale = self._next_loss_scale = 2.0**125
load_amp().amp.LossScaler = Large
skipped = trained(fcn8s(), [(300 * data[0][0], data[0][1])], ONE, loss_scaling=True)
same = lambda a, b: all(np.array_equal(a[name], b[name]) for name in b)
unchanged = same(skipped, values(fcn8s()))
print(json.dumps([same(scaled, plain), same(continued, plain), stored, unchanged, same(plain, skipped)]))
"""


def test_loss_scaling_changes_nothing_but_overflows_and_continues(tmp_path):
    # a power of two scales without rounding, so the parameters must come out equal bit for bit
    scaled, continued, stored, skipped, indifferent = child(SCALED, str(tmp_path))
    assert scaled
    assert continued
    assert not indifferent
    assert stored == [2.0**16, 2.0**16, 2]  # scale, next scale, steps without overflow
    assert skipped  # a step whose gradient overflows is left out
