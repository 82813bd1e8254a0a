"""The errors a person can meet, each with its object, its cause and its remedy.

Every error that this package raises on purpose derives from :class:`PathosamError`;
the command line prints its text without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations


class PathosamError(Exception):
    """An error with the thing it is about, why it happened, and what to do.

    Parameters
    ----------
    subject : what the error is about: a file, an image, an option.
    cause : what was expected and what was found.
    remedy : what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, subject: object, cause: str, remedy: str) -> None:
        super().__init__(f"{subject}: {cause.rstrip('.')}. {remedy}")
        self.subject = str(subject)
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[PathosamError], tuple[str, str, str]]:
        """Errors come back from other processes as they were."""
        return type(self), (self.subject, self.cause, self.remedy)


class UsageError(PathosamError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class ProjectError(PathosamError):
    """A QuPath project, or one of its files, that cannot be read or written."""

    exit_code = 3


class FormatError(ProjectError):
    """Bytes that are not what QuPath's file format allows."""


class ChangedSinceReadError(ProjectError):
    """A file changed on disk after it was read, so writing would lose the change."""


class BackendError(ProjectError):
    """A backend that is asked for but cannot run (no QuPath, no Java, no paquo)."""


class ImageError(PathosamError):
    """An image that is missing, unreadable, or not what the model can segment."""

    exit_code = 4


class PixelSizeError(ImageError):
    """An image without a usable pixel size."""


class ModelError(PathosamError):
    """Weights that are missing, damaged, foreign, or do not fit the request."""

    exit_code = 5


class RunError(PathosamError):
    """A run record that is missing or cannot be used."""

    exit_code = 6


class SchedulerError(PathosamError):
    """A Dask scheduler, or one of its workers, that cannot be reached or used."""

    exit_code = 8
