"""Prepare the environment that make works in: refuse an unusable Python, repair bare machines, check that mxnet loads.

``make`` calls it as ``python tools/environment.py refuse``, ``install EXTRAS``, ``repair`` or ``check``. ``refuse``
runs on whichever Python make finds, before anything is installed: this file therefore needs the standard library only
and keeps to the syntax that every Python 3 reads (no annotations, no f-strings).
"""

import ast
import os
import re
import sys

__all__ = ["announce", "check", "install", "main", "refuse", "repair_cv2", "repair_libraries", "supported"]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def supported():
    """Return the oldest and the newest Python that setup.py names, each as (major, minor)."""
    with open(os.path.join(ROOT, "setup.py")) as stream:
        return ast.literal_eval(re.search(r"^OLDEST, NEWEST = (.+)$", stream.read(), re.MULTILINE).group(1))


def refuse():
    """Return a sentence that says why this Python cannot make the environment; None if it can."""
    oldest, newest = supported()
    if not oldest <= sys.version_info[:2] <= newest:
        versions = oldest + newest + tuple(sys.version_info[:2]) + newest
        return "cbst_mx needs Python %d.%d to %d.%d, this is %d.%d: make PYTHON=python%d.%d" % versions
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        advice = "apt-get install python3-venv, or make PYTHON=python%d.%d" % newest
        return "this Python cannot make virtual environments: " + advice
    return None


# Megabytes that each extra downloads and takes on the disk, those of the first two with what every installation needs;
# measured on Linux x86-64 with Python 3.11 (of cu112: the sum of its wheels).
SIZES = {
    "cpu": (203, 835),
    "cu112": (2300, 4000),
    "onnx": (46, 157),
    "report": (11, 74),
    "speed": (25, 75),
    "scale": (9, 66),
    "docs": (26, 73),
    "dev": (152, 528),
}


def announce(extras):
    """Return a sentence on what installing these extras downloads."""
    known = [SIZES[name] for name in extras.split(",") if name in SIZES]
    download, disk = [sum(sizes) for sizes in zip(*known)] if known else (0, 0)
    size = "about %d MB to download, %d MB on the disk" % (download, disk) if known else "of unknown size"
    return "installing cbst_mx[%s]: %s; what pip has in its cache is not downloaded again" % (extras, size)


def install(extras):
    """Install this project with extras, and tell how far it is: by a line that changes, or a log of large files.

    Parameters
    ----------
    extras : str
        Names of extras of setup.py, with commas between them.

    Returns
    -------
    int
        What pip returned.
    """
    import subprocess

    print(announce(extras))
    sys.stdout.flush()
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", "-e", ".[%s]" % extras]
    pip = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
    names, total, shows = set(), 0.0, sys.stdout.isatty()
    for line in pip.stdout:
        found = re.match(r"\s*(?:Downloading|Using cached) (\S+?)-\d\S* \(([\d.]+) ([kMG]?B)\)", line)
        if found and ".metadata " not in line:
            size = float(found.group(2)) * {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}[found.group(3)]
            name = os.path.basename(found.group(1))
            names.add(name)  # pip may look at several versions of one
            total += size
            text = "%3d packages, %4.0f MB: %s" % (len(names), total, name)
            _show(text, shows, size >= _LARGE)
        elif line.startswith("Installing collected packages"):
            _show("unpacking %d packages" % (line.count(",") + 1), shows, True)
        elif line.lstrip().startswith(("ERROR", "error")):
            print(line.rstrip())
    if shows:
        sys.stdout.write("\r\033[K")
    return pip.wait()


_LARGE = 10.0  # megabytes of a file that a log names


def _show(text, changes, matters):
    """Show how far it is: on the line that changes, or as a line of a log where it matters."""
    if changes:
        sys.stdout.write("\r\033[K" + text[:78])
    elif matters:
        sys.stdout.write(text + "\n")
    sys.stdout.flush()


def repair_cv2():
    """Install the headless build of the same version over opencv-python where that cannot be imported.

    opencv-python wants libGL of a desktop, which a bare machine lacks; the headless build has the same files without
    that need.

    Raises
    ------
    subprocess.CalledProcessError
        If pip fails.
    """
    import importlib.metadata
    import subprocess

    try:
        import cv2  # noqa: F401
    except ImportError as error:
        headless = "opencv-python-headless==" + importlib.metadata.version("opencv-python")
        print("%s: installing %s over opencv-python" % (error, headless))
        subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", headless])


def repair_libraries(site):
    """Put libgomp and libquadmath beside mxnet where the machine has none.

    mxnet wants these two of a compiler, which a bare machine lacks too. Wheels bring both under other names, and mxnet
    looks in its own folder first.

    Parameters
    ----------
    site : str
        Folder of the installed packages.

    Raises
    ------
    subprocess.CalledProcessError
        If pip cannot download the wheel that has libgomp.
    """
    import glob
    import shutil
    import subprocess
    import tempfile
    import zipfile

    folder = os.path.join(site, "mxnet")
    if not os.path.isdir(folder):
        return
    if _missing("libquadmath.so.0"):
        found = glob.glob(os.path.join(site, "numpy.libs", "libquadmath*"))[0]
        shutil.copy(found, os.path.join(folder, "libquadmath.so.0"))
        print("libquadmath.so.0 is not on this machine: using the one of numpy's wheel")
    if _missing("libgomp.so.1"):
        with tempfile.TemporaryDirectory() as download:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", download]
            subprocess.check_call(pip + ["scikit-learn==1.3.2"])
            with zipfile.ZipFile(os.path.join(download, os.listdir(download)[0])) as wheel:
                member = [name for name in wheel.namelist() if "/libgomp" in name][0]
                with open(os.path.join(folder, "libgomp.so.1"), "wb") as library:
                    library.write(wheel.read(member))
        print("libgomp.so.1 is not on this machine: using the one of scikit-learn's wheel")


def _missing(library):
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return True
    return False


def check():
    """Return a sentence that says what mxnet lacks (a library); None if it loads.

    It is better said now than by every test. The NVIDIA driver may be missing, as on the node of a cluster where
    jobs are only handed in: that is told, and all else is there.
    """
    try:
        import symbols.backend  # noqa: F401
    except ImportError as error:
        if "libcuda.so" not in str(error):
            return str(error)
        print("this machine has no NVIDIA driver: all is installed, but the GPU cannot be tried here")
    return None


def main(arguments):
    """Run the command that `arguments` name; return what sys.exit takes."""
    if arguments == ["refuse"]:
        reason = refuse()
    elif arguments == ["check"]:
        reason = check()
    elif arguments[:1] == ["install"] and len(arguments) == 2:
        code = install(arguments[1])
        reason = "pip could not install cbst_mx[%s], see above" % arguments[1] if code else None
    elif arguments == ["repair"]:
        import sysconfig

        repair_cv2()
        repair_libraries(sysconfig.get_paths()["purelib"])
        reason = None
    else:
        reason = "the command must be refuse, install EXTRAS, repair or check, got %r" % " ".join(arguments)
    return "Error: " + reason if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
