"""Tensors out of PyTorch's pickles, and nothing else.

Checkpoints that micro-sam's trainer wrote hold whole Python objects beside the weights:
optimizers, losses, data sets, of packages that need not be installed here.
``weights_only=True`` refuses such files, and plain unpickling would import and call
whatever a file names. Here a name in a pickle means one of three things: one of the few
functions that rebuild tensors and plain containers; a class of no interest, which becomes
an :class:`Inert` placeholder without being imported; or a function of Python's own library
that no weights need, and then the file is refused.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from pathosam_qupath.errors import ModelError

REBUILDERS = frozenset(
    {
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
    }
)
"""The functions of torch that a pickle may call; they take numbers and storages."""

DTYPES = frozenset(
    {
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "bool",
    }
)

CONTAINERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, dict, list, tuple, complex, int, float, bool)
    },
}

INERT_BUILTINS = frozenset(
    {"getattr", "object", "slice", "range", "bytearray", "bytes", "str", "type"}
)
"""Found in pickles of bound methods, slices and arrays; placeholders do for them."""

INERT_MODULES = frozenset(
    {
        *("_codecs", "argparse", "collections", "copyreg", "copy_reg", "datetime", "decimal"),
        *("enum", "fractions", "functools", "inspect", "itertools", "logging", "math", "numbers"),
        *("operator", "pathlib", "random", "re", "threading", "time", "types", "typing", "uuid"),
        "__main__",
    }
)
"""Parts of Python's library whose objects trainers hold; never imported for it."""


class Inert:
    """Stands for an object of a class that was not loaded: takes anything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Whatever the class would be made of."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        """Nothing, once more."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Nothing."""

    def extend(self, values: object) -> None:
        """Nothing."""

    def add(self, value: object) -> None:
        """Nothing."""

    def __hash__(self) -> int:
        return 0


class RefusedNameError(pickle.UnpicklingError):
    """A pickle names a function that weights do not need."""


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors and plain containers; everything else is inert or refused."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """What a name in the pickle stands for. Imports nothing but torch's rebuilders."""
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if (module, name) in REBUILDERS or (module == "torch" and name in DTYPES):
            import torch

            return getattr(torch._utils if module == "torch._utils" else torch, name)
        root = module.partition(".")[0]
        if root in {"builtins", "__builtin__"}:
            refused = name not in INERT_BUILTINS
        else:
            refused = root in sys.stdlib_module_names and root not in INERT_MODULES
            refused |= root in {"nt", "posix", "commands", "__builtins__"}
        if refused:
            raise RefusedNameError(f"{module}.{name}")
        return type("Inert", (Inert,), {"__doc__": f"Stands for {module}.{name}."})


def _load(file: IO[bytes], **options: Any) -> Any:  # noqa: ANN401
    return TensorUnpickler(file, **options).load()


_PICKLE = SimpleNamespace(__name__=__name__, Unpickler=TensorUnpickler, load=_load)
"""What ``torch.load`` takes for the pickle module."""


def load_tensors(path: Path) -> Any:  # noqa: ANN401
    """The object in a file that ``torch.save`` wrote, its foreign parts made inert.

    Tensors are on the CPU; those of newer files are mapped, not read, until they are used.

    Raises
    ------
    ModelError
        If the file is missing, truncated, no such file, or would run code.
    """
    import torch

    remedy = "Download it again from its publisher (models download), or give another file."
    zipped = _check_beginning(path, remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                str(path) if zipped else path,
                map_location="cpu",
                pickle_module=_PICKLE,
                weights_only=False,
                mmap=zipped,
            )
    except RefusedNameError as error:
        raise ModelError(
            path,
            f"expected weights, found a pickle that calls {error}: opening it elsewhere "
            "would run a program",
            "Do not use this file; get the weights from their publisher.",
        ) from error
    except (
        *(RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, OSError),
        *(AttributeError, AssertionError, ImportError, pickle.UnpicklingError, MemoryError),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            path,
            f"expected a PyTorch checkpoint, found {path.stat().st_size:,} bytes that are "
            f"damaged or cut short ({reason})",
            remedy,
        ) from error


def _check_beginning(path: Path, remedy: str) -> bool:
    """Whether the file is a zip archive of torch.save; raises on what is no checkpoint."""
    import zipfile

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})", "Check the path.") from error
    found = None
    if size == 0:
        found = "an empty file"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page, as servers send instead of a file"
    elif start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, not the file itself"
    elif start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            found = f"the first {size:,} bytes of one, cut short"
        else:
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names:
                found = "a TorchScript program"
            elif "data.pkl" not in names:
                found = "a zip archive of something else"
    elif not start.startswith(b"\x80"):
        found = f"{size:,} bytes that begin with {start[:8]!r}"
    if found:
        raise ModelError(path, f"expected a PyTorch checkpoint, found {found}", remedy)
    return start.startswith(b"PK")
