"""Fewer and larger matrix products out of transformers' modules, with the same results.

Query, key and value become one product, gate and up another, and vision MLPs whose width is no multiple of 32 are
padded with zeros, which change no sum: 3,420 channels (Qwen2.5-VL) cannot be loaded in aligned blocks, and the GPU
falls back to kernels at half the speed. Layers that carry an unmerged LoRA adapter stay as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfbench.models.packed.fp8 import swiglu, takes_swiglu

_WIDTH = 32


def fuse_decoder_layer(layer: nn.Module) -> None:
    """Fuse a Llama-like decoder layer in place: `qkv_proj` and `gate_up_proj` take the place of the single ones."""
    attention, mlp = layer.self_attn, layer.mlp
    _fuse(attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj")
    _fuse(mlp, ("gate_proj", "up_proj"), "gate_up_proj")


def fuse_vision_block(block: nn.Module) -> None:
    """Fuse a vision block in place: Qwen2.5-VL's gated MLP (padded to a multiple of 32), InternVL's q, k, v."""
    if hasattr(block.mlp, "gate_proj"):
        _pad_width(block.mlp)
        _fuse(block.mlp, ("gate_proj", "up_proj"), "gate_up_proj")
    else:
        _fuse(block.attention, ("q_proj", "k_proj", "v_proj"), "qkv_proj")


def project_qkv(attention: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Query (Nq, H, D), key and value (N, Hkv, D) of hidden (N, C); queries of the rows `asking` only, where given."""
    shape = (-1, attention.head_dim)
    if not hasattr(attention, "qkv_proj"):
        asked = hidden if asking is None else hidden[asking]
        query, key, value = attention.q_proj(asked), attention.k_proj(hidden), attention.v_proj(hidden)
    elif asking is None:
        query, key, value = attention.qkv_proj(hidden).split(attention.qkv_proj.parts, dim=-1)
    else:
        fused, width = attention.qkv_proj, attention.qkv_proj.parts[0]
        query = fused(hidden[asking], rows=slice(None, width))
        key, value = fused(hidden, rows=slice(width, None)).split(fused.parts[1:], dim=-1)
    return query.unflatten(-1, shape), key.unflatten(-1, shape), value.unflatten(-1, shape)


def gated(mlp: nn.Module, hidden: Tensor) -> Tensor:
    """A gated MLP (SwiGLU), fused or not: (N, C) -> (N, C)."""
    if not hasattr(mlp, "gate_up_proj"):
        return mlp(hidden)
    gate_up = mlp.gate_up_proj(hidden)
    if takes_swiglu(mlp):
        return mlp.down_proj.multiply(*swiglu(gate_up), hidden.dtype)
    gate, up = gate_up.split(mlp.gate_up_proj.parts, dim=-1)
    return mlp.down_proj(mlp.act_fn(gate) * up)


class FusedLinear(nn.Module):
    """Several linear layers on the same input as one. `parts`: their output widths, in order."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.parts = [layer.out_features for layer in layers]
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        biased = layers[0].bias is not None
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False) if biased else None

    def forward(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """rows: which output channels to compute."""
        return F.linear(hidden, self.weight[rows], None if self.bias is None else self.bias[rows])


def _fuse(module: nn.Module, names: tuple[str, ...], fused: str) -> None:
    layers = [getattr(module, name) for name in names]
    if all(type(layer) is nn.Linear for layer in layers):
        setattr(module, fused, FusedLinear(layers))
        for name in names:
            delattr(module, name)


def _pad_width(mlp: nn.Module) -> None:
    """Zero channels for a gated MLP until its width is a multiple of 32."""
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    missing = -mlp.gate_proj.out_features % _WIDTH
    if missing == 0 or not all(type(layer) is nn.Linear for layer in layers):
        return
    for layer in layers[:2]:
        layer.weight = nn.Parameter(F.pad(layer.weight, (0, 0, 0, missing)), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(F.pad(layer.bias, (0, missing)), requires_grad=False)
        layer.out_features += missing
    mlp.down_proj.weight = nn.Parameter(F.pad(mlp.down_proj.weight, (0, missing)), requires_grad=False)
    mlp.down_proj.in_features += missing
