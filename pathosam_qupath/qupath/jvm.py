"""QuPath's own code in this process: finding an installation, starting its Java machine.

paquo finds QuPath (``PAQUO_QUPATH_DIR``, ``.paquo.toml`` or the usual folders) and starts
the Java machine when ``paquo.java`` is imported, with half of the machine's memory as the
limit of its heap. Here it is started before that import, once per process, without a
display and with a limit that leaves the memory to the network and the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pathosam_qupath.errors import BackendError, UsageError

MEMORY_VARIABLE = "PATHOSAM_JAVA_MEMORY"
"""Environment variable with the heap's limit as Java writes it: ``6g``, ``900m``."""

OLDEST_QUPATH = (0, 5)
_HEAP_CAP = 8 << 30
_HEAP_SHARE = 4
_REMEDY = (
    "Install QuPath 0.5 or newer and set PAQUO_QUPATH_DIR to its folder, "
    "or use the embedded backend (--backend embedded), which needs no Java."
)


@dataclass(frozen=True)
class Installation:
    """A QuPath installation as paquo finds it.

    Attributes
    ----------
    folder : where its jar files are.
    java : the library of the Java machine that runs it.
    """

    folder: Path
    java: Path


def find_installation() -> Installation | None:
    """Return the QuPath installation that paquo would use, or None; starts nothing."""
    try:
        from paquo._config import settings, to_kwargs
        from paquo.jpype_backend import find_qupath
    except ImportError:
        return None
    try:
        found = find_qupath(**{**to_kwargs(settings), "java_opts": []})
    except (ValueError, OSError):
        return None
    return Installation(folder=Path(found.app_dir), java=Path(found.jvm_path))


def start_qupath(memory: str | None = None) -> str:
    """Start QuPath's Java machine, unless it runs already, and return QuPath's version.

    Parameters
    ----------
    memory : limit of Java's heap (``"6g"``). By default what ``PATHOSAM_JAVA_MEMORY``
        says, else what paquo's ``java_opts`` say, else a quarter of the memory that this
        process may use and at most 8 GB.

    Raises
    ------
    BackendError : no paquo, no QuPath, QuPath older than 0.5, or Java does not start.
    """
    try:
        from paquo._config import settings, to_kwargs
        from paquo.jpype_backend import start_jvm
    except ImportError as error:
        raise BackendError(
            "paquo", f"cannot be imported ({error})", "Run `pip install paquo`."
        ) from error
    arguments = to_kwargs(settings)
    arguments["java_opts"] = _java_options(arguments.get("java_opts"), memory)
    try:
        version = start_jvm(finder_kwargs=arguments)
    except ValueError as error:
        raise BackendError("QuPath", "no installation was found", _REMEDY) from error
    except OSError as error:
        folder = arguments.get("qupath_dir") or "QuPath"
        raise BackendError(folder, f"no usable QuPath installation ({error})", _REMEDY) from error
    except RuntimeError as error:
        raise BackendError("Java", f"the machine did not start ({error})", _REMEDY) from error
    text = str(version)
    if _release(text) < OLDEST_QUPATH:
        raise BackendError("QuPath", f"version {text} is too old", _REMEDY)
    _keep_stdout_clean()
    return text


def _java_options(configured: str | Iterable[str] | None, memory: str | None) -> list[str]:
    """Return paquo's configured options with a heap limit and without a display."""
    options = configured.split() if isinstance(configured, str) else list(configured or ())
    memory = memory or os.environ.get(MEMORY_VARIABLE)
    if memory:
        if not memory[:-1].isdigit() or memory[-1].lower() not in "mg":
            raise UsageError(
                MEMORY_VARIABLE,
                f"expected a size such as 900m or 6g, found {memory!r}",
                "Correct the value or leave it unset.",
            )
        options = [option for option in options if not option.startswith("-Xmx")]
        options.append(f"-Xmx{memory}")
    elif not any(option.startswith("-Xmx") for option in options):
        available = _available_memory()
        if available is None:
            options.append("-XX:MaxRAMPercentage=25")
        else:
            options.append(f"-Xmx{min(available // _HEAP_SHARE, _HEAP_CAP) >> 20}m")
    if not any(option.startswith("-XX:+Use") for option in options):
        # One thread for the garbage, no second compiler: these machines live for seconds
        # and share the processors with a network.
        options += ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    # JPype asks Java for a full collection whenever Python's own collector has run; with a
    # million objects that was half of the time.
    options.append("-XX:+DisableExplicitGC")
    # Without -Xrs Java takes Ctrl-C for itself and the process ends without a clean-up.
    return [
        *options,
        "-Djava.awt.headless=true",
        "-Xrs",
        "--enable-native-access=ALL-UNNAMED",
    ]


def _available_memory() -> int | None:
    """Return the bytes of memory this process may use, None where that is not known."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            memory = min(memory, int(text))
    return memory


def _release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, (0, 0) where there are none."""
    numbers = [part for part in version.split("-")[0].split(".") if part.isdigit()]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def _keep_stdout_clean() -> None:
    """Send QuPath's log to stderr and keep it short: stdout belongs to our own output."""
    from jpype import JClass

    system = JClass("java.lang.System")
    system.setOut(system.err)
    import paquo.projects  # noqa: F401 - sets the log to "debug" when it is first imported

    JClass("qupath.lib.gui.logging.LogManager").setWarn()
