"""Images per second: the readers of this package against plain Pillow, the loader and inference against their peers.

python tools/bench/images.py [--repeats 5] [--against CHECKOUT] [--torch-python PATH | --install-torch]
    [--cityscapes-compiled FOLDER] [--out docs/performance.md]

Pictures of 1024 x 2048 pixels whose files are as large as those of photographs, as JPEG and PNG, and label maps as
palette PNGs. The readers' peer decodes with Pillow and converts to RGB; it neither looks at the header nor notices
JPEGs and PNGs whose data end early. The loader makes training samples of 504 x 504 from PNGs, scaled by 0.7 to 1.3 as
the paper's experiments scale them; its peer is PyTorch's DataLoader with torchvision's functions for the same steps,
reading with Pillow or with torchvision itself. Evaluation and the labels of a video are those of a network that costs
next to nothing, a ResNet-38 at 1/32 width, so that what is around it shows. Confusion matrices are of a generated scene
and what a network of stride 8 could predict there, of pixels changed one by one, and of noise. `--against` runs the
loader and inference of another checkout of this repository as well. All take turns, each run is a process of its own on
one thread; rates are per second of the processor where the table does not say the clock.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Sequence

import cv2
import numpy as np
from measuring import ROOT, add_torch, asked, find_torch, interleaved, machine, packages, photograph, put, table
from PIL import Image

from cbst_mx.data import png_pixels
from cbst_mx.data.image_files import read_label, read_rgb, write_label_png
from cbst_mx.data.street_scenes import render_scene
from cbst_mx.evaluation.confusion import confusion_matrix
from cbst_mx.label_space import CITYSCAPES_19

SIZE = (1024, 2048)
PHOTOGRAPHS = 8
CLASSES = 19
DESCRIPTION = """label_space: cityscapes-19
ids: trainId
splits:
  all: {images: ["images/*.png"], labels: "labels/{stem}.png"}
"""
# Run in a checkout of this repository, older ones too; they print processor seconds and seconds an image.
BEGIN = """
import functools, sys, time
root, count, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from cbst_mx.data import open_labelled
from cbst_mx.label_space import CITYSCAPES_19
import symbols.backend  # as in a training: it sets how memory is kept

images = open_labelled("folder", root, label_space=CITYSCAPES_19, split="all", description=root + "/d.yaml")

def measured(batches):
    next(batches)
    begin, cpu, seen = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        seen += 1
    print((time.process_time() - cpu) / seen, (time.perf_counter() - begin) / seen)
"""
SAMPLES = (
    BEGIN
    + """
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform

read = getattr(images, "sample", images.pair)  # how older versions do it
samples = [functools.partial(read, index) for index in range(len(images))]
transform = TrainTransform(crop=(504, 504), resampling="program")
load = functools.partial(BatchLoader, samples, transform, batch_size=1)
"""
)
LOADER = SAMPLES + "measured(iter(load(seed=0, iterations=count + 1, workers=workers)))"
CACHED = (
    SAMPLES
    + """
batches = iter(load(seed=0, iterations=len(images) + count + 1, workers=workers, cache=1 << 30))
for _ in images.image_paths:
    next(batches)
measured(batches)
"""
)
PROCESSES = (
    SAMPLES
    + """
import multiprocessing

def send(queue, seed):
    for batch in load(seed=seed, iterations=(count + 1) // workers, workers=0):
        queue.put(batch)

def received():
    forked = multiprocessing.get_context("fork")
    queue = forked.Queue(2 * workers)
    for seed in range(workers):
        forked.Process(target=send, args=(queue, seed), daemon=True).start()
    for _ in range((count + 1) // workers * workers):
        yield queue.get()

measured(received())
"""
)
NETWORK = """
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from symbols import get_network
from symbols.backend import mx

network = get_network("resnet38", 19, width=1 / 32)
network.initialize(mx.init.Xavier())
network(mx.nd.zeros((1, 3, 32, 32)))
network.hybridize(static_alloc=True, static_shape=True)
looks = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "ctx": mx.cpu()}
"""
EVALUATION = (
    BEGIN
    + NETWORK
    + """
from cbst_mx.evaluation.evaluate import evaluate_network

def several():
    evaluate_network(network, images.subset([0]), classes=images.label_space.names, batch_size=1, **looks)
    yield
    done = []
    names, progress = images.label_space.names, lambda *n: done.append(n)
    evaluate_network(network, images, classes=names, batch_size=1, progress=progress, **looks)
    yield from done

measured(several())
"""
)
VIDEO = (
    BEGIN
    + NETWORK
    + """
from cbst_mx.data.videos import Video
from cbst_mx.evaluation.predictor import Predictor

options = {"flip": False, "scales": (1.0,), "combine": "mean", "long_side": None}
class Looks: mean, std = IMAGENET_MEAN, IMAGENET_STD
predictor = Predictor(network, Looks, images.label_space, mx.cpu(), options, 1)

def labels(video):
    try:
        from cbst_mx.evaluation.predictor import in_memory  # how older versions do it
    except ImportError:
        yield from predictor.labels(video)
        return
    for frame in video:
        yield from predictor.labels(in_memory([frame]))

measured(labels(Video(__import__("pathlib").Path(root + "/video.mp4"))))
"""
)
# Run by a Python that has torch and torchvision.
PEER = """
import random, sys, time
import numpy as np, torch, torchvision
from pathlib import Path
from PIL import Image
from torchvision.transforms import InterpolationMode, functional as F

root, count, workers, reader = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
images = sorted(root.glob("images/*.png"))

def read(path):
    if reader == "Pillow":
        return Image.open(path).convert("RGB")
    content = torchvision.io.read_file(str(path))
    return F.to_pil_image(torchvision.io.decode_image(content, torchvision.io.ImageReadMode.RGB))

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return count + 1

    def __getitem__(self, index):
        path = images[index % len(images)]
        image, label = read(path), Image.open(root / "labels" / path.name)
        factor = random.uniform(0.7, 1.3)
        size = [round(image.height * factor), round(image.width * factor)]
        image = F.resize(image, size, InterpolationMode.LANCZOS if factor < 1 else InterpolationMode.BICUBIC)
        label = F.resize(label, size, InterpolationMode.NEAREST)
        top, left = random.randint(0, size[0] - 504), random.randint(0, size[1] - 504)
        image, label = F.crop(image, top, left, 504, 504), F.crop(label, top, left, 504, 504)
        if random.random() < 0.5:
            image, label = F.hflip(image), F.hflip(label)
        image = F.normalize(F.to_tensor(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return image, torch.from_numpy(np.array(label, np.int64))

batches = iter(torch.utils.data.DataLoader(Samples(), batch_size=1, num_workers=workers))
next(batches)
begin, cpu, seen = time.perf_counter(), time.process_time(), 0
for batch in batches:
    seen += 1
print((time.process_time() - cpu) / seen, (time.perf_counter() - begin) / seen)
"""


def plain_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def plain_label(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def seconds(read: Callable[[Path], np.ndarray], path: Path) -> float:
    start = time.process_time()
    read(path)
    return time.process_time() - start


def without_spng(path: Path) -> np.ndarray:
    """Read an image as where imagecodecs is not installed."""
    spng, png_pixels._spng = png_pixels._spng, None
    try:
        return read_rgb(path)
    finally:
        png_pixels._spng = spng


def rate(python: str, checkout: Path, script: str, *arguments: object) -> tuple[float, float]:
    """Return processor seconds and seconds that a script takes for an image in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    cpu, wall = map(float, done.stdout.splitlines()[-1].split())
    return cpu, wall


def make_files(data: Path, count: int = PHOTOGRAPHS) -> None:
    """Write photographs with labels, and a video of them."""
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    (data / "d.yaml").write_text(DESCRIPTION)
    picture = photograph(SIZE)
    label = render_scene(0, 0, domain="target", size=(512, 1024))[1].repeat(2, axis=0).repeat(2, axis=1)
    video = cv2.VideoWriter(str(data / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, SIZE[::-1])
    for number in range(count):
        image = np.roll(picture, 97 * number, axis=1)
        Image.fromarray(image).save(data / "images" / f"{number}.png")
        write_label_png(data / "labels" / f"{number}.png", np.roll(label, 97 * number, axis=1), CITYSCAPES_19)
        video.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    video.release()


def readers(folder: Path, repeats: int) -> list[tuple[str, ...]]:
    """Return rows of the table of readers."""
    image = folder / "images" / "0.png"
    jpeg = folder / "image.jpg"
    Image.fromarray(plain_rgb(image)).save(jpeg, quality=92)
    rows = []
    for name, path, ours, plain in (
        ("PNG image, libspng", image, read_rgb, plain_rgb),
        ("PNG image, OpenCV", image, without_spng, plain_rgb),
        ("JPEG image", jpeg, read_rgb, plain_rgb),
        ("label PNG", folder / "labels" / "0.png", read_label, plain_label),
    ):
        if "libspng" in name and png_pixels._spng is None:
            continue
        assert np.array_equal(ours(path), plain(path))
        pairs = [(seconds(ours, path), seconds(plain, path)) for _ in range(4 * repeats)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append((name, f"{1 / mine:.1f}", f"Pillow {1 / theirs:.1f}", f"{ratio:.2f}"))
    return rows


def predicted(label: np.ndarray) -> np.ndarray:
    """Return classes as a network of stride 8 gives them: smooth borders near the true ones, some false regions."""
    small = label[4::8, 4::8]
    rng = np.random.default_rng(0)
    best, classes = np.full(SIZE, -np.inf, np.float32), np.zeros(SIZE, np.uint8)
    for index in range(CLASSES):
        noise = cv2.GaussianBlur(rng.normal(0, 0.8, small.shape).astype(np.float32), (0, 0), 1.5)
        logits = cv2.GaussianBlur((small == index).astype(np.float32), (0, 0), 1.0) + noise
        logits = cv2.resize(logits, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        classes[logits > best] = index
        best = np.maximum(best, logits)
    return classes


def run_length(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return how many pixels in a row have the same pair of classes, on average."""
    same = (truth[:, 1:] == truth[:, :-1]) & (prediction[:, 1:] == prediction[:, :-1])
    return float(truth.size / (truth.size - np.count_nonzero(same)))


def counted(repeats: int, compiled: Path | None) -> list[tuple[str, ...]]:
    """Return rows of confusion matrices beside other ways to count them."""
    label = render_scene(0, 0, domain="target", size=(512, 1024))[1].repeat(2, axis=0).repeat(2, axis=1)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, CLASSES, (2, *SIZE), dtype=np.uint8)
    speckled = np.where(rng.random(SIZE) < 0.1, noise[0], label), np.where(rng.random(SIZE) < 0.05, 255, label)
    pictures = {
        "a prediction": (label, predicted(label)),
        "10 % of all pixels wrong, 5 % without truth": (speckled[1].astype(np.uint8), speckled[0]),
        "noise": (noise[0], noise[1]),
    }

    def by_pairs(truth: np.ndarray, prediction: np.ndarray) -> None:  # as cityscapesScripts 2.3 does in Python
        matrix = np.zeros((256, 256), np.uint64)
        encoded = truth.astype(np.int32) * 256 + prediction
        for value, count in zip(*np.unique(encoded, return_counts=True)):
            matrix[value // 256, value % 256] += np.uint64(count)

    def masked(truth: np.ndarray, prediction: np.ndarray) -> None:
        kept = truth != 255
        np.bincount(CLASSES * truth[kept].astype(np.int64) + prediction[kept], minlength=CLASSES**2)

    peers: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
        "np.unique of pairs, as cityscapesScripts": by_pairs,
        "masked bincount": masked,
    }
    if compiled is not None:
        sys.path.insert(0, str(compiled))
        pair = importlib.import_module("addToConfusionMatrix").cEvaluatePair

        def compiled_way(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
            return pair(prediction, truth, np.zeros((256, 256), np.uint64), None)

        peers["cityscapesScripts, compiled"] = compiled_way
    rows = []
    for name, (truth, prediction) in pictures.items():
        length = run_length(truth, prediction)
        title = f"confusion matrix, {name} (runs of {length:.{0 if length > 10 else 1}f} pixels)"
        for peer, work in peers.items():
            found = interleaved(
                {
                    "ours": functools.partial(confusion_matrix, truth, prediction, CLASSES),
                    "peer": functools.partial(work, truth, prediction),
                },
                4 * repeats if peer != "np.unique of pairs, as cityscapesScripts" else repeats,
            )
            mine, theirs = found["ours"], found["peer"]
            rows.append((title, f"{1 / mine:.0f}", f"{peer} {1 / theirs:.1f}", f"{theirs / mine:.2f}"))
    return rows


def measured(data: Path, options: argparse.Namespace, torch: str | None) -> dict[str, tuple[float, float]]:
    """Return the seconds of the processor and of the clock that loaders and inference take for an image."""
    works: dict[str, Callable[[], tuple[float, float]]] = {}

    def work(name: str, script: str, *arguments: object, python: str = sys.executable, root: Path = ROOT) -> None:
        works[name] = lambda: rate(python, root, script, data, *arguments)

    work("sample", LOADER, options.images, 0)
    if options.against:
        before = options.against.resolve()
        work("sample, before", LOADER, options.images, 0, root=before)
        for name, script in (("evaluation", EVALUATION), ("video", VIDEO)):
            work(name, script, 0, 0)
            work(f"{name}, before", script, 0, 0, root=before)
    work("sample, cached", CACHED, options.images, 0)
    for workers in (1, 2):
        work(f"{workers} threads", LOADER, options.images, workers)
    work("2 processes", PROCESSES, options.images, 2)
    if torch:
        for reader in ("Pillow", "torchvision"):
            work(f"torch {reader}", PEER, options.images, 0, reader, python=torch)
        work("torch processes", PEER, options.images, 2, "Pillow", python=torch)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(options.repeats):
        for name, measure in works.items():
            spent[name].append(measure())
    cpu, wall = ({name: statistics.median(one[k] for one in found) for name, found in spent.items()} for k in (0, 1))
    print(json.dumps({"cpu": cpu, "wall": wall}), file=sys.stderr)
    return {name: (cpu[name], wall[name]) for name in works}


def rates(
    taken: dict[str, tuple[float, float]], pairs: Sequence[tuple[str, str, int, str, str]]
) -> list[tuple[str, ...]]:
    """Return rows: a title, the name of ours, its clock (0: processor), the name of the peer, and the peer's title."""
    rows = []
    for title, ours, clock, other, peer in pairs:
        if other in taken:
            mine, theirs = taken[ours][clock], taken[other][clock]
            rows.append((title, f"{1 / mine:.1f}", f"{peer} {1 / theirs:.1f}", f"{theirs / mine:.2f}"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=24, help="training samples of a run")
    parser.add_argument("--against", type=Path, help="another checkout, whose loader and inference run too")
    add_torch(parser)
    compiled = "a folder with addToConfusionMatrix of cityscapesScripts, compiled for this Python"
    parser.add_argument("--cityscapes-compiled", type=Path, metavar="FOLDER", help=compiled)
    parser.add_argument("--out", type=Path, help="put the tables that have their peers into this page too")
    options = parser.parse_args()
    torch = find_torch(options)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_files(data)
        read = readers(data, options.repeats)
        confusion = counted(options.repeats, options.cityscapes_compiled)
        taken = measured(data, options, torch)
    sample, loader = "training sample, a second of one core", "loader on 2 threads, a second of the clock"
    beside = (
        (sample, "sample", 0, "torch Pillow", "PyTorch, Pillow"),
        (sample, "sample", 0, "torch torchvision", "PyTorch, torchvision's reader"),
        ("the same from the cache (`cache_mb`), a second of one core", "sample, cached", 0, "sample", "decoded"),
        (loader, "2 threads", 1, "1 threads", "1 thread"),
        (loader, "2 threads", 1, "2 processes", "its samples in 2 processes, pickled"),
        (loader, "2 threads", 1, "torch processes", "PyTorch, 2 processes"),
    )
    commit = ""
    if options.against:
        git = ["git", "-C", str(options.against), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    before = (
        (sample, "sample", 0, "sample, before", commit),
        ("evaluation, a second of the processor", "evaluation", 0, "evaluation, before", commit),
        ("evaluation, a second of the clock", "evaluation", 1, "evaluation, before", commit),
        ("labels of a video, a second of the processor", "video", 0, "video, before", commit),
        ("labels of a video, a second of the clock", "video", 1, "video, before", commit),
    )
    head = f"{machine('mxnet', 'numpy', 'opencv-python', 'imagecodecs', 'Pillow', 'simplejpeg')}"
    if torch:
        head += f"; of PyTorch: {packages(torch, 'torch', 'torchvision', 'numpy', 'Pillow')}"
    last = f"median of {options.repeats}, {options.images} training samples in a run; {asked()}."
    for name, peer, rows in (
        ("images", torch, read + rates(taken, beside)),
        ("confusion", options.cityscapes_compiled, confusion),
        ("before", options.against, rates(taken, before)),
    ):
        text = f"{head}; {last}\n\n{table(('1024 x 2048, images a second', 'ours', 'peer', 'ours / peer'), rows)}"
        if rows:
            print(f"{text}\n")
        if options.out and peer:
            put(options.out, f"images {name}", text)


if __name__ == "__main__":
    main()
