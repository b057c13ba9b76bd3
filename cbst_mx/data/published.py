"""What the publishers of the data sets state: images per split and city, sizes, archives.

The doctor compares a data root with these numbers, `plan` uses them where the data are not there, and archives for the
Cityscapes server are checked against them. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

__all__ = [
    "CITYSCAPES",
    "CITYSCAPES_ARCHIVES",
    "GTA5",
    "GTA5_HEIGHTS",
    "GTA5_PER_ARCHIVE",
    "NTHU",
    "SIZES",
    "SYNTHIA",
    "SYNTHIA_ARCHIVE",
    "published",
]

# Numbers of the images, which are their names: 24,966 and 9,400.
GTA5 = range(1, 24967)
SYNTHIA = range(9400)
# Images per city of Cityscapes: 2,975 for training, 500 for validation, 1,525 for testing.
CITYSCAPES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
        "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
        "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
}  # fmt: skip
# Images per folder of one city of NTHU Cross-City.
NTHU = {"Train": 3200, "Test": 100}

SIZES = {"gta5": (1052, 1914), "synthia": (760, 1280), "cityscapes": (1024, 2048), "nthu": (1024, 2048)}
GTA5_HEIGHTS = range(1040, 1061)  # some images of GTA5 are a few lines lower or higher

GTA5_PER_ARCHIVE = 2500  # 01_images.zip holds 00001 to 02500
SYNTHIA_ARCHIVE = "SYNTHIA_RAND_CITYSCAPES.rar"
CITYSCAPES_ARCHIVES = {"images": "leftImg8bit_trainvaltest.zip", "labels": "gtFine_trainvaltest.zip"}


def published(dataset: str, split: str | None = None) -> tuple[int, tuple[int, int]] | None:
    """Return how many images a data set of the paper has, and their height and width.

    Parameters
    ----------
    dataset : str
        Name of the format, a key of `cbst_mx.data.FORMATS`.
    split : str, optional
        Split of Cityscapes, or of NTHU, whose numbers are those of one city; its labelled images are "test" or "rest".

    Returns
    -------
    tuple of (int, (int, int)) or None
        None if nothing is published, as for one's own data.
    """
    counts = {
        "gta5": len(GTA5),
        "synthia": len(SYNTHIA),
        "cityscapes": sum(CITYSCAPES.get(str(split), {}).values()),
        "nthu": NTHU["Train" if split == "train" else "Test"],
    }
    return (counts[dataset], SIZES[dataset]) if counts.get(dataset) else None
