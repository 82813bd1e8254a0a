"""Which regions somebody has looked at, so that an untouched nucleus in them is a right one.

An annotation says that its area was reviewed by

* its class or name, where that is ``reviewed`` or ``PathoSAM: reviewed`` (in any case; a
  class that has such a part counts too: ``Tumor: reviewed``),
* the metadata key ``PathoSAM reviewed``, which the menu in QuPath sets, or
* being locked.

The mark must have been set since the run: nuclei that a later run put into a region have
not been reviewed with it, and an annotation is often locked before, against slips of the
hand.
"""

from __future__ import annotations

from collections.abc import Collection

from pathosam_qupath.qupath.objects import PathObject
from pathosam_qupath.regions import is_ignored, is_wanted, reason_against

REVIEWED_KEY = "PathoSAM reviewed"
REMARK = "PathoSAM"
"""Objects whose class is derived from this are remarks of this tool, never nuclei."""

_REVIEWED = "reviewed"


def review_marks(annotation: PathObject) -> frozenset[str]:
    """The marks that an annotation carries: "class", "name", "mark", "lock"."""
    marks = set[str]()
    if _REVIEWED in _parts(annotation.classification):
        marks.add("class")
    if _parts(annotation.name) in ([_REVIEWED], [REMARK.lower(), _REVIEWED]):
        marks.add("name")
    if annotation.metadata.get(REVIEWED_KEY, "").strip():
        marks.add("mark")
    if annotation.locked:
        marks.add("lock")
    return frozenset(marks)


def why_reviewed(
    annotation: PathObject,
    before: PathObject | None,
    words: Collection[str] = (),
    *,
    treated: bool = True,
) -> str | None:
    """Why an annotation's area counts as reviewed, or None.

    Parameters
    ----------
    before : the annotation as it was before the run; None where it did not exist then.
    treated : whether a run treated some of it; a lock says nothing where none did.
    words : further classes or names that mark reviewed regions ("all" takes every one),
        whenever they were given.
    """
    if is_ignored(annotation) or reason_against(annotation) is not None:
        return None
    if words and is_wanted(annotation, tuple(words)):
        return "chosen"
    since = review_marks(annotation) - (frozenset() if before is None else review_marks(before))
    return min(since if treated else since - {"lock"}, default=None)


def is_remark(classification: str | None) -> bool:
    """Whether an object's class says that it is a remark of this tool."""
    return classification is not None and classification.split(":")[0].strip() == REMARK


def _parts(text: str | None) -> list[str]:
    return [part.strip().lower() for part in (text or "").split(":")]
