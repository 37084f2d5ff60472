"""Vision transformers for small images (Dosovitskiy et al. 2021, arXiv 2010.11929).

The widths are DeiT's (Touvron et al. 2021, arXiv 2012.12877, table 1); only the patches are
smaller. Parameter names (patch_embed.proj, cls_token, pos_embed, blocks.0.attn.qkv, ..., norm,
head) and values are those of timm's VisionTransformer, so weights can go both ways.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.errors import UserError


class PatchEmbed(nn.Module):
    """One linear map of each patch."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, patches, dim)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, dim)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, dim/heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear maps with a GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, dim)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and around a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches and a class token, transformer blocks, the class token normalised, linear head.

    Args:
        classes: outputs of the linear head.
        channels: image channels.
        image_size: height and width of the images; another size is refused.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; must divide dim.
        patch: height and width of a patch; must divide image_size. None: see `patch_size`.

    Raises:
        UserError: the image can't be cut into such patches, or dim into such heads.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        image_size: int = 32,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        patch = patch_size(image_size) if patch is None else patch
        if patch < 1 or image_size % patch:
            raise UserError(
                f"a vit's patch must divide the image size: got patch={patch} for image size "
                f"{image_size}; try patch={patch_size(image_size)}"
            )
        if heads < 1 or dim % heads:
            raise UserError(
                f"a vit's heads must divide dim, got heads={heads}, dim={dim}; "
                f"try heads={math.gcd(dim, 8)}"
            )
        tokens = (image_size // patch) ** 2 + 1
        self.image_size = image_size
        self.patch_embed = PatchEmbed(channels, dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        # Does nothing but give what enters the blocks a layer name, the one it has in timm.
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, image_size, image_size).

        Raises:
            UserError: images of another size: the position embedding has one entry a patch.
        """
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"this vit was made for {self.image_size}×{self.image_size} images, got "
                f"{x.shape[-2]}×{x.shape[-1]}; try --image-size {self.image_size}"
            )
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (batch, tokens, dim)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        # The norm goes token by token, so the class token alone gives the same value, cheaper,
        # and the pooled features (batch, dim) are a layer: `norm`.
        return self.head(self.norm(x[:, 0]))


def patch_size(image_size: int) -> int:
    """The largest patch that leaves at least 7 to a side, but at least 2 pixels.

    4 at 32 and 28 pixels, 2 at 8 and 16, 8 at 64, 12 at 96.

    Raises:
        UserError: no patch of at least 2 pixels divides the image.
    """
    for patch in range(max(2, image_size // 7), 1, -1):
        if image_size % patch == 0:
            return patch
    raise UserError(
        f"a vit cuts images into patches of at least 2×2 pixels, which does not work for image "
        f"size {image_size}; try --image-size {max(8, image_size // 8 * 8)}"
    )


vit_tiny = partial(VisionTransformer, dim=192, heads=3)
vit_small = partial(VisionTransformer, dim=384, heads=6)
