"""Errors as a client sees them: a status and ``{"error": {subject, cause, remedy, code}}``."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pathosam_qupath.errors import (
    ChangedSinceReadError,
    ImageError,
    ModelError,
    PathosamError,
    PixelSizeError,
    ProjectError,
    RunError,
    UsageError,
)

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")

_KINDS: tuple[tuple[type[PathosamError], int, str], ...] = (
    (PixelSizeError, 422, "pixel_size"),
    (ImageError, 422, "image"),
    (UsageError, 422, "usage"),
    (ChangedSinceReadError, 409, "changed"),
    (ProjectError, 422, "project"),
    (ModelError, 409, "model"),
    (RunError, 422, "run"),
)


@dataclass(eq=False)
class ProblemError(Exception):
    """A refusal with its HTTP status.

    Attributes
    ----------
    code : a word for programs.
    subject, cause, remedy : see :class:`pathosam_qupath.errors.PathosamError`.
    headers : further headers of the response.
    """

    status: int
    code: str
    subject: str
    cause: str
    remedy: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.subject}: {self.cause}. {self.remedy}"

    @property
    def said(self) -> dict[str, str]:
        """What a client is told, without the frame ``{"error": …}``."""
        return {
            "subject": self.subject,
            "cause": self.cause,
            "remedy": self.remedy,
            "code": self.code,
        }


def as_problem(error: BaseException) -> ProblemError:
    """The problem that an exception stands for; what was not foreseen is ``unexpected``."""
    if isinstance(error, ProblemError):
        return error
    if is_disk_full(error):
        return ProblemError(
            507,
            "disk_full",
            _subject(error),
            "there is no room left on the disk",
            "Free some space and run it again.",
        )
    if is_out_of_memory(error):
        return ProblemError(
            507,
            "out_of_memory",
            "memory",
            "the device has too little memory for this",
            "Close other programs that use it, take a smaller model, or start the server with "
            "--device cpu.",
        )
    if isinstance(error, PathosamError):
        status, code = next(
            ((s, c) for kind, s, c in _KINDS if isinstance(error, kind)), (422, "refused")
        )
        return ProblemError(status, code, error.subject, error.cause, error.remedy)
    return ProblemError(
        500,
        "unexpected",
        type(error).__name__,
        str(error) or "no further details",
        "This error was not foreseen; the server's output has the details.",
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room, at whatever level it was noticed."""
    return any(isinstance(e, OSError) and e.errno in _NO_ROOM for e in _chain(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, the graphics card's, or torch's on the CPU."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def _subject(error: BaseException) -> str:
    for e in _chain(error):
        if isinstance(e, PathosamError):
            return e.subject
        if isinstance(e, OSError) and e.filename:
            return str(e.filename)
    return "disk"


def _chain(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__
