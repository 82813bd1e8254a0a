"""Embeddings that were made before: in memory and on disk, both within a bound.

An embedding costs seconds on a processor and answers a prompt in milliseconds, so the ones
that were used last are kept. On disk they outlive the program, and several programs may
share them: files appear whole or not at all, and whatever is not exactly the file that was
written (cut off, damaged, of other pixels, foreign) counts as absent and is replaced.

Files are safetensors below one folder per model, slide and resolution, named after the
tile. Their header holds a digest of the pixels that were embedded and one of the arrays.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from pathosam_qupath.errors import ImageError
from pathosam_qupath.model.prompts import Arrays, PromptableModel, TileEmbedding

FORMAT = "pathosam-qupath embedding 1"
"""In the header of every file; another number is another layout."""

ABANDONED = 3600
"""Seconds after which a file that was never finished is swept away."""

_log = logging.getLogger(__name__)

_Embedding = TypeVar("_Embedding", bound=TileEmbedding)

Pixels = NDArray[np.uint8]


class Tile(NamedTuple):
    """A rectangle of a slide, in pixels at the model's µm/px."""

    x: int
    y: int
    width: int
    height: int


class EmbeddingCache(Generic[_Embedding]):
    """A model's embeddings of one slide. Thread-safe: what two ask for is made once.

    Parameters
    ----------
    model : makes what is not there.
    memory : bytes of embeddings to hold; a single one is held even if it is larger.
    store : where embeddings are on disk; None for nowhere.
    """

    def __init__(
        self,
        model: PromptableModel[_Embedding],
        *,
        memory: int,
        store: EmbeddingStore | None = None,
    ) -> None:
        self.memory = memory
        self._model, self._store = model, store
        self._lock = threading.Lock()
        self._held: OrderedDict[Tile, _Embedding] = OrderedDict()
        self._pending: dict[Tile, Future[_Embedding]] = {}

    @property
    def used(self) -> int:
        """Bytes of the embeddings in memory."""
        with self._lock:
            return self._bytes()

    def tiles(self) -> list[Tile]:
        """Tiles that need no encoder: in memory, last used first, then those on disk."""
        with self._lock:
            held = list(reversed(self._held))
        return held + ([] if self._store is None else self._store.tiles())

    def get(self, tile: Tile, read: Callable[[], Pixels]) -> _Embedding:
        """The embedding of a tile, from memory, else from disk, else made.

        Parameters
        ----------
        read : gives the tile's pixels; called unless the embedding is in memory.
        """
        with self._lock:
            held = self._held.get(tile)
            if held is not None:
                self._held.move_to_end(tile)
                return held
            pending = self._pending.get(tile)
            if pending is None:
                mine: Future[_Embedding] = Future()
                self._pending[tile] = mine
        if pending is not None:
            return pending.result()
        try:
            made = self._load_or_make(tile, read())
        except BaseException as error:
            with self._lock:
                del self._pending[tile]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[tile]
            self._held[tile] = made
            while len(self._held) > 1 and self._bytes() > self.memory:
                self._held.popitem(last=False)
        mine.set_result(made)
        return made

    def _bytes(self) -> int:
        return sum(embedding.nbytes for embedding in self._held.values())

    def _load_or_make(self, tile: Tile, pixels: Pixels) -> _Embedding:
        if self._store is None:
            return self._model.embed(pixels)
        arrays = self._store.load(tile, pixels)
        if arrays is not None:
            try:
                return self._model.embedding_from_arrays(arrays)
            except (ValueError, KeyError) as error:
                _log.warning("embedding of %s on disk is not this model's: %s", tile, error)
        made = self._model.embed(pixels)
        self._store.save(tile, pixels, made.to_arrays())
        return made


class EmbeddingStore:
    """Embeddings on disk, those of one model, slide and resolution among others.

    Parameters
    ----------
    scope : what the embeddings depend on beside the tile: the weights' hash, what the slide
        is, the µm/px. Other scopes share the folder and the bound, never an embedding.
    limit : bytes of all embeddings in the folder; those used longest ago go first.
    folder : None for a folder in the user's cache directory.
    """

    def __init__(self, scope: str, *, limit: int, folder: Path | None = None) -> None:
        self.limit = limit
        self.root = default_folder() if folder is None else Path(folder)
        self.folder = self.root / hashlib.sha256(scope.encode()).hexdigest()[:32]
        self._scope = scope

    def tiles(self) -> list[Tile]:
        """Tiles of this scope that are on disk, in no order; their files may be damaged."""
        try:
            names = [entry.name for entry in os.scandir(self.folder)]
        except OSError:
            return []
        matches = (_TILE_FILE.fullmatch(name) for name in names)
        return [Tile(*map(int, match.groups())) for match in matches if match is not None]

    def load(self, tile: Tile, pixels: Pixels) -> Arrays | None:
        """What was saved for a tile that had just these pixels; None if nothing is usable."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / _file_name(tile)
        try:
            with safe_open(path, framework="numpy") as file:
                header = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            _log.info("%s is not used: %s", path, error)
            return None
        if header != self._header(tile, pixels, arrays):
            _log.info("%s is not used: it is damaged or of other pixels", path)
            return None
        _touch(path)
        return arrays

    def save(self, tile: Tile, pixels: Pixels, arrays: Arrays) -> None:
        """Keep the arrays of a tile, and make room for them.

        A disk that cannot be written costs time later, not the result now: it is logged.
        """
        from safetensors.numpy import save

        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = save(whole, metadata=self._header(tile, pixels, whole))
        if len(content) > self.limit:
            return
        path = self.folder / _file_name(tile)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content), path)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=_TEMPORARY)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("embeddings cannot be kept in %s: %s", self.folder, error)

    def _header(self, tile: Tile, pixels: Pixels, arrays: Arrays) -> dict[str, str]:
        return {
            "format": FORMAT,
            "scope": self._scope,
            "tile": _file_name(tile),
            "pixels": f"{pixels.shape} {_digest(pixels)}",
            "arrays": " ".join(f"{name} {_digest(arrays[name])}" for name in sorted(arrays)),
        }

    def _make_room(self, needed: int, replaced: Path) -> None:
        """Delete embeddings of any scope, the longest unused first, until there is room."""
        files = sorted(self._files(replaced))
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + needed <= self.limit:
                return
            path.unlink(missing_ok=True)
            used -= size

    def _files(self, replaced: Path) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of the embeddings; what was abandoned is deleted."""
        for folder in self.root.iterdir():
            if not _SCOPE_FOLDER.fullmatch(folder.name) or not folder.is_dir():
                continue
            for path in folder.iterdir():
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                if path.name.startswith(_TEMPORARY):
                    if time.time() - facts.st_mtime > ABANDONED:
                        path.unlink(missing_ok=True)
                elif _TILE_FILE.fullmatch(path.name) and path != replaced:
                    yield facts.st_mtime, facts.st_size, path


_TILE_FILE = re.compile(r"(-?\d+)_(-?\d+)_(\d+)_(\d+)\.safetensors")
_SCOPE_FOLDER = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = ".writing-"


def _file_name(tile: Tile) -> str:
    return f"{tile.x}_{tile.y}_{tile.width}_{tile.height}.safetensors"


def _digest(array: NDArray[np.generic]) -> str:
    return xxhash.xxh128(np.ascontiguousarray(array).data).hexdigest()


def _touch(path: Path) -> None:
    """Note that a file was used; another program may just have deleted it."""
    try:
        os.utime(path)
    except OSError as error:
        _log.info("%s cannot be marked as used: %s", path, error)


def default_folder() -> Path:
    """Where embeddings are on disk unless another folder is given."""
    import pooch

    return Path(pooch.os_cache("pathosam-qupath")) / "embeddings"


def file_fingerprint(path: str | Path) -> str:
    """What tells a slide's file from others, without reading all of it.

    Size, time of the last change, and a digest of its beginning and its end.

    Raises
    ------
    ImageError
        If the file cannot be read.
    """
    path = Path(path)
    try:
        facts = path.stat()
        digest = xxhash.xxh128()
        with path.open("rb") as stream:
            digest.update(stream.read(_PROBE))
            stream.seek(max(0, facts.st_size - _PROBE))
            digest.update(stream.read(_PROBE))
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})", "Check the path.") from error
    return f"{facts.st_size}-{facts.st_mtime_ns}-{digest.hexdigest()}"


_PROBE = 1 << 16
"""Bytes of a file's beginning and end that its fingerprint reads."""
