"""The blocks of an image that a run has finished, on disk as they come.

One file per image, only ever appended to: first what the blocks were computed from (the
identity), then a record per finished block with its objects as they left the watershed.
Each record carries its length and a checksum and is on the disk before the next block is
waited for. A kill or a power cut can therefore only tear the last record; on opening, the
file is cut back to the last whole one, and that block is computed again.

::

    "PSBLOCK1"
    record*     mark ("PLAN" | "BLCK"), block number, length, xxh3-64 of all of these and
                the payload; payload (identity as JSON | Arrow IPC stream of one batch)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import shapely
import xxhash

from pathosam_qupath.errors import RunError
from pathosam_qupath.segmentation.objects import Objects
from pathosam_qupath.segmentation.pipeline import BlockResult
from pathosam_qupath.segmentation.tile_maps import Quality
from pathosam_qupath.segmentation.tiling import TileIndex

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"PSBLOCK1"
_HEADER = struct.Struct("<4sIQQ")
_PLAN, _BLOCK = b"PLAN", b"BLCK"
_LONGEST = 1 << 34


class BlockLedger:
    """An open ledger; a context manager. Made by :func:`open_ledger`.

    Attributes
    ----------
    objects : how many objects the finished blocks hold.
    differences : why the blocks of an earlier attempt could not be used; empty where they
        could, or where there were none.
    """

    def __init__(
        self, path: Path, file: BinaryIO, found: _Found, differences: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.differences = list(differences)
        self.objects = found.objects
        self._starts = found.starts
        self._file = file

    @property
    def done(self) -> Collection[int]:
        """Numbers of the blocks that need not be computed again."""
        return self._starts.keys()

    def append(self, result: BlockResult) -> None:
        """Put a finished block on the disk.

        Raises
        ------
        RunError : the disk is full or gone.
        """
        start = self._file.tell()
        _append(self.path, self._file, _BLOCK, result.number, packed(result))
        self._starts[result.number] = start
        self.objects += len(result.objects.anchors)

    def results(self) -> Iterator[BlockResult]:
        """Every finished block by its number, whatever the order in which they were finished.

        Raises
        ------
        RunError : a record has changed since it was written.
        """
        with self.path.open("rb") as file:
            for number in sorted(self._starts):
                file.seek(self._starts[number])
                mark, found, payload, _ = next(_records(file), (b"", 0, b"", 0))
                if (mark, found) != (_BLOCK, number):
                    raise RunError(
                        self.path,
                        f"block {number} cannot be read back",
                        "Check the disk, then run the same command again.",
                    )
                yield unpacked(number, payload)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> BlockLedger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass
class _Found:
    """What a file holds: where each block's record begins, and how many objects there are.

    ``end`` is that of the last whole record; ``identity`` is None where there is none.
    """

    identity: dict[str, Any] | None = None
    starts: dict[int, int] = field(default_factory=dict)
    objects: int = 0
    end: int = 0


def open_ledger(path: Path, identity: Mapping[str, Any]) -> BlockLedger:
    """Go on with an image's ledger, or begin one.

    Parameters
    ----------
    identity : everything that the objects depend on, as JSON can hold it. A ledger of
        another identity is begun anew, and ``differences`` says why.

    Raises
    ------
    RunError : the file cannot be made or written.
    """
    identity = json.loads(json.dumps(identity))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = _read(path)
        then = earlier.identity
        differences = [] if then is None else differing(then, identity)
        if then is not None and not differences:
            file = path.open("r+b")
            file.truncate(earlier.end)
            file.seek(earlier.end)
            return BlockLedger(path, file, earlier)
        file = path.open("w+b")
        file.write(_MAGIC)
    except OSError as error:
        raise _unwritable(path, error) from error
    _append(path, file, _PLAN, 0, json.dumps(identity).encode())
    _sync_folder(path.parent)
    return BlockLedger(path, file, _Found(), differences)


def differing(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, in words: ``"mpp: 0.25 then, 0.5 now"``."""
    found: list[str] = []
    for name in {**then, **now}:
        one, other = then.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differing(one, other, f"{prefix}{name} ")
        elif one != other:
            found.append(f"{prefix}{name}: {_short(one)} then, {_short(other)} now")
    return found


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _read(path: Path) -> _Found:
    """What there is up to the last whole record."""
    found = _Found()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return found
        start = len(_MAGIC)
        for mark, number, payload, end in _records(file):
            if mark == _PLAN and found.identity is None:
                found.identity = json.loads(payload)
            elif mark == _BLOCK and found.identity is not None and number not in found.starts:
                found.starts[number] = start
                found.objects += _table(payload).num_rows
            else:
                break
            found.end = start = end
    return found


def _records(file: BinaryIO) -> Iterator[tuple[bytes, int, bytes, int]]:
    """(mark, number, payload, end) of each whole record, up to the first that is not."""
    while True:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return
        mark, number, length, checksum = _HEADER.unpack(head)
        if mark not in (_PLAN, _BLOCK) or length > _LONGEST:
            return
        payload = file.read(length)
        if len(payload) < length or _checksum(mark, number, payload) != checksum:
            return
        yield mark, number, payload, file.tell()


def _append(path: Path, file: BinaryIO, mark: bytes, number: int, payload: bytes) -> None:
    head = _HEADER.pack(mark, number, len(payload), _checksum(mark, number, payload))
    try:
        file.write(head + payload)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def _checksum(mark: bytes, number: int, payload: bytes) -> int:
    digest = xxhash.xxh3_64(mark + struct.pack("<IQ", number, len(payload)))
    digest.update(payload)
    return int(digest.intdigest())


def packed(result: BlockResult) -> bytes:
    """A block as an Arrow IPC stream: anchors, polygons as WKB, class sums, quality of tiles."""
    import pyarrow as pa

    objects = result.objects
    classes = objects.class_sums.shape[1]
    columns = {
        "x": pa.array(objects.anchors[:, 0]),
        "y": pa.array(objects.anchors[:, 1]),
        "polygon": pa.array(list(shapely.to_wkb(objects.polygons)), pa.binary()),
        **{f"class {i}": pa.array(objects.class_sums[:, i]) for i in range(classes)},
    }
    quality = json.dumps([[*tile, seen] for tile, seen in result.quality.items()])
    batch = pa.RecordBatch.from_pydict(columns, metadata={"quality": quality})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def unpacked(number: int, payload: bytes) -> BlockResult:
    """The way back from :func:`packed`."""
    table = _table(payload)
    anchors = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.int64)
    polygons = np.asarray(shapely.from_wkb(np.array(table["polygon"].to_pylist(), object)), object)
    names = [name for name in table.column_names if name.startswith("class ")]
    sums = np.zeros((len(anchors), len(names)))
    for i, name in enumerate(names):
        sums[:, i] = table[name].to_numpy()
    quality: dict[TileIndex, Quality] = {
        (column, row): seen for column, row, seen in json.loads(table.schema.metadata[b"quality"])
    }
    return BlockResult(number, Objects(anchors, polygons, sums), quality)


def _table(payload: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(payload).read_all()


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable (a folder cannot be opened on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        path,
        f"the finished blocks cannot be written ({error})",
        "Make room on the disk, then run the same command again: it goes on from here.",
    )
