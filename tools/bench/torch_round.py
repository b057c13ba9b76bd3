"""One round of class-balanced self-training in plain PyTorch, NumPy and Pillow: what rounds.py is measured against.

python tools/bench/torch_round.py SPEC, by a Python with torch, numpy and Pillow; SPEC is JSON that rounds.py makes.

It goes the way of the PyTorch programs that came after CBST: a map of probabilities per image on the disk, every n-th
confidence of a class in a list, which is sorted; hard pseudo-labels as PNGs; a DataLoader with Pillow and NumPy;
`bincount` for the confusion matrix. Where such programs are slower without need (a loop over ids, an upsampling to the
size that a map has already, new processes for every epoch) this one is not.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
import torch._dynamo  # by torch's optimisers at their first step: an import, not work
from measuring import stage_seconds
from networks import IGNORE, torch_fcn8s
from PIL import Image
from torch.nn import functional

FILL = (124, 116, 104)


def to_input(image: Image.Image, spec: dict[str, Any]) -> np.ndarray:
    """Return the network's input, float32 (3, H, W)."""
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.array(spec["mean"], np.float32)) / np.array(spec["std"], np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Images(torch.utils.data.Dataset):
    """Whole images, for the network's predictions."""

    def __init__(self, spec: dict[str, Any], paths: list[str]):
        self.spec, self.paths = spec, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        path = self.paths[index]
        return to_input(Image.open(path).convert("RGB"), self.spec), path


class Crops(torch.utils.data.Dataset):
    """Training crops of images with labels: scaled, cropped, mirrored."""

    def __init__(self, spec: dict[str, Any], pairs: list[tuple[str, str]], raw_ids: bool):
        self.spec, self.pairs, self.raw_ids = spec, pairs, raw_ids
        self.train_ids = np.array(spec["train_ids"], np.uint8)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = Image.open(self.pairs[index][0]).convert("RGB"), Image.open(self.pairs[index][1])
        if self.raw_ids:
            label = Image.fromarray(self.train_ids[np.asarray(label)])
        factor = random.uniform(*self.spec["scale"])
        size = round(image.width * factor), round(image.height * factor)
        image, label = image.resize(size, self.spec["resampling"]), label.resize(size, Image.Resampling.NEAREST)
        height, width = self.spec["crop"]
        corner = tuple(random.randint(min(0, have - want), max(0, have - want))
                       for have, want in zip(size, (width, height)))  # fmt: skip
        window = (*corner, corner[0] + width, corner[1] + height)
        if min(corner) < 0 or window[2] > size[0] or window[3] > size[1]:
            whole, empty = Image.new("RGB", (width, height), FILL), Image.new("L", (width, height), IGNORE)
            whole.paste(image, (-corner[0], -corner[1]))
            empty.paste(label, (-corner[0], -corner[1]))
            image, label = whole, empty
        else:
            image, label = image.crop(window), label.crop(window)
        pixels, classes = to_input(image, self.spec), np.asarray(label, np.int64)
        if random.random() < 0.5:
            pixels, classes = pixels[:, :, ::-1], classes[:, ::-1]
        return np.ascontiguousarray(pixels), np.ascontiguousarray(classes)


def probabilities(network: Any, images: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the probabilities of a batch and of its mirrored image, averaged, at full size: (H, W, C) each."""
    with torch.inference_mode():
        first = functional.softmax(network(images), dim=1)
        second = functional.softmax(network(images.flip(3)), dim=1)
        maps = (first + second.flip(3)) / 2
        if tuple(maps.shape[2:]) != size:
            maps = functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps.numpy().transpose(0, 2, 3, 1)


def predicted(network: Any, spec: dict[str, Any], paths: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path and the probabilities (H, W, C) of every image."""
    loader = torch.utils.data.DataLoader(
        Images(spec, paths), batch_size=spec["inference_batch"], num_workers=spec["workers"]
    )
    for images, names in loader:
        layout = torch.channels_last if spec["channels_last"] else torch.contiguous_format
        yield from zip(names, probabilities(network, images.to(memory_format=layout), tuple(images.shape[2:])))


def label(network: Any, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the pseudo-labels of the target images; return thresholds and the portion kept."""
    network.eval()
    confidences: list[list[np.float32]] = [[] for _ in range(spec["classes"])]
    counts = np.zeros(spec["classes"], np.int64)
    for name, maps in predicted(network, spec, spec["target"]):
        classes, sure = np.argmax(maps, axis=2), np.amax(maps, axis=2)
        np.save(folder / f"{Path(name).stem}.npy", maps)
        for index in range(spec["classes"]):
            own = sure[classes == index]
            counts[index] += len(own)
            confidences[index].extend(own[:: spec["every"]])
    thresholds = np.ones(spec["classes"], np.float32)
    for index, values in enumerate(confidences):
        values.sort(reverse=True)
        rank = round(spec["portion"] * len(values))
        if rank:
            thresholds[index] = values[rank - 1]
    kept = 0
    for path in spec["target"]:
        stored = folder / f"{Path(path).stem}.npy"
        weighted = np.load(stored) / thresholds
        chosen = np.argmax(weighted, axis=2).astype(np.uint8)
        chosen[np.amax(weighted, axis=2) < 1] = IGNORE
        kept += np.count_nonzero(chosen != IGNORE)
        Image.fromarray(chosen).save(folder / f"{Path(path).stem}.png")
        stored.unlink()
    return {"thresholds": thresholds.tolist(), "counts": counts.tolist(), "kept": kept / int(counts.sum())}


def retrain(network: Any, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train on source labels and pseudo-labels together, and write the parameters."""
    network.train()
    pseudo = [(path, str(folder / f"{Path(path).stem}.png")) for path in spec["target"]]
    crops = torch.utils.data.ConcatDataset(
        [Crops(spec, spec["source"], raw_ids=True), Crops(spec, pseudo, raw_ids=False)]
    )
    loader = torch.utils.data.DataLoader(
        crops,
        batch_size=spec["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=spec["workers"],
        persistent_workers=spec["workers"] > 0,
    )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=spec["learning_rate"], momentum=0.9, weight_decay=5e-4)
    layout = torch.channels_last if spec["channels_last"] else torch.contiguous_format
    done, losses = 0, []
    while done < spec["iterations"]:
        for images, labels in loader:
            optimiser.zero_grad()
            logits = network(images.to(memory_format=layout))
            loss = functional.cross_entropy(logits, labels, ignore_index=IGNORE)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            done += 1
            if done == spec["iterations"]:
                break
    torch.save(network.state_dict(), folder / "parameters.pth")
    return {"loss": losses[-1]}


def evaluate(network: Any, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the mIoU on the validation images."""
    network.eval()
    classes, train_ids = spec["classes"], np.array(spec["train_ids"], np.uint8)
    truths = dict(spec["validation"])
    matrix = np.zeros((classes, classes), np.int64)
    for name, maps in predicted(network, spec, list(truths)):
        found = np.argmax(maps, axis=2)
        truth = train_ids[np.asarray(Image.open(truths[name]))]
        counted = truth != IGNORE
        pairs = classes * truth[counted].astype(np.int64) + found[counted]
        matrix += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    seen = union > 0
    return {"miou": float(np.mean(np.diag(matrix)[seen] / union[seen]))}


def load(spec: dict[str, Any]) -> Any:
    """Return the network with the given parameters."""
    network = torch_fcn8s(torch, spec["width"])
    with np.load(spec["weights"]) as stored, torch.no_grad():
        given = [stored[f"arr_{index}"] for index in range(len(stored.files))]
        values = network.state_dict().values()
        assert len(values) == len(given)
        for value, array in zip(values, given):
            value.copy_(torch.from_numpy(array))
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = spec["dropout"]
    return network.to(memory_format=torch.channels_last) if spec["channels_last"] else network


def main() -> None:
    """Run the round."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    random.seed(0)
    folder = Path(spec["out"])
    folder.mkdir()
    network: Any = None

    def first(*given: Any) -> dict[str, Any]:
        nonlocal network
        network = load(spec)
        return label(network, *given)

    works = {
        "label": lambda: first(spec, folder),
        "retrain": lambda: retrain(network, spec, folder),
        "evaluate": lambda: evaluate(network, spec, folder),
    }
    print(json.dumps(stage_seconds(works)))


if __name__ == "__main__":
    main()
