"""Prompts for a vision transformer: trained tokens, keys and values that it reads beside an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.models import build_model
from clbench.models.network import Network
from clbench.models.pretrained import Pretrained
from clbench.models.timm import embedded


@dataclass(frozen=True)
class Prompts:
    """The prompts for a batch of B images, by the 0-based block that reads them; D is the width of a token.

    tokens: float [B or 1, n, D], one set for each image or one for all, put between class token and patches on the way
        into the block. They pass through the blocks behind it, too (shallow prompts), up to a block with tokens of its
        own, where these take their place (deep prompts). They get no position. Jia et al. 2022, arXiv:2203.12119,
        eq. 4-8.
    prefixes: float [B or 1, 2, n, D], keys and values that the attention of the block reads before those of its tokens.
        Li & Liang 2021, arXiv:2101.00190; Wang et al. 2022, arXiv:2204.04799, eq. 6.
    """

    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    prefixes: Mapping[int, Tensor] = field(default_factory=dict)


def prompted_features(
    network: Network, images: Tensor, prompts: Prompts, pooled: Literal["image", "prompts"] = "image"
) -> Tensor:
    """Map images in [0, 1], float [B, C, H, W], to features, float [B, D], by a transformer that reads prompts.

    network: one that `transformer` accepts. Its weights are as they were: a prompt is an input, so the parameters of
        prompts belong to whom passes them, and nothing is to be taken out again.
    pooled: what the features are made of: of the tokens of the image, as the transformer does it, or ("prompts") the
        mean of the prompt tokens that leave the last block.
    Without prompts the features are those of `network.features`, bit for bit.
    """
    whole: Any = network
    vit = whole.backbone
    tokens = embedded(whole.preprocess, vit, images)
    start, n = vit.num_prefix_tokens, 0
    for index, block in enumerate(vit.blocks):
        if index in prompts.tokens:
            given = prompts.tokens[index].to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :start], given, tokens[:, start + n :]], 1)
            n = given.shape[1]
        if index in prompts.prefixes:
            attended = _attended(block.attn, block.norm1(tokens), prompts.prefixes[index])
            tokens = tokens + block.drop_path1(block.ls1(attended))
            tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        else:
            tokens = block(tokens)
    tokens = vit.norm(tokens)
    if pooled == "prompts":
        mean: Tensor = tokens[:, start : start + n].mean(1)
        return mean
    if n:
        tokens = torch.cat([tokens[:, :start], tokens[:, start + n :]], 1)
    features: Tensor = vit.forward_head(tokens, pre_logits=True)
    return features


def _attended(attention: Any, tokens: Tensor, prefix: Tensor) -> Tensor:
    """Return what timm's Attention makes of tokens, float [B, N, D], where a prefix is read before them."""
    query, key, value = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    given = prefix.to(key.dtype).expand(tokens.shape[0], -1, -1, -1).unflatten(-1, (attention.num_heads, -1))
    keys, values = given.permute(1, 0, 3, 2, 4).unbind()
    read = F.scaled_dot_product_attention(
        attention.q_norm(query),
        torch.cat([keys, attention.k_norm(key)], 2),
        torch.cat([values, value], 2),
        dropout_p=attention.attn_drop.p if attention.training else 0.0,
    )
    passed: Tensor = attention.proj_drop(attention.proj(attention.norm(read.transpose(1, 2).flatten(2))))
    return passed


def transformer(config: RunConfig, scenario: Scenario) -> Any:
    """Return the vision transformer of a run, without numbers, which prompts can be put into.

    Raises ConfigError for any other network: one that is no VisionTransformer of timm, or one whose blocks are of
    another kind than the usual one.
    """
    with torch.device("meta"):
        network = build_model(config.model.name, scenario.image_shape, 0, config.code)
    if (why := _unlike(network.backbone if isinstance(network, Pretrained) else network)) is None:
        return network.backbone
    raise ConfigError(
        f"{config.strategy} works on vision transformers of timm, not on model={config.model.name!r}, {why}; "
        "timm:vit_base_patch16_224 and its like, and vit, are accepted"
    )


def _unlike(backbone: Any) -> str | None:
    """Say why a backbone is no transformer that prompts can be put into; None where it is one."""
    try:
        from timm.layers.attention import Attention
        from timm.models.vision_transformer import Block, VisionTransformer
    except ImportError:  # then it is none of timm's
        return "which is none"
    if not isinstance(backbone, VisionTransformer):
        return "which is none"
    for block in backbone.blocks:
        if type(block) is not Block:
            return f"whose blocks are of another kind ({type(block).__name__})"
        if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
            return f"whose attention is of another kind ({type(block.attn).__name__})"
    return None
