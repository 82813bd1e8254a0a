"""The Segment Anything network, built to fit a checkpoint.

The parts are ``segment_anything``'s own (and ``mobile_sam``'s for vit_t); this module
reads the architecture off the weights, says what does not fit, and loads without ever
holding the weights twice. Sizes of vit_b, vit_l and vit_h follow SAM's paper (Kirillov et
al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathosam_qupath.errors import ModelError
from pathosam_qupath.model.attention import encode, lower_precision
from pathosam_qupath.model.preprocessing import PreparedTile, Size, normalize

PATCH = 16
"""Side of a token in pixels of SAM's input."""

WINDOW = 14
"""Side of an attention window in tokens."""

ARCHITECTURES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""By the width of the encoder."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class SamConfig:
    """Everything that a SAM's shapes depend on.

    Attributes
    ----------
    architecture : "vit_b", "vit_l", "vit_h", "vit_t", or "vit" for other sizes.
    side : side of the input in pixels.
    width, depth, heads : of the image encoder.
    global_blocks : indices of the blocks that attend across the whole input.
    channels : of the embedding, the prompt encoder and the mask decoder.
    mask_channels : hidden channels of the prompt encoder's mask branch.
    decoder_depth, decoder_heads, decoder_mlp : of the mask decoder's transformer.
    iou_hidden : width of the head that predicts each mask's IoU.
    """

    architecture: str = "vit_b"
    side: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    channels: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256

    @property
    def grid(self) -> int:
        """Side of the embedding in tokens."""
        return self.side // PATCH

    @classmethod
    def from_state(cls, state: State, subject: object = "checkpoint") -> SamConfig:
        """Read the architecture off the weights (keys without any ``sam.`` prefix).

        Raises
        ------
        ModelError
            If the weights are not a SAM's.
        """
        try:
            decoder = _decoder_config(state)
            if "image_encoder.patch_embed.proj.weight" not in state:
                return replace(decoder, architecture="vit_t", width=0, depth=0, heads=0)
            width = state["image_encoder.patch_embed.proj.weight"].shape[0]
            grid = state["image_encoder.pos_embed"].shape[1]
            depth = _count(state, r"image_encoder\.blocks\.(\d+)\.norm1\.weight")
            tables = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
            heads = width // tables[0].shape[1]
        except (KeyError, IndexError, ZeroDivisionError) as error:
            raise ModelError(
                subject,
                f"expected the weights of a SAM, found {describe_keys(state)} without {error}",
                "Give a SAM checkpoint: a published one, or one exported by micro-sam.",
            ) from error
        window_rows = 2 * WINDOW - 1
        return replace(
            decoder,
            architecture=ARCHITECTURES.get(width, "vit"),
            side=grid * PATCH,
            width=width,
            depth=depth,
            heads=heads,
            global_blocks=tuple(i for i in range(depth) if tables[i].shape[0] != window_rows),
        )


def _decoder_config(state: State) -> SamConfig:
    channels = state["image_encoder.neck.2.weight"].shape[0]
    return SamConfig(
        channels=channels,
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        decoder_depth=_count(
            state, r"mask_decoder\.transformer\.layers\.(\d+)\.self_attn\.q_proj\.weight"
        ),
        # Shapes do not tell the number of heads; SAM's is 8 at 256 channels.
        decoder_heads=8 if channels == 256 else max(1, channels // 16),
        decoder_mlp=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        iou_hidden=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def describe_keys(state: State) -> str:
    """A file's content in words: how many tensors, and how the first are called."""
    names = sorted(state)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensors ({shown})" if names else "no tensors"


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the encoder makes of a tile.

    Attributes
    ----------
    features : (1, channels, grid, grid) float32.
    original_size : height and width of the tile in its own pixels.
    input_size : height and width in pixels of SAM's input, without padding.
    """

    features: Tensor
    original_size: Size
    input_size: Size

    @property
    def nbytes(self) -> int:
        """Bytes of the features, and of a class per pixel that may come to them."""
        return self.features.nbytes + self.original_size[0] * self.original_size[1]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The features and both sizes as arrays."""
        return {
            "features": self.features.cpu().numpy(),
            "sizes": np.array([self.original_size, self.input_size], np.int64),
        }


class SamModel(nn.Module):
    """SAM's three parts under SAM's own names, always in evaluation mode."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        self.config = config
        self._encode: Callable[[nn.Module, Tensor], Tensor] = encode
        self.image_encoder: nn.Module = _image_encoder(config)
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.channels,
            image_embedding_size=(config.grid, config.grid),
            input_image_size=(config.side, config.side),
            mask_in_chans=config.mask_channels,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.channels,
                mlp_dim=config.decoder_mlp,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.channels,
            iou_head_depth=3,
            iou_head_hidden_dim=config.iou_hidden,
        )
        self.eval()

    def embed(self, prepared: PreparedTile) -> Embedding:
        """Embedding of one tile, on the device of the weights."""
        device = str(self.prompt_encoder.no_mask_embed.weight.device)
        features = self.encode(normalize(prepared, self.config.side, device))
        return Embedding(features, prepared.original_size, prepared.input_size)

    def encode(self, pixels: Tensor) -> Tensor:
        """Embeddings of normalised inputs.

        Parameters
        ----------
        pixels : (n, 3, side, side) float32.

        Returns
        -------
        (n, channels, side / 16, side / 16) float32.
        """
        if self.config.architecture == "vit_t":
            dtype = next(self.image_encoder.parameters()).dtype
            embedding: Tensor = self.image_encoder(pixels.to(dtype))
            return embedding.float()
        return self._encode(self.image_encoder, pixels)

    def compile_encoder(self) -> None:
        """Let ``torch.compile`` make kernels of the encoder when it is first used."""
        self._encode = torch.compile(encode, dynamic=False)

    def lower_precision(self, dtype: torch.dtype) -> None:
        """Let the encoder's products run in ``dtype``; prompts stay float32."""
        if self.config.architecture != "vit_t":
            lower_precision(self.image_encoder, dtype)


def _image_encoder(config: SamConfig) -> nn.Module:
    if config.architecture == "vit_t":
        return _tiny_encoder(config)
    from segment_anything.modeling import ImageEncoderViT

    encoder: nn.Module = ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.width,
        img_size=config.side,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=config.heads,
        patch_size=PATCH,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.global_blocks,
        window_size=WINDOW,
        out_chans=config.channels,
    )
    return encoder


def _tiny_encoder(config: SamConfig) -> nn.Module:
    """MobileSAM's encoder (Zhang et al. 2023), from the package that defines it."""
    try:
        from mobile_sam.modeling import TinyViT
    except ImportError as error:
        raise ModelError(
            "vit_t",
            "this checkpoint is a MobileSAM, and the package mobile_sam is not installed",
            "Run: pip install mobilesam-mirror — or choose vit_b, vit_l or vit_h.",
        ) from error
    encoder: nn.Module = TinyViT(
        img_size=config.side,
        in_chans=3,
        num_classes=1000,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        mlp_ratio=4.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        use_checkpoint=False,
        mbconv_expand_ratio=4.0,
        local_conv_size=3,
        layer_lr_decay=0.8,
    )
    return encoder


def build_sam(
    state: State, *, config: SamConfig | None = None, subject: object = "checkpoint"
) -> SamModel:
    """A SAM that holds exactly these weights.

    Parameters
    ----------
    state : all of the network's weights, no others.
    config : the architecture, where it cannot or shall not be read off the weights.
    subject : what messages call the weights, for instance the file.

    Raises
    ------
    ModelError
        If weights are missing, superfluous, or of other shapes.
    """
    config = config or SamConfig.from_state(state, subject)
    if config.architecture == "vit_t":
        sam = SamModel(config)  # its constructor computes tables, so no empty shell
    else:
        with torch.device("meta"):
            sam = SamModel(config)
    load_strictly(sam, state, subject, config.architecture)
    return sam


def load_strictly(module: nn.Module, state: State, subject: object, what: str) -> None:
    """Put weights into a module, all or none; float32 whatever the file's precision.

    Raises
    ------
    ModelError
        With the first keys that are missing, superfluous, or of another shape.
    """
    wanted: dict[str, Any] = dict(module.state_dict())
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {kind} ({'; '.join(keys[:3])}{'; …' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("misshapen", shapes))
        if keys
    ]
    if problems:
        raise ModelError(
            subject,
            f"expected the {len(wanted)} tensors of {what}, found {len(state)}: "
            + ", ".join(problems),
            "Check that the file is the one that its name says (models verify).",
        )
    converted = {
        key: value.detach().to(wanted[key].dtype) if value.is_floating_point() else value.detach()
        for key, value in state.items()
    }
    module.load_state_dict(converted, strict=True, assign=True)
    module.requires_grad_(False)
    module.train()  # MobileSAM derives tables from its weights when it turns to evaluation
    module.eval()
