"""Look at the machine and say what works, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "fail"]

_LIBRARIES = (
    "numpy",
    "shapely",
    "geopandas",
    "pyarrow",
    "opencv-python-headless",
    "scikit-image",
    "tiffslide",
    "tifffile",
    "imagecodecs",
    "safetensors",
    "paquo",
)


_PRESENCE = {"yes": "there", "in part": "there in part", "no": "not downloaded"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes
    ----------
    name : what was looked at.
    status : "fail" where segmenting cannot work, "warn" where something is missing that
        not everybody needs.
    found : what was found.
    remedy : what to do about it; None where all is well.
    """

    name: str
    status: Status
    found: str
    remedy: str | None = None


def examine(model: str = "bundled") -> list[Check]:
    """Every check, in the order in which a person should mend things.

    Parameters
    ----------
    model : the model that should load, as ``load_model`` takes it; none is downloaded.
    """
    looks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("Python", check_python),
        ("libraries", check_libraries),
        ("torch", check_torch),
        ("device", check_device),
        ("memory", check_memory),
        ("QuPath", check_qupath),
        ("Java", check_java),
        ("model", lambda: check_model(model)),
        ("PathoSAM", check_published_models),
        ("example project", check_example),
    )
    return [_look(name, look) for name, look in looks]


def _look(name: str, look: Callable[[], Check]) -> Check:
    """Run one check; a check that breaks is a finding, not the end of the examination."""
    try:
        return look()
    except Exception as error:
        return Check(
            name,
            "fail",
            f"could not be checked: {type(error).__name__}: {error}",
            "Install the package again into a fresh environment: `pip install --force-reinstall "
            "pathosam-qupath`.",
        )


def check_python() -> Check:
    """The interpreter is one that the package supports."""
    oldest = (3, 10)
    found = f"{platform.python_version()} at {sys.executable}"
    if tuple(sys.version_info) < oldest:
        return Check("Python", "fail", found, "Install Python 3.10 or newer.")
    return Check("Python", "ok", found)


def check_libraries() -> Check:
    """Every library that the package needs is installed."""
    found, missing = [], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "libraries",
            "fail",
            "missing: " + ", ".join(missing),
            f"Install them: `{sys.executable} -m pip install {' '.join(missing)}`.",
        )
    return Check("libraries", "ok", ", ".join(found))


def check_torch() -> Check:
    """PyTorch can be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            "torch",
            "fail",
            f"cannot be imported: {error}",
            f"Install it: `{sys.executable} -m pip install torch`.",
        )
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    return Check("torch", "ok", f"{torch.__version__}, {built}, {torch.get_num_threads()} threads")


def check_device() -> Check:
    """What the network will run on with ``--device auto``."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        return Check("device", "ok", f"cuda: {properties.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps: the Mac's graphics processor")
    if shutil.which("nvidia-smi"):
        return Check(
            "device",
            "warn",
            "cpu: an NVIDIA driver is there, but this torch cannot use it",
            "Install a torch built for your driver's CUDA version: "
            "https://pytorch.org/get-started/locally/.",
        )
    return Check(
        "device",
        "warn",
        f"cpu, {os.cpu_count()} cores",
        "Nothing is broken; the bundled model is made for this. A graphics card is needed for "
        "whole slides in minutes.",
    )


def check_memory() -> Check:
    """Enough main memory for a block of tiles and a file of many detections."""
    total = _total_memory()
    if total is None:
        return Check("memory", "ok", "size unknown on this system")
    found = f"{total / 2**30:.0f} GiB"
    if total < 3.5 * 2**30:
        return Check(
            "memory", "warn", found, "Images with over a million nuclei want 4 GiB or more."
        )
    return Check("memory", "ok", found)


def check_qupath() -> Check:
    """A QuPath installation, found as paquo finds it; nothing is started."""
    from pathosam_qupath.qupath.jvm import find_installation

    found = find_installation()
    if found is None:
        return Check(
            "QuPath",
            "warn",
            "not found; projects are read and written without it (embedded backend)",
            "To use QuPath's own code, install QuPath from https://qupath.github.io, or say where "
            "it is: `export PAQUO_QUPATH_DIR=/path/to/QuPath`.",
        )
    return Check("QuPath", "ok", f"{found.folder} (paquo backend)")


def check_java() -> Check:
    """A Java runtime: QuPath brings its own, so another one is not needed."""
    from pathosam_qupath.qupath.jvm import find_installation

    qupath = find_installation()
    if qupath is not None:
        return Check("Java", "ok", f"QuPath's own, {qupath.java}")
    java = shutil.which("java")
    if java is None:
        return Check("Java", "ok", "none, and none is needed without QuPath")
    try:
        said = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            "Java",
            "warn",
            f"{java} does not run: {error}",
            "Nothing to do unless you want it: QuPath brings its own Java.",
        )
    lines = (said.stderr or said.stdout).strip().splitlines()
    return Check("Java", "ok", f"{lines[0] if lines else 'unknown version'} at {java} (not needed)")


def check_model(model: str = "bundled") -> Check:
    """The model's weights are there, undamaged, and give maps."""
    import numpy as np

    from pathosam_qupath.errors import PathosamError
    from pathosam_qupath.model import load_model
    from pathosam_qupath.model.catalogue import is_missing

    if is_missing(model):
        return Check(
            "model",
            "fail",
            f"{model} is not downloaded, or not wholly",
            f"Run `pathosam-qupath models download {model}`.",
        )
    try:
        loaded = load_model(model, device="cpu")
    except PathosamError as error:
        return Check("model", "fail", f"{error.subject}: {error.cause}", error.remedy)
    info = loaded.info
    side = info.tile
    maps = loaded.predict(np.full((1, side, side, 3), 255, np.uint8))
    if maps.shape != (1, 3 + len(info.classes), side, side) or not np.isfinite(maps).all():
        return Check(
            "model",
            "fail",
            f"{info.name} loads but its maps are not usable (shape {maps.shape})",
            "Install the package again; if it is your own model, train it again.",
        )
    classes = ", ".join(info.classes) or "no classes"
    return Check(
        "model", "ok", f"{info.name} ({info.weights_hash[:12]}), {info.mpp} µm/px, {classes}"
    )


def check_published_models() -> Check:
    """Which published models are in the cache; none needs to be."""
    from pathosam_qupath.model.catalogue import list_models
    from pathosam_qupath.model.registry import MODELS, cache_directory

    names: dict[str, list[str]] = {}
    for model in list_models():
        if model.segments and model.name in MODELS:
            names.setdefault(_PRESENCE[model.cached], []).append(model.name)
    found = "; ".join(f"{presence}: {', '.join(those)}" for presence, those in names.items())
    return Check("PathoSAM", "ok", f"{found} (cache: {cache_directory()})")


def check_example() -> Check:
    """The example project that ``demo`` copies."""
    from pathosam_qupath.demo import find_example
    from pathosam_qupath.errors import PathosamError

    try:
        return Check("example project", "ok", str(find_example()))
    except PathosamError as error:
        return Check("example project", "warn", error.cause, error.remedy)


def _total_memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    total = pages * size
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total
