"""Package metadata; the pins' reasons stand beside them."""

import ast
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# The versions that were tried; tools/environment.py reads this line.
OLDEST, NEWEST = (3, 8), (3, 11)
# python_requires alone lets pip try to build an old numpy first and fail with a page of errors.
if not OLDEST <= sys.version_info[:2] <= NEWEST:
    versions = [".".join(map(str, version[:2])) for version in (OLDEST, NEWEST, sys.version_info)]
    sys.exit("cbst_mx needs Python {} to {}, this is {}".format(*versions))

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "cbst_mx" / "__init__.py").read_text("utf-8"), re.M).group(1)

REQUIRED = [
    "numpy>=1.23.5,<1.24",  # 1.24 removed numpy.bool, which mxnet 1.9.1 uses; 1.23.5 has wheels for 3.8 to 3.11
    "gluoncv==0.10.5.post0",  # the last one for mxnet 1.9; imported only where it is used
    "opencv-python>=4.5,<4.12",  # image changes in the loader; 4.12 asks for numpy 2
    "scipy>=1.10,<2",  # filters; mx.nd.array() uses scipy.sparse.csr, which scipy 2 removes
    "click>=8",  # the command line
    "pydantic>=2.7",  # typed, strict experiment files; use_attribute_docstrings came with 2.7
    "rich",  # tables and progress bars
    "PyYAML",  # experiment files
    "simplejpeg>=1.7,<2",  # libjpeg-turbo that tells of missing parts; 1.7.3 is the last for Python 3.8
    "Pillow>=10.1",  # PNG with palette; ImageFont.load_default(size) came with 10.1
    "Jinja2>=3.1,<4",  # with MarkupSafe; reports, whose names it escapes, and the files that init writes
    "typing_extensions",  # the Literal pydantic asks for on Python 3.8
]

# mxnet stands in extras only: mxnet and mxnet-cu112 own the same files, so a user must have exactly one of them.
CU112 = [
    "mxnet-cu112==1.9.1",
    # The CUDA libraries it links to, which it does not bring. 11.8 keeps every library name of 11.2, and its compiler
    # knows newer GPUs.
    "nvidia-cuda-runtime-cu11==11.8.89",
    "nvidia-cublas-cu11==11.11.3.6",
    "nvidia-cudnn-cu11==8.9.6.50",  # 9 has another library name
    "nvidia-cufft-cu11==10.9.0.58",
    "nvidia-curand-cu11==10.3.0.86",
    "nvidia-cusolver-cu11==11.4.1.48",
    "nvidia-cuda-nvrtc-cu11==11.8.89",
    "nvidia-nccl-cu11==2.21.5",
    "nvidia-nvtx-cu11==11.8.86",
]

# For cbst-mx report. Plotly: maintained, MIT, its script is inside the wheel (4.8 MB), so a page is one file that
# works offline; it draws SVG, which prints and follows the page's colours, and needs no pandas, as Bokeh does.
REPORT = [
    "plotly>=6,<8",
    "tensorboardX>=2.6.2,<3",  # TensorBoard events without TensorFlow or PyTorch; 2.6.2 has no pin on protobuf
]

# For cbst-mx export --onnx, which compares the versions too. numpy stays below 1.24, so onnxruntime does too.
EXPORT = (HERE / "cbst_mx" / "networks" / "export.py").read_text("utf-8")
ONNX = ast.literal_eval(re.search(r"^ONNX = (.+)$", EXPORT, re.M).group(1))

# libspng and libdeflate for PNGs, in half of the time of OpenCV. imagecodecs is large (25 MB), but decodes outside
# Python's lock; pyspng (0.3 MB) holds it, so that the threads of a loader wait for each other. 2026.3 needs numpy 2;
# 2023.3.16 is the last for Python 3.8.
SPEED = ["imagecodecs>=2023.3.16,<2026.3"]
# For --cluster, cluster and sweep: Dask, which needs no numpy. The newest for Python 3.8 is 2023.5.0, for 3.9 2024.8.0,
# for 3.10 and later 2026.8.0, on all of which labels were compared with those of one process; 2021.10 closed the last
# hole that matters here, workers on all interfaces. dask-jobqueue is for who has a batch system.
SCALE = [
    "distributed>=2023.5,<2027",
    "cryptography>=41",  # makes the certificates; 47 is the last for Python 3.8
]

# The documentation site, `make docs`; make test builds it too. One minor version each, the newest that also runs on
# Python 3.8. All of it is pure Python, about 20 MB, and nothing of it is needed to run the program.
DOCS = [
    "mkdocs>=1.6,<1.7",
    "mkdocs-material>=9.6,<9.7",  # brings search, icons and styles: pages load nothing from elsewhere
    "mkdocs-click>=0.8,<0.9",  # the page of every command's options
    "mkdocstrings>=0.26,<0.27",  # the page of functions, from their docstrings
    "mkdocstrings-python>=1.11,<1.12",
    "griffe>=1.4,<1.5",  # reads the docstrings; tools/site.py extends it
    "l2m4m>=1.0,<1.1",  # equations as MathML, by latex2mathml, so that no script has to draw them
    "latex2mathml>=3.77,<4",
]

# One minor version each, the newest that also runs on Python 3.8, so that a check means the same everywhere.
DEV = [
    "pytest>=8.3,<8.4",
    "pytest-xdist>=3.6,<3.7",  # the tests of different files side by side, on all cores
    "hypothesis>=6.113,<6.114",
    "ruff>=0.17,<0.18",
    "cityscapesscripts>=2.3,<2.4",  # the evaluation that ours must agree with
    "mypy>=1.14,<1.15",
    "types-PyYAML>=6.0,<6.1",
    "selenium>=4.27,<4.28",  # looks at reports in the system's chromium
    "dask-jobqueue>=0.8.5,<0.10",  # jobs without a batch system; 0.8.5 is the last for Python 3.8 and 3.9
    "jsonschema>=4.23,<4.24",  # the schemas that `cbst-mx schema` prints, as editors read them
]

DEMO = "experiments/demo.yaml"


class BuildPy(build_py):
    """Puts the demo's experiment file, whose home is experiments/, beside cbst_mx/demo.py."""

    def run(self):
        """Build, and copy the file; an editable installation finds it where it is."""
        super().run()
        if not getattr(self, "editable_mode", False):  # setuptools before 64 has none
            self.copy_file(str(HERE / DEMO), str(Path(self.build_lib) / "cbst_mx" / "demo.yaml"))

    def get_source_files(self):
        """Return the files of a source archive."""
        return [*super().get_source_files(), DEMO]


setup(
    name="cbst_mx",
    version=VERSION,
    description="Class-balanced self-training for unsupervised domain adaptation of segmentation networks, on MXNet",
    license="Apache-2.0",
    packages=find_packages(include=["cbst_mx*", "symbols*"]),
    package_data={
        "cbst_mx.evaluation": ["paper_tables/*"],
        "cbst_mx.config": ["templates/*"],
        "cbst_mx.report": ["templates/*"],
    },
    python_requires=f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}",
    cmdclass={"build_py": BuildPy},
    install_requires=REQUIRED,
    extras_require={
        "cpu": ["mxnet==1.9.1"],
        "cu112": CU112,
        "onnx": ONNX,
        "report": REPORT,
        "speed": SPEED,
        "scale": SCALE,
        "docs": DOCS,
        "dev": DEV + DOCS + ONNX + REPORT + SPEED + SCALE,
    },
    entry_points={"console_scripts": ["cbst-mx = cbst_mx.cli:main"]},
)
