"""Fine-tuning of PathoSAM, or of any SAM with a UNETR decoder, on corrected regions.

Three depths: the *decoder* on embeddings as they are; *lora*, the decoder and a path of low rank
in every attention of the image encoder (:mod:`~pathosam_qupath.corrections.low_rank`); *all*,
the decoder and the image encoder, whose blocks learn the more slowly the earlier they come. The
prompt encoder and the mask decoder stay, and so does the decoder of classes, which is a file of
its own. Crops are those of the compact model, at the size of PathoSAM's tiles, and go through
the same contrast stretch and resize as in segmentation. Meant for a GPU: one tile takes a
processor half a minute. What comes out is a checkpoint as micro-sam exports it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pathosam_qupath.corrections.comparison import MARGIN
from pathosam_qupath.corrections.dataset import Batch
from pathosam_qupath.corrections.evaluation import score_sample, summarize
from pathosam_qupath.corrections.finetuning import Finetuned, FinetuneData
from pathosam_qupath.corrections.finetuning_crops import crop_source
from pathosam_qupath.corrections.holding import between, held_back
from pathosam_qupath.corrections.learning_run import FinetuneProgress, LearningRun, Schedule
from pathosam_qupath.corrections.losses import map_loss
from pathosam_qupath.corrections.low_rank import add_low_rank, merge_low_rank
from pathosam_qupath.corrections.precision import mixed
from pathosam_qupath.corrections.training import validation_score
from pathosam_qupath.corrections.unetr_learning import decoder_logits
from pathosam_qupath.errors import ModelError
from pathosam_qupath.model import load_model
from pathosam_qupath.model.checkpoints import read_checkpoint
from pathosam_qupath.model.pathosam import HALO, TILE, PathosamModel
from pathosam_qupath.model.preprocessing import normalize, prepare
from pathosam_qupath.model.registry import MPP
from pathosam_qupath.model.sam import SamModel, build_sam
from pathosam_qupath.model.unetr import UnetrDecoder, build_unetr

Depth = Literal["decoder", "lora", "all"]

BEST = "best.pt"

_RATES: dict[Depth, float] = {"decoder": 1e-4, "lora": 1e-4, "all": 5e-5}
_recomputed: Any = checkpoint
_LAYER_DECAY = 0.8
"""Share of a block's learning rate that the block before it has."""


@dataclass(frozen=True)
class PathosamFinetuneOptions:
    """How to fine-tune a SAM with a decoder.

    Attributes
    ----------
    learning_rate : of the decoder; None: what suits ``what``.
    rank : of LoRA's paths.
    batch : crops per step; they go through the networks one after another.
    tile, halo : pixels of a crop's side, as in segmentation, and of what is cut off there.
    patience : validations without progress after which it ends.
    """

    what: Depth = "decoder"
    seed: int = 0
    steps: int = 300
    learning_rate: float | None = None
    rank: int = 8
    batch: int = 2
    tile: int = TILE
    halo: int = HALO
    validate_every: int = 50
    patience: int = 4

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or _RATES[self.what]


def finetune_pathosam(
    base: Path,
    data: FinetuneData,
    out: Path,
    options: PathosamFinetuneOptions,
    *,
    decoder: Path | None = None,
    device: str = "cpu",
    progress: Callable[[FinetuneProgress], None] | None = None,
) -> Finetuned:
    """Fine-tune a checkpoint, or go on with it.

    Parameters
    ----------
    base : a checkpoint of SAM, with an instance decoder in it or in ``decoder``.
    out : folder of the run.

    Raises
    ------
    ModelError : there is no decoder, or LoRA is asked for a network without attention layers.
    UsageError : there is nothing to learn, or ``out`` holds another run.
    """
    files = read_checkpoint(base)
    state = files.decoder if decoder is None else read_checkpoint(decoder).decoder
    if files.sam is None or state is None:
        raise ModelError(
            base,
            "expected SAM's weights and an instance decoder's",
            "Give a checkpoint that holds both, or the decoder's file too.",
        )
    sam = build_sam(files.sam, subject=base)
    if options.what != "decoder" and sam.config.architecture == "vit_t":
        raise ModelError(
            base, "a MobileSAM's encoder is not fine-tuned here", "Take --what decoder."
        )
    unetr = build_unetr(state, channels=sam.config.channels, subject=decoder or base)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    run = _Run(_copied(sam), _copied(unetr), data, out, options, device)
    run.resume()
    run.go_on(progress)
    best, way = out / BEST, 1.0 if run.best_step else 0.0
    if data.regression is None:
        return Finetuned(best, way)
    old = load_model(base, device, decoder=decoder)
    write = partial(_write_between, files.sam, state, best)
    held = held_back(old, best, write, data.regression, progress)
    return Finetuned(held.weights, way * held.share, held.share, held.comparison)


def _write_between(
    sam: Mapping[str, Tensor], decoder: Mapping[str, Tensor], best: Path, path: Path, share: float
) -> None:
    """Write a checkpoint between the weights that it began with (0) and the best ones (1)."""
    files = read_checkpoint(best)
    assert files.sam is not None and files.decoder is not None
    _save_states(path, between(sam, files.sam, share), between(decoder, files.decoder, share))


class _Run(LearningRun):
    """The fine-tuning of a SAM's encoder and its decoder of nuclei."""

    largest_gradient = 1.0
    about = 2 * MARGIN

    def __init__(
        self,
        sam: SamModel,
        decoder: UnetrDecoder,
        data: FinetuneData,
        out: Path,
        options: PathosamFinetuneOptions,
        device: str,
    ) -> None:
        self.sam, self.decoder = sam.to(device), decoder.to(device)
        self.data, self.options = data, options
        self.crops = crop_source(data, {}, mpp=MPP, side=options.tile)
        identity = json.dumps({"options": asdict(options), "data": data.identity})
        schedule = Schedule(options.steps, options.validate_every, options.patience)
        super().__init__(self._learning(), schedule, out, identity, device)

    def _learning(self) -> list[dict[str, Any]]:
        """Parameters that learn, with their rates."""
        rate, encoder = self.options.rate, self.sam.image_encoder
        self.sam.requires_grad_(False)
        self.decoder.requires_grad_(True)
        groups = [{"params": list(self.decoder.parameters()), "lr": rate}]
        if self.options.what == "lora":
            groups.append({"params": add_low_rank(encoder, self.options.rank), "lr": rate})
        elif self.options.what == "all":
            encoder.requires_grad_(True)
            blocks: Any = encoder.blocks
            inside = {id(p) for block in blocks for p in block.parameters()}
            rest = [p for p in encoder.parameters() if id(p) not in inside]
            for depth, block in enumerate(reversed(list(blocks))):
                slowed = rate * _LAYER_DECAY ** (depth + 1)
                groups.append({"params": list(block.parameters()), "lr": slowed})
            slowest = rate * _LAYER_DECAY ** (len(blocks) + 1)
            groups.append({"params": rest, "lr": slowest})
        return groups

    def prepared(self, step: int) -> Batch:
        """The crops of a step."""
        return self.crops.batch(self.options.batch, self.options.seed, step)

    def learn(self, batch: Batch | None) -> float:
        """Add the gradients of a batch; its loss."""
        assert batch is not None
        total = 0.0
        for number in range(self.options.batch):
            loss = self._loss(batch, number) / self.options.batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _loss(self, batch: Batch, number: int) -> Tensor:
        """Of one crop: no normalisation mixes crops, so it need not wait for the others."""
        image = batch.images[number]
        pixels = normalize(prepare(image, self.sam.config.side), self.sam.config.side, self.device)
        with mixed(self.device):
            logits = decoder_logits(self.decoder, self._embedding(pixels))
        side = self.options.tile
        logits = functional.interpolate(logits.float(), (side, side), mode="bilinear")
        maps = torch.from_numpy(batch.maps[number : number + 1]).to(self.device).float() / 255.0
        return map_loss(logits[:, :3], maps)

    def _embedding(self, pixels: Tensor) -> Tensor:
        """(1, 3, side, side) to (1, channels, grid, grid); with gradients where it learns."""
        if self.options.what == "decoder":
            with torch.no_grad():
                return self.sam.encode(pixels)
        encoder: Any = self.sam.image_encoder
        x = encoder.patch_embed(pixels)
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed
        for block in encoder.blocks:
            # A block's inside is computed again on the way back: memory for time.
            x = _recomputed(block, x, use_reentrant=False)
        embedding: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
        return embedding

    def score(self) -> float:
        """F1 and mSA on what is held out; where nothing is, the step."""
        if not self.data.stopping:
            return float(self.step)
        model = PathosamModel(
            *self._merged(),
            name="",
            weights_hash="",
            device=self.device,
            tile=self.options.tile,
            halo=self.options.halo,
        )
        return validation_score(summarize([score_sample(model, s) for s in self.data.stopping]))

    def keep(self) -> None:
        """Write both networks as micro-sam exports them."""
        sam, decoder = self._merged()
        save_checkpoint(self.out / BEST, sam, decoder)

    def _merged(self) -> tuple[SamModel, UnetrDecoder]:
        """Copies of the networks as they are outside of learning."""
        sam, decoder = copy.deepcopy(self.sam), copy.deepcopy(self.decoder)
        merge_low_rank(sam.image_encoder)
        return sam.requires_grad_(False), decoder.requires_grad_(False)


def save_checkpoint(path: Path, sam: SamModel, decoder: UnetrDecoder) -> None:
    """Write both networks as micro-sam exports them, atomically."""
    _save_states(path, sam.state_dict(), decoder.state_dict())


def _save_states(path: Path, sam: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
    state = {
        "model_state": {k: v.cpu() for k, v in sam.items()},
        "decoder_state": {k: v.cpu() for k, v in decoder.items()},
    }
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    temporary.replace(path)


def _copied(module: Any) -> Any:  # noqa: ANN401 (the same type)
    """A module whose weights no longer lie in the file that they were read from."""
    parameters: list[nn.Parameter] = list(module.parameters())
    for tensor in (*parameters, *module.buffers()):
        tensor.data = tensor.data.clone()
    return module
