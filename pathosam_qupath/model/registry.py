"""PathoSAM's published files: names, addresses, hashes, and a cache shared with micro-sam.

Names, addresses and hashes are those of micro-sam's and patho-sam's registries. Files lie
where micro-sam keeps them, under the names it uses, so that what one of the two
downloaded serves the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathosam_qupath.errors import ModelError, UsageError

Progress = Callable[[str, int, "int | None"], None]
"""Called with the file's name, the bytes that are there, and the bytes in all if known."""

OFFLINE_VARIABLE = "PATHOSAM_OFFLINE"
"""Environment variable that, if set and not 0, forbids downloads."""

CHUNK = 1 << 20
"""Bytes per step of a download."""

TIMEOUT = 30
"""Seconds without a byte after which a server counts as gone."""

MPP = 0.25
"""Micrometres per pixel of PathoSAM's training images (40x)."""

CLASSES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
"""PanNuke's classes; ids 1…5 of the reference's semantic labels."""

COLORS = ((220, 30, 40), (50, 170, 60), (40, 110, 220), (120, 120, 120), (250, 160, 40))


@dataclass(frozen=True)
class PublishedFile:
    """A file that can be downloaded.

    Attributes
    ----------
    name : its name in the cache.
    url : where it is published.
    hash : algorithm and digest, as ``xxh128:…`` or ``sha256:…``.
    """

    name: str
    url: str
    hash: str


@dataclass(frozen=True)
class PublishedModel:
    """A model and its files.

    Attributes
    ----------
    name : the model's name for people.
    architecture : of the image encoder.
    sam : file of SAM's weights.
    decoder : file of the instance decoder; None where none was published.
    semantic : file of the semantic decoder (nucleus classes); None where there is none.
    description : one line for a list.
    parameters : in millions, decoders included.
    licence, source : under what and where its publisher offers it.
    """

    name: str
    architecture: str
    sam: PublishedFile
    decoder: PublishedFile | None
    semantic: PublishedFile | None
    description: str
    parameters: float
    licence: str = "MIT (of PathoSAM's code)"
    source: str = "https://github.com/computational-cell-analytics/patho-sam"

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """All files of the model."""
        return tuple(f for f in (self.sam, self.decoder, self.semantic) if f is not None)


def _owncloud(name: str, share: str, digest: str) -> PublishedFile:
    return PublishedFile(name, f"https://owncloud.gwdg.de/index.php/s/{share}/download", digest)


MODELS: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            "vit_b_histopathology",
            "vit_b",
            _owncloud(
                "vit_b_histopathology", "sBB4H8CTmIoBZsQ", "xxh128:ffd1a2cd84570458b257bd95fdd8f974"
            ),
            _owncloud(
                "vit_b_histopathology_decoder",
                "KO9AWqynI7SFOBj",
                "xxh128:6a66194dcb6e36199cbee2214ecf7213",
            ),
            _owncloud(
                "vit_b_histopathology_semantic_segmentation_decoder",
                "TFbI25UZoixd1hi",
                "sha256:bdd05a55c72c02abce72a7aa6885c6ec21df9c43fda9cf3c5d11ef5788de0ab0",
            ),
            "PathoSAM, base: nuclei and, by its semantic decoder, five classes",
            115.8,
        ),
        PublishedModel(
            "vit_l_histopathology",
            "vit_l",
            _owncloud(
                "vit_l_histopathology", "IZgnn1cpBq2PHod", "xxh128:b591833c89754271023e901281dee3f2"
            ),
            _owncloud(
                "vit_l_histopathology_decoder",
                "oIs6VSmkOp7XrKF",
                "xxh128:46aab7765d4400e039772d5a50b55c04",
            ),
            None,
            "PathoSAM, large: nuclei without classes",
            323.4,
        ),
        PublishedModel(
            "vit_h_histopathology",
            "vit_h",
            _owncloud(
                "vit_h_histopathology", "L7AcvVz7DoWJ2RZ", "xxh128:bd1856dafc156a43fb3aa705f1a6e92e"
            ),
            _owncloud(
                "vit_h_histopathology_decoder",
                "1qAKxy5H0jgwZvM",
                "xxh128:3ed9f87e46ad5e16935bd8d722c8dc47",
            ),
            None,
            "PathoSAM, huge: nuclei without classes",
            652.1,
        ),
        PublishedModel(
            "vit_t",
            "vit_t",
            _owncloud("vit_t", "TuDzuwVDHd1ZDnQ", "xxh128:8eadbc88aeb9d8c7e0b4b60c3db48bd0"),
            None,
            None,
            "MobileSAM: small, prompts only (needs the package mobile_sam)",
            10.1,
            "Apache-2.0 (of MobileSAM's code)",
            "https://github.com/ChaoningZhang/MobileSAM",
        ),
    )
}


@dataclass(frozen=True)
class FileStatus:
    """Where a published file is, if anywhere.

    Attributes
    ----------
    path : its place in the cache.
    present : whether there is a file.
    found_hash : hash of what is there, in the registry's algorithm; None if not present.
    """

    file: PublishedFile
    path: Path
    present: bool
    found_hash: str | None

    @property
    def intact(self) -> bool:
        """Whether the file is there and is the published one."""
        return self.found_hash == self.file.hash


def find_model(name: str) -> PublishedModel:
    """The published model of a name.

    Raises
    ------
    UsageError
        If there is none.
    """
    if name not in MODELS:
        raise UsageError(
            f"model {name}",
            f"expected one of {', '.join(MODELS)}",
            "Give one of these; `pathosam-qupath models list` says more about them.",
        )
    return MODELS[name]


def cache_directory() -> Path:
    """micro-sam's model cache: $MICROSAM_CACHEDIR/models or the platform's cache folder."""
    import pooch

    base = os.environ.get("MICROSAM_CACHEDIR") or pooch.os_cache("micro_sam")
    return Path(base).expanduser() / "models"


def file_hash(path: Path, algorithm: str = "xxh128") -> str:
    """Algorithm and digest of a file, as ``xxh128:…``.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    import pooch

    try:
        return f"{algorithm}:{pooch.file_hash(str(path), alg=algorithm)}"
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})", "Check the path.") from error


def status(file: PublishedFile) -> FileStatus:
    """Whether a published file is in the cache, and whether it is what it should be."""
    path = cache_directory() / file.name
    if not path.is_file():
        return FileStatus(file, path, False, None)
    return FileStatus(file, path, True, file_hash(path, file.hash.partition(":")[0]))


def verify(path: Path, file: PublishedFile) -> None:
    """Check that a file is the published one.

    Raises
    ------
    ModelError
        With the hash that was expected and the one that was found.
    """
    found = file_hash(path, file.hash.partition(":")[0])
    if found != file.hash:
        raise ModelError(
            path,
            f"expected {file.name} with {file.hash}, found {found} ({path.stat().st_size:,} bytes)",
            f"Get the file again from {file.url}",
        )


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    return os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")


def fetch(
    file: PublishedFile, *, offline: bool | None = None, progress: Progress | None = None
) -> Path:
    """The path of a published file, downloaded into the cache if it is not there.

    A download that broke off goes on where it stopped, if the server can do that. The
    hash is checked whether the file was there or not; a damaged file is replaced.

    Parameters
    ----------
    offline : True never downloads; None asks the environment.

    Raises
    ------
    ModelError
        If the file is not there and cannot be downloaded, or is not the published one.
    """
    import pooch
    import requests

    found = status(file)
    if found.intact:
        return found.path
    if is_offline() if offline is None else offline:
        state = "is damaged" if found.present else "is not there"
        raise ModelError(
            found.path,
            f"the file {state}, and downloads are switched off",
            f"Download {file.url} elsewhere and run: {_importing(file)}",
        )
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            file.url,
            known_hash=file.hash,
            fname=file.name,
            path=found.path.parent,
            downloader=_Resuming(file, progress),
        )
    except (requests.RequestException, OSError) as error:
        raise ModelError(
            file.url,
            f"the download of {file.name} failed ({error})",
            "Try again: what has arrived is kept. Or download it with a browser and run: "
            f"{_importing(file)}",
        ) from error
    except ValueError as error:
        raise ModelError(
            file.url,
            f"expected {file.name} with {file.hash}, and what arrived is something else",
            f"Try again later, or get the file from its publisher and run: {_importing(file)}",
        ) from error
    return found.path


def _importing(file: PublishedFile) -> str:
    return f"pathosam-qupath models import FILE --as {file.name}"


@dataclass(frozen=True)
class _Resuming:
    """A downloader for pooch that keeps what has arrived beside the file, as ``….part``."""

    file: PublishedFile
    progress: Progress | None

    def __call__(
        self,
        url: str,
        output_file: Any,  # noqa: ANN401
        pooch: object,
        check_only: bool = False,
    ) -> None:
        import requests

        part = Path(output_file).parent / (self.file.name + ".part")
        there = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={there}-"} if there else {}
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()
                raise requests.ConnectionError("the part that was kept did not fit the file")
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                there = 0
            length = response.headers.get("Content-Length")
            total = there + int(length) if length else None
            with part.open("ab" if there else "wb") as stream:
                for chunk in response.iter_content(CHUNK):
                    stream.write(chunk)
                    there += len(chunk)
                    if self.progress is not None:
                        self.progress(self.file.name, there, total)
        if total is not None and there < total:
            raise requests.ConnectionError(f"{there:,} of {total:,} bytes arrived")
        part.replace(output_file)


def import_file(source: Path, name: str) -> Path:
    """Put a file that was downloaded elsewhere into the cache, after checking it.

    Parameters
    ----------
    name : the published file's name, for instance ``vit_b_histopathology_decoder``.

    Raises
    ------
    UsageError
        If no published file has this name.
    ModelError
        If the file is not that published file.
    """
    known = {file.name: file for model in MODELS.values() for file in model.files}
    if name not in known:
        raise UsageError(
            f"file {name}", f"expected one of {', '.join(known)}", "Give one of these names."
        )
    verify(source, known[name])
    return _copy_into_cache(source, name)


def _copy_into_cache(source: Path, name: str) -> Path:
    target = cache_directory() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=name + ".")
    os.close(handle)
    try:
        shutil.copyfile(source, temporary)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


@dataclass(frozen=True)
class ModelFiles:
    """Paths of a model's files in the cache."""

    sam: Path
    decoder: Path | None
    semantic: Path | None


def fetch_model(
    name: str,
    *,
    semantic: bool = True,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> ModelFiles:
    """All files of a published model, downloaded where they are missing.

    Parameters
    ----------
    semantic : whether the semantic decoder, where there is one, is wanted too.

    Raises
    ------
    UsageError, ModelError
        As :func:`find_model` and :func:`fetch`.
    """
    model = find_model(name)

    def path(file: PublishedFile | None) -> Path | None:
        return None if file is None else fetch(file, offline=offline, progress=progress)

    return ModelFiles(
        sam=fetch(model.sam, offline=offline, progress=progress),
        decoder=path(model.decoder),
        semantic=path(model.semantic) if semantic else None,
    )
