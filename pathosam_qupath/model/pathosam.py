"""PathoSAM behind the interface that the segmentation asks for.

One encoder pass per tile feeds the instance decoder and, where there is one, the semantic
decoder. The arithmetic of ``exact=True`` is the reference's but for float32 rounding; by
default matrix products and convolutions run in bfloat16 where the processor has it, which
leaves nearly every nucleus where it is.

Classes: the reference's semantic map is, at each pixel, the largest of six sigmoid maps,
background among them, and it is not joined with the nuclei. Here the pixels of a nucleus
vote: a pixel's vote is its largest map *among the five nucleus classes* — the reference's
label wherever that is not background — and a class's share of the votes is its
probability. Where a tile shows no foreground the semantic decoder is not run; the votes
are then split evenly, and no nucleus is there to count them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pathosam_qupath.errors import ModelError, UsageError
from pathosam_qupath.model.batching import BatchSize, prepared_ahead, upload
from pathosam_qupath.model.checkpoints import Checkpoint, read_checkpoint
from pathosam_qupath.model.convolutions import Window
from pathosam_qupath.model.interface import ModelInfo
from pathosam_qupath.model.preprocessing import PreparedTile, prepare
from pathosam_qupath.model.prompts import Arrays, Prompt, PromptedMask
from pathosam_qupath.model.registry import (
    CLASSES,
    COLORS,
    MODELS,
    MPP,
    ModelFiles,
    Progress,
    fetch_model,
    file_hash,
)
from pathosam_qupath.model.sam import Embedding, SamConfig, SamModel, build_sam
from pathosam_qupath.model.sam_prompts import segment_prompts
from pathosam_qupath.model.unetr import Normalization, UnetrDecoder, build_unetr

TILE = 512
HALO = 64
"""patho_sam's tiling: 384 pixels and 64 around them; 512 become SAM's 1024 exactly."""

NO_FOREGROUND = 0.05
"""A tile whose foreground nowhere exceeds this holds no nucleus at any useful threshold."""

WORKING_BYTES = 1_200_000_000
"""Memory that one tile takes on its way through the networks in float32 (measured)."""

LARGEST_BATCH = 8
"""Tiles that a GPU encodes at a time, if its memory allows; more gain nothing."""


def load_pathosam(
    name: str = "vit_b_histopathology",
    checkpoint: str | Path | None = None,
    device: str = "auto",
    exact: bool = False,
    *,
    decoder: str | Path | None = None,
    semantic: bool | str | Path = True,
    bn: Normalization = "tile",
    offline: bool | None = None,
    progress: Progress | None = None,
    config: SamConfig | None = None,
    compile: bool = False,
) -> PathosamModel:
    """Load PathoSAM, downloading what is missing, or any SAM with a UNETR decoder.

    Parameters
    ----------
    name : a published model (see ``registry.MODELS``); with a checkpoint, what to call it.
    checkpoint : a file instead of the published one, in any of the published layouts.
    device : "auto", "cpu", "cuda", "cuda:1", "mps".
    exact : float32 throughout; else bfloat16 where the device computes in it.
    decoder : file of the instance decoder, where the checkpoint does not hold it.
    semantic : whether classes are wanted where they were published; or a decoder's file.
    bn : normalise with the tile's own statistics, as the reference does, or with the
        checkpoint's running ones.
    offline : True never downloads; None asks the environment.
    progress : called while files arrive.
    config : SAM's architecture, where weights do not tell it.
    compile : let ``torch.compile`` make kernels for the encoder; the first tile then takes
        minutes, and a CPU needs a C++ compiler and gains nothing.

    Raises
    ------
    ModelError
        If files are missing, damaged, foreign, or do not go together.
    UsageError
        If no published model has this name.

    Examples
    --------
    >>> model = load_pathosam("vit_b_histopathology")  # doctest: +SKIP
    >>> model.predict(tiles).shape  # doctest: +SKIP
    (4, 8, 512, 512)
    """
    from pathosam_qupath.model import choose_device

    chosen = choose_device(device)
    files, paths = _files(name, checkpoint, decoder, semantic, offline, progress)
    sam = build_sam(_sam_state(files), config=config, subject=files.path)
    channels = sam.config.channels
    instances = None
    if paths.decoder is not None:
        instances = build_unetr(
            _decoder_state(read_checkpoint(paths.decoder)), channels=channels, subject=paths.decoder
        )
    elif files.decoder is not None:
        instances = build_unetr(files.decoder, channels=channels, subject=files.path)
    elif name not in MODELS or MODELS[name].decoder is not None:
        raise ModelError(
            files.path,
            "expected an instance decoder (decoder_state) beside SAM's weights, found none",
            "Give the decoder's file too (--decoder FILE), or a checkpoint that holds both, as "
            "micro-sam exports it.",
        )
    classes = None
    if paths.semantic is not None:
        classes = _semantic_decoder(paths.semantic, sam.config)
    used = dict.fromkeys(p for p in (paths.sam, paths.decoder, paths.semantic) if p is not None)
    return PathosamModel(
        sam,
        instances,
        classes,
        name=name if checkpoint is None else f"{Path(checkpoint).name} ({sam.config.architecture})",
        weights_hash="+".join(file_hash(path) for path in used),
        device=chosen,
        exact=exact,
        bn=bn,
        compile=compile,
    )


def _files(
    name: str,
    checkpoint: str | Path | None,
    decoder: str | Path | None,
    semantic: bool | str | Path,
    offline: bool | None,
    progress: Progress | None,
) -> tuple[Checkpoint, ModelFiles]:
    """SAM's checkpoint, and the paths of all the files in use."""
    given = None if isinstance(semantic, bool) else Path(semantic)
    if checkpoint is None:
        if given is not None and name in MODELS:
            _refuse_foreign_classes(given, MODELS[name].architecture)
        wanted = given is None and semantic is True
        published = fetch_model(name, semantic=wanted, offline=offline, progress=progress)
        paths = ModelFiles(
            published.sam,
            published.decoder if decoder is None else Path(decoder),
            given or published.semantic,
        )
    else:
        paths = ModelFiles(Path(checkpoint), None if decoder is None else Path(decoder), given)
    return read_checkpoint(paths.sam), paths


def _sam_state(files: Checkpoint) -> dict[str, Tensor]:
    if files.sam is None:
        raise ModelError(
            files.path,
            "expected SAM's weights, found a decoder alone",
            "Give SAM's checkpoint, and this file as its decoder.",
        )
    return files.sam


def _decoder_state(files: Checkpoint) -> dict[str, Tensor]:
    if files.decoder is None:
        raise ModelError(
            files.path,
            "expected a decoder, found SAM's weights alone",
            "Give the decoder's file, or a checkpoint with a decoder_state.",
        )
    return files.decoder


def _refuse_foreign_classes(path: Path, architecture: str) -> None:
    """Every decoder fits every encoder, but only one is right."""
    if architecture in ("vit_l", "vit_h", "vit_t"):
        raise ModelError(
            path,
            "the semantic decoder was trained on the embeddings of vit_b_histopathology; "
            f"on those of a {architecture} its classes mean nothing",
            "Use vit_b_histopathology, or go without classes.",
        )


def _semantic_decoder(path: Path, config: SamConfig) -> UnetrDecoder:
    """The decoder of classes."""
    _refuse_foreign_classes(path, config.architecture)
    decoder = build_unetr(
        _decoder_state(read_checkpoint(path)), channels=config.channels, subject=path
    )
    if decoder.outputs != len(CLASSES) + 1:
        raise ModelError(
            path,
            f"expected a decoder of {len(CLASSES) + 1} maps (background and "
            f"{len(CLASSES)} classes), found {decoder.outputs}",
            "Give the semantic decoder, not the instance decoder.",
        )
    return decoder


class PathosamModel:
    """A :class:`~pathosam_qupath.model.interface.NucleusModel` made of SAM and UNETR decoders.

    No normalisation mixes tiles, so a tile's maps do not depend on its batch. On a CPU tiles
    go through the networks one by one, never more at a time than free memory has room for,
    and at most half of them through the decoders, which need more memory and less time
    than the encoder; a GPU encodes batches, as large as its memory allows. Thread-safe.

    Parameters
    ----------
    sam, instances, classes : the networks; they become this model's own.
    tile, halo : sides of input tiles in pixels; SAM sees them resized to its input.
    """

    def __init__(
        self,
        sam: SamModel,
        instances: UnetrDecoder | None,
        classes: UnetrDecoder | None = None,
        *,
        name: str,
        weights_hash: str,
        device: str = "cpu",
        exact: bool = False,
        bn: Normalization = "tile",
        tile: int = TILE,
        halo: int = HALO,
        compile: bool = False,
    ) -> None:
        self.device = device
        self.exact = exact
        self.bn: Normalization = bn
        self.dtype = working_dtype(device, exact)
        self.sam = sam.to(device)
        if self.dtype != torch.float32:
            self.sam.lower_precision(self.dtype)
        if compile:
            self.sam.compile_encoder()
        self._instances, self._classes = instances, classes
        for decoder in (instances, classes):
            if decoder is not None:
                decoder.prepare(device, self.dtype)
        if self.dtype != torch.float32:
            _leave_file(self.sam, instances, classes)
        self.info = ModelInfo(
            name=name,
            weights_hash=weights_hash,
            mpp=MPP,
            tile=tile,
            halo=halo,
            classes=() if classes is None else CLASSES,
            colors=() if classes is None else COLORS,
            precision=str(self.dtype).removeprefix("torch."),
        )
        self._winners: WeakKeyDictionary[Embedding, NDArray[np.uint8]] = WeakKeyDictionary()
        self._batch = BatchSize(_batch_size(device), name)
        tiles = _tiles_at_a_time(device, sam.config.side)
        self._room = threading.BoundedSemaphore(tiles)
        self._decoding = threading.BoundedSemaphore((tiles + 1) // 2)

    def predict(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps of a batch of tiles.

        Parameters
        ----------
        tiles : (n, tile, tile, 3) uint8 RGB at 0.25 µm/px.

        Returns
        -------
        maps : (n, 3 + classes, tile, tile) float32, see :class:`NucleusModel`. In the halo
            they are background.

        Raises
        ------
        UsageError
            If the tiles have another shape.
        """
        side = self.info.tile
        if tiles.ndim != 4 or tiles.shape[1:] != (side, side, 3) or tiles.dtype != np.uint8:
            raise UsageError(
                "tiles",
                f"expected uint8 of shape (n, {side}, {side}, 3), found {tiles.dtype} "
                f"of shape {tiles.shape}",
                "Cut tiles of the size that the model's info names.",
            )
        prepared = prepared_ahead(list(tiles), self.sam.config.side, 2 * self._batch.size)
        maps: list[NDArray[np.float32]] = []
        while part := list(islice(prepared, self._batch.size)):
            maps += self._batch.run(part, lambda few: self._maps_of(few, self.info.halo))
        return np.stack(maps) if maps else self._background(0, side, side)

    def tile_maps(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps (3 + classes, height, width) of a whole tile of any size.

        As in the reference a tile of another size than ``info.tile`` is seen at another
        magnification: its longer side becomes SAM's input side.
        """
        return self._maps_of([self._prepare(tile)], halo=0)[0]

    def semantic_maps(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The semantic decoder's own maps: (6, height, width), background first.

        Raises
        ------
        ModelError
            If the model has no semantic decoder.
        """
        decoder = self._required(self._classes, "semantic decoder")
        with self._working():
            maps = self._decode(decoder, self.sam.embed(self._prepare(tile)), 0)
            return maps.cpu().numpy()

    def embed(self, tile: NDArray[np.uint8]) -> Embedding:
        """Embedding of a tile of any size, for prompts."""
        prepared = self._prepare(tile)
        with self._working():
            return self.sam.embed(prepared)

    def embedding_from_arrays(self, arrays: Arrays) -> Embedding:
        """An embedding from what its ``to_arrays`` gave.

        Raises
        ------
        ValueError, KeyError
            If the arrays are not those of one of this model's embeddings.
        """
        features, sizes = arrays["features"], arrays["sizes"]
        config = self.sam.config
        shape = (1, config.channels, config.grid, config.grid)
        if features.shape != shape or features.dtype != np.float32 or sizes.shape != (2, 2):
            raise ValueError(f"expected float32 {shape}, found {features.dtype} {features.shape}")
        (height, width), (rows, columns) = sizes.tolist()
        on_device = torch.from_numpy(features).to(self.device)
        return Embedding(on_device, (height, width), (rows, columns))

    def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[PromptedMask]:
        """The object of each prompt, which are in pixels of the tile; in their order."""
        return segment_prompts(self.sam, embedding, prompts)

    def embedded_maps(self, embedding: Embedding) -> NDArray[np.float32]:
        """Foreground, centre and boundary distance, (3, height, width) float32.

        Raises
        ------
        ModelError
            If the model has no instance decoder.
        """
        decoder = self._required(self._instances, "instance decoder")
        with self._working():
            return self._decode(decoder, embedding, 0)[:3].cpu().numpy()

    def embedded_classes(self, embedding: Embedding) -> NDArray[np.float32] | None:
        """Votes (classes, height, width) float32 of 0 or 1; None without semantic decoder.

        Decoded when first asked for, and kept as long as the embedding.
        """
        if self._classes is None:
            return None
        winners = self._winners.get(embedding)
        if winners is None:
            with self._working():
                semantic = self._decode(self._classes, embedding, 0)
                winners = semantic[1:].argmax(dim=0).to(torch.uint8).cpu().numpy()
            self._winners[embedding] = winners
        classes = np.arange(len(CLASSES), dtype=np.uint8)[:, None, None]
        votes: NDArray[np.float32] = (winners == classes).astype(np.float32)
        return votes

    def _prepare(self, tile: NDArray[np.uint8]) -> PreparedTile:
        return prepare(tile, self.sam.config.side)

    def _required(self, decoder: UnetrDecoder | None, what: str) -> UnetrDecoder:
        if decoder is None:
            raise ModelError(
                self.info.name, f"it has no {what}", "Choose vit_b_histopathology, which has one."
            )
        return decoder

    def _background(self, n: int, height: int, width: int) -> NDArray[np.float32]:
        """(n, 3 + classes, height, width) where nothing has been found."""
        maps = np.zeros((n, 3 + len(self.info.classes), height, width), np.float32)
        maps[:, 1:3] = 1
        maps[:, 3:] = 1 / max(1, len(self.info.classes))
        return maps

    def _maps_of(self, tiles: Sequence[PreparedTile], halo: int) -> list[NDArray[np.float32]]:
        """(3 + classes, height, width) of each tile; background where the halo is."""
        instances = self._required(self._instances, "instance decoder")
        results = []
        with self._working():
            features = self.sam.encode(upload(tiles, self.sam.config.side, self.device))
            for i, tile in enumerate(tiles):
                height, width = tile.original_size
                maps = self._background(1, height, width)[0]
                inner = maps[:, halo : height - halo, halo : width - halo]
                embedding = Embedding(features[i : i + 1], tile.original_size, tile.input_size)
                found = self._decode(instances, embedding, halo)[:3]
                inner[:3] = found.cpu().numpy()
                if self._classes is not None and bool((inner[0] > NO_FOREGROUND).any()):
                    semantic = self._decode(self._classes, embedding, halo)
                    inner[3:] = class_votes(semantic).cpu().numpy()
                results.append(maps)
        return results

    def _decode(self, decoder: UnetrDecoder, embedding: Embedding, halo: int) -> Tensor:
        """Maps of the tile without its halo: (outputs, height, width) float32."""
        side = self.sam.config.side
        height, width = embedding.original_size
        scale = side // height
        if height == width and scale * height == side and scale in (1, 2):
            window: Window = (scale * halo, scale * halo, side - scale * halo, side - scale * halo)
            with self._decoding:
                maps = decoder(embedding.features, window, self.bn)
            # Bilinear to the half, without antialiasing, is the mean of 2 x 2 pixels.
            return maps[0] if scale == 1 else functional.avg_pool2d(maps, 2)[0]
        rows, columns = embedding.input_size
        with self._decoding:
            maps = decoder(embedding.features, None, self.bn)[:, :, :rows, :columns]
        maps = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
        return maps[0, :, halo : height - halo, halo : width - halo]

    @contextmanager
    def _working(self) -> Iterator[None]:
        """While the networks run: no gradients, a place in memory, exactness if asked for."""
        with self._room, torch.inference_mode(), _full_float32(self.exact, self.device):
            yield


def class_votes(semantic: Tensor) -> Tensor:
    """(6, height, width) maps, background first, to (5, height, width) votes of 0 or 1."""
    winner = semantic[1:].argmax(dim=0)
    return functional.one_hot(winner, len(semantic) - 1).permute(2, 0, 1).float()


def semantic_labels(semantic: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The reference's semantic labels: the largest of six maps, the first of equal ones.

    Parameters
    ----------
    semantic : (6, height, width).

    Returns
    -------
    (height, width) uint8: 0 background, 1 neoplastic, 2 inflammatory, 3 connective, 4 dead,
    5 epithelial.
    """
    labels: NDArray[np.uint8] = semantic.argmax(axis=0).astype(np.uint8)
    return labels


def working_dtype(device: str, exact: bool) -> torch.dtype:
    """bfloat16 where the device multiplies it fast and exactness is not asked for.

    An NVIDIA GPU without it gets float16, a processor without it float32.
    """
    kind = device.partition(":")[0]
    if exact or kind == "mps":
        return torch.float32
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _leave_file(*modules: nn.Module | None) -> None:
    """Copy weights that still lie in a mapped file, so that all of it can leave memory."""
    for module in modules:
        if module is not None:
            for tensor in chain(module.parameters(), module.buffers()):
                if tensor.dtype == torch.float32:
                    tensor.data = tensor.data.clone()


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX."""
    checks: list[Any] = [
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(check() for check in checks if check is not None)


@contextmanager
def _full_float32(exact: bool, device: str) -> Iterator[None]:
    """On a GPU convolutions round to 10 bits by default; not where exactness is asked for."""
    if exact and device.startswith("cuda"):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    else:
        yield


def _tiles_at_a_time(device: str, side: int) -> int:
    """How many tiles the memory has room for; one at a time off the CPU."""
    if device != "cpu":
        return 1
    needed = WORKING_BYTES * side * side // (1024 * 1024)
    return max(1, min(os.cpu_count() or 1, _free_memory() // max(1, needed)))


def _batch_size(device: str) -> int:
    """Tiles per pass of the encoder: one on a CPU, as many as fit on a GPU."""
    if not device.startswith("cuda"):
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(1, min(LARGEST_BATCH, free // WORKING_BYTES - 1)))


def _free_memory() -> int:
    """Free memory in bytes, where the system tells; else enough for one tile."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return WORKING_BYTES
