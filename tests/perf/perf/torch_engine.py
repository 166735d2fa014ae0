"""PyTorch as a peer: transformers as shipped, and with the fused attention that this model of it lacks. Called by worker.py.

On a GPU, torch_cuda_engine.py replaces the engine here.
"""

import types
from pathlib import Path

import torch
from full import weights
from torch.nn.functional import scaled_dot_product_attention

TOKENS = 20
SPEC = weights.Checkpoint("caption", "varied", "base")


def _vision_attention(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, None]:
    """`BlipAttention.forward` without the matrix of all probabilities."""
    batch, tokens, width = hidden_states.shape
    heads = self.qkv(hidden_states).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
    context = scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=self.scale)
    return self.projection(context.transpose(1, 2).reshape(batch, tokens, width)), None


def _text_attention(self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, past_key_values=None, **kwargs):
    """`BlipTextSelfAttention.forward`: the same caches, the products fused."""
    heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    query = self.query(hidden_states).view(heads).transpose(1, 2)
    cross = encoder_hidden_states is not None
    cache = None
    if past_key_values is not None:
        cache = past_key_values.cross_attention_cache if cross else past_key_values.self_attention_cache
    if cross and cache is not None and past_key_values.is_updated.get(self.layer_idx):
        key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
    else:
        states = encoder_hidden_states if cross else hidden_states
        key, value = (part(states).view(*states.shape[:-1], -1, self.attention_head_size).transpose(1, 2) for part in (self.key, self.value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if cross:
                past_key_values.is_updated[self.layer_idx] = True
    mask = encoder_attention_mask if cross else attention_mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    context = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).reshape(*hidden_states.shape[:-1], self.all_head_size), None


def patch_attention(model: torch.nn.Module) -> None:
    """Replaces the attention of both towers in this one model."""
    for module in model.modules():
        if type(module).__name__ == "BlipAttention":
            module.forward = types.MethodType(_vision_attention, module)
        elif type(module).__name__ == "BlipTextSelfAttention":
            module.forward = types.MethodType(_text_attention, module)


class Tower(torch.nn.Module):
    """The vision tower with one tensor as input and one as output, for converters: pixels to the last hidden state."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixels).last_hidden_state


def reference(root: Path, pixels: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model as transformers reads it, in f32, and its hidden states, which every engine has to reproduce."""
    model, _ = weights.read(SPEC, root)
    return model, model.vision_model(pixels).last_hidden_state


class TorchEngine:
    """`torch-f32-sdpa`, `torch-bf16-shipped`, `torch-bf16-sdpa`, `torch-bf16-sdpa-compiled`."""

    tasks = ("vision", "caption", "caption-known")
    least_batch = 1

    def __init__(self, name: str, model: torch.nn.Module) -> None:
        _, dtype, *features = name.split("-")
        if "sdpa" in features:
            patch_attention(model)
        self.model = model.to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
        if "compiled" in features:
            self.model.vision_model = torch.compile(self.model.vision_model, dynamic=False)  # one program for each batch size
        self.facts: dict = {}

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """The batch in the model's format; not timed."""
        return pixels.to(self.model.dtype)

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to the last hidden state."""
        return self.model.vision_model(pixels).last_hidden_state

    def caption(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to the ids of twenty new tokens behind the first."""
        ids = self.model.generate(pixels, max_new_tokens=TOKENS, do_sample=False)
        return _complete(ids, len(pixels))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The input of `caption_known`; not timed."""
        return self.vision(pixels).clone()

    def caption_known(self, features: torch.Tensor) -> torch.Tensor:
        """Features of images to the ids of twenty new tokens behind the first: the second half of `BlipForConditionalGeneration.generate`."""
        ids = self.model.text_decoder.generate(
            input_ids=torch.full((len(features), 1), weights.IDS["bos"], device=features.device), eos_token_id=weights.IDS["sep"], pad_token_id=weights.IDS["pad"],
            encoder_hidden_states=features, encoder_attention_mask=torch.ones(features.shape[:-1], dtype=torch.long, device=features.device),
            max_new_tokens=TOKENS, do_sample=False,
        )  # fmt: skip
        return _complete(ids, len(features))


def _complete(ids: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of `count` captions, after a check that each has all its tokens."""
    assert ids.shape == (count, 1 + TOKENS), ids.shape
    assert weights.IDS["sep"] not in ids, "a caption ended early"
    return ids
