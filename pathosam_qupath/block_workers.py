"""Who computes an image's blocks: this process, or workers of a Dask cluster.

A run hands every image to :class:`BlockWorkers` and gets its blocks back as they are
finished, in any order. There are two of them: :class:`InProcess` here, and
``dask_workers.DaskWorkers``. What comes back is the same, object by object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pathosam_qupath.errors import UsageError
from pathosam_qupath.estimates import Rate, calibrated_rate
from pathosam_qupath.segmentation.pipeline import (
    BlockPlan,
    BlockResult,
    Progress,
    SegmentOptions,
    segment_blocks,
)
from pathosam_qupath.slide import SlideFile

if TYPE_CHECKING:
    from pathosam_qupath.model.interface import ModelDescription, NucleusModel

LOCAL = "local"
"""What ``--scheduler`` is given for processes on this computer."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, as :func:`model.load_model` takes it; the same on every computer."""

    name_or_path: str | Path = "bundled"
    device: str = "auto"
    decoder: Path | None = None
    semantic: Path | None = None
    exact: bool = False

    @classmethod
    def of(
        cls,
        name_or_path: str | Path,
        device: str,
        decoder: Path | None = None,
        semantic: Path | None = None,
        *,
        exact: bool = False,
    ) -> ModelChoice:
        """The choice with whole paths: other processes have other working folders."""
        from pathosam_qupath.model import BUNDLED
        from pathosam_qupath.model.adopted import adopted_models
        from pathosam_qupath.model.registry import MODELS

        names = {BUNDLED, *MODELS, *adopted_models()}
        path = Path(name_or_path)
        return cls(
            path.resolve() if str(name_or_path) not in names and path.is_file() else name_or_path,
            device,
            None if decoder is None else decoder.resolve(),
            None if semantic is None else semantic.resolve(),
            exact,
        )

    def __call__(self) -> NucleusModel:
        """Load it.

        Raises
        ------
        ModelError : its files are missing or damaged, or the device is absent.
        """
        from pathosam_qupath.model import load_model

        return load_model(
            self.name_or_path,
            self.device,
            decoder=self.decoder,
            semantic=self.semantic,
            exact=self.exact,
        )


@dataclass(frozen=True, eq=False)
class ImageBlocks:
    """An image whose blocks are wanted.

    Attributes
    ----------
    name : of the image, for messages.
    file : where its pixels are.
    plan : its blocks, over the open slide.
    """

    name: str
    file: SlideFile
    plan: BlockPlan
    options: SegmentOptions


class BlockWorkers(Protocol):
    """Whoever computes the blocks of a run's images."""

    @property
    def model(self) -> ModelDescription:
        """The model with which they compute."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know before they begin."""

    @property
    def works_ahead(self) -> bool:
        """Whether the next image should be begun while the last of this one is computed."""

    def rate(self) -> Rate:
        """How fast they are, by a short trial."""

    def ahead(self, image: ImageBlocks, *, done: Collection[int] = ()) -> None:
        """Begin an image whose results will be asked for later; where nobody works ahead, nothing.

        Parameters
        ----------
        image, done : as they will be given to :meth:`results`.
        """

    def results(
        self,
        image: ImageBlocks,
        *,
        done: Collection[int] = (),
        progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Generator[BlockResult, None, None]:
        """The blocks of an image, as they are finished; closing the generator ends the work.

        Parameters
        ----------
        done : numbers of blocks that need not be computed again.
        stop : asked between blocks; once it says True, the generator ends after what is
            nearly finished, with blocks missing.
        tell : called with what a person should know.

        Raises
        ------
        ImageError : the slide cannot be read where it is to be computed.
        SchedulerError : nobody is left to compute; the run cannot go on.
        """


class InProcess:
    """The blocks are computed by threads of this process, one image at a time."""

    notes: tuple[str, ...] = ()
    works_ahead = False

    def __init__(self, model: NucleusModel) -> None:
        self.model = model

    def rate(self) -> Rate:
        """See :meth:`BlockWorkers.rate`."""
        return calibrated_rate(self.model)

    def ahead(self, image: ImageBlocks, *, done: Collection[int] = ()) -> None:
        """Nothing: all cores are busy with the image at hand."""

    def results(
        self,
        image: ImageBlocks,
        *,
        done: Collection[int] = (),
        progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> Generator[BlockResult, None, None]:
        """See :meth:`BlockWorkers.results`."""
        results = segment_blocks(
            image.plan, self.model, options=image.options, done=done, progress=progress
        )
        with closing(results):
            for result in results:
                yield result
                if stop():
                    return


@contextmanager
def block_workers(
    model: NucleusModel, choice: ModelChoice, scheduler: str | None, number: int | None
) -> Iterator[BlockWorkers]:
    """Whoever the options name; workers that were started here end with the context.

    Parameters
    ----------
    model : loaded here.
    choice : how workers load the same.
    scheduler : "local" (processes on this computer), the address of a Dask scheduler or the
        file in which it wrote that; None: this process.
    number : of local workers, or of workers to wait for. Given alone it means "local".

    Raises
    ------
    UsageError : Dask is not installed, or the number is none.
    SchedulerError : the scheduler does not answer, or its workers are not fit.
    """
    if number is not None and number < 1:
        raise UsageError(f"--workers {number}", "there must be one", "Give 1 or more.")
    if scheduler is None and number is None:
        yield InProcess(model)
        return
    from pathosam_qupath.dask_cluster import connected
    from pathosam_qupath.dask_workers import DaskWorkers

    with (
        connected(scheduler or LOCAL, number, choice.device) as client,
        DaskWorkers(client, choice, model.info) as workers,
    ):
        yield workers
