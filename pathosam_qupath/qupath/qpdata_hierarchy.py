"""The hierarchy of objects in a ``.qpdata`` stream: walked, thinned out, added to.

Children are kept in their order. Nothing is resolved anew: an object stays under the
parent that the file gives it, as QuPath does when it reads the file.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from pathosam_qupath.errors import ProjectError
from pathosam_qupath.qupath.java_objects import BlockData, JavaObject, Node, Run
from pathosam_qupath.qupath.java_runs import ObjectRun
from pathosam_qupath.qupath.qpdata_batches import indices_of, without_ids
from pathosam_qupath.qupath.qpdata_objects import (
    NO_ID,
    ObjectParts,
    children_of,
    damaged,
    list_items,
    object_type,
    read_id,
    read_parts,
)

HIERARCHY = "qupath.lib.objects.hierarchy.PathObjectHierarchy"


@dataclass(frozen=True)
class TmaGrid:
    """A tissue microarray: ids of its cores row by row, and which of them are missing."""

    width: int
    height: int
    cores: tuple[UUID, ...]
    missing: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Place:
    """An entry of the hierarchy: an object with its parts, or a run of leaf objects."""

    node: JavaObject | ObjectRun
    parts: ObjectParts | None
    id: UUID | None
    parent: UUID | None


class Hierarchy:
    """The objects of one stream.

    Parameters
    ----------
    node : the stream's ``PathObjectHierarchy``, or None for a file without one.
    subject : what an error is about.
    """

    def __init__(self, node: JavaObject | None, subject: object) -> None:
        self._node = node
        self._subject = subject
        self._given_ids: dict[JavaObject, UUID] = {}
        root = node.get("rootObject") if node is not None else None
        self.root = root if isinstance(root, JavaObject) else None

    def has_ids(self) -> bool:
        """Whether the root has an id; objects of files before QuPath 0.4 have none."""
        return self.root is None or read_id(read_parts(self.root, self._subject)) is not None

    def walk(self, *, runs: bool = True) -> Iterator[Place]:
        """Every object, parents before children, the root first.

        Parameters
        ----------
        runs : False skips the runs of leaf detections.
        """
        stack: list[tuple[Node, UUID | None]] = [(self.root, None)] if self.root else []
        seen: set[Node] = set()
        while stack:
            node, parent = stack.pop()
            if isinstance(node, ObjectRun):
                yield Place(node, None, None, parent)
                continue
            if not isinstance(node, JavaObject):
                raise damaged(self._subject, "a child in the hierarchy is no object")
            if node in seen:
                raise damaged(self._subject, "an object is in the hierarchy twice")
            seen.add(node)
            parts = read_parts(node, self._subject)
            identifier = None if node is self.root else self.id_of(node, parts)
            yield Place(node, parts, identifier, parent)
            below = parent if object_type(node.of) is None else identifier
            children = [c for c in children_of(node, parts) if runs or isinstance(c, JavaObject)]
            stack.extend((child, below) for child in reversed(children))

    def id_of(self, node: JavaObject, parts: ObjectParts) -> UUID:
        """An object's id; where the file has none, one that lasts as long as this reading."""
        found = read_id(parts)
        if found is not None:
            return found
        if node not in self._given_ids:
            self._given_ids[node] = uuid5(NO_ID, str(len(self._given_ids)))
        return self._given_ids[node]

    def tma_grid(self) -> TmaGrid | None:
        """The grid of a tissue microarray, or None."""
        grid = self._node.get("tmaGrid") if self._node is not None else None
        if not isinstance(grid, JavaObject):
            return None
        cores = [n for n in list_items(grid.get("cores")) if isinstance(n, JavaObject)]
        parts = [read_parts(core, self._subject) for core in cores]
        return TmaGrid(
            int(grid.get("gridWidth", 0)),
            int(grid.get("gridHeight", 0)),
            tuple(self.id_of(core, p) for core, p in zip(cores, parts, strict=True)),
            tuple(p.missing for p in parts),
        )

    def remove(self, ids: Collection[UUID]) -> int:
        """Take objects out; their children go to the end of their parent's list.

        Returns
        -------
        int : how many there were.

        Raises
        ------
        ProjectError : one of them is a TMA core, which the grid needs.
        """
        wanted = frozenset(ids)
        places = list(self.walk())
        cores = [
            p.id
            for p in places
            if p.id in wanted
            and isinstance(p.node, JavaObject)
            and object_type(p.node.of) == "tma_core"
        ]
        if cores:
            raise ProjectError(
                self._subject,
                f"TMA core {cores[0]} cannot be removed, the TMA grid refers to it",
                "Remove the TMA grid in QuPath.",
            )
        removed = 0
        gone = {p.node for p in places if p.id in wanted}
        left: dict[JavaObject, list[Node]] = {}
        for place in reversed(places):
            node, parts = place.node, place.parts
            if not isinstance(node, JavaObject) or parts is None:
                continue
            kept: list[Node] = []
            moved: list[Node] = []
            before = list(children_of(node, parts))
            for child in before:
                if isinstance(child, ObjectRun):
                    thinner = without_ids(child, wanted, self._subject)
                    removed += len(child) - len(thinner)
                    if len(thinner):
                        kept.append(thinner)
                elif child in gone and isinstance(child, JavaObject):
                    removed += 1
                    moved.extend(left[child])
                else:
                    kept.append(child)
            left[node] = kept + moved
            if left[node] != before:
                self._set_children(node, parts, left[node])
        return removed

    def append(self, added: Mapping[UUID | None, Sequence[Node]]) -> None:
        """Put objects, or runs, at the end of their parents' lists (None: the root).

        Raises
        ------
        ProjectError : a parent is not in the hierarchy; nothing is changed then.
        """
        parents = self._places(added)
        if any(parent not in parents for parent in added):
            self._expand({p for p in added if p is not None and p not in parents})
            parents = self._places(added)
        missing = [p for p in added if p not in parents]
        if missing:
            raise ProjectError(
                self._subject,
                f"there is no object {missing[0] or 'at the root'} to put detections under",
                "Read the image's annotations again: it may have changed.",
            )
        for parent, nodes in added.items():
            place = parents[parent]
            if isinstance(place.node, JavaObject) and place.parts is not None:
                before = list(children_of(place.node, place.parts))
                self._set_children(place.node, place.parts, [*before, *nodes])

    def _places(self, ids: Collection[UUID | None]) -> dict[UUID | None, Place]:
        """Where objects of these ids are (None: the root), those in runs excepted."""
        places: dict[UUID | None, Place] = {}
        for place in self.walk(runs=False):
            if place.node is self.root:
                places[None] = place
            elif place.id in ids:
                places[place.id] = place
        return places

    def _expand(self, ids: Collection[UUID]) -> None:
        """Make nodes of the objects in runs that have these ids."""
        for place in list(self.walk(runs=False)):
            if not isinstance(place.node, JavaObject) or place.parts is None:
                continue
            children: list[Node] = []
            before = list(children_of(place.node, place.parts))
            for child in before:
                if isinstance(child, ObjectRun):
                    which = indices_of(child, ids, self._subject)
                    child.expanded.update({i: child.node(i) for i in which})
                    children.extend(child.pieces())
                else:
                    children.append(child)
            if len(children) != len(before) or any(
                a is not b for a, b in zip(children, before, strict=True)
            ):
                self._set_children(place.node, place.parts, children)

    def _set_children(self, node: JavaObject, parts: ObjectParts, children: list[Node]) -> None:
        contents = node.contents
        block = contents[parts.count_at]
        if not isinstance(block, BlockData):
            raise damaged(self._subject, "an object lacks its number of children")
        count = sum(len(c) if isinstance(c, Run) else 1 for c in children)
        raw = block.raw[:-4] + struct.pack(">i", count)
        contents[parts.count_at : parts.tail_at] = [BlockData(raw, block.long), *children]
