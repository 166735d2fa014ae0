"""The computation of transformers' BLIP classes on their own weights, arranged for training on a few CPU cores.

Attention is written as two products (the backward pass of fused attention is slow on a CPU); the texts of one image
lie in one row of the cross-attention, so that its keys and values are computed once. `check` compares with the
classes' own forward passes; training begins with it.
"""

import torch
import torch.nn.functional as F

from .network import HEADS, WIDTH, Models

HEAD = WIDTH // HEADS


def _split(x: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens, WIDTH]` to `[rows, heads, tokens, HEAD]`."""
    return x.view(x.shape[0], x.shape[1], HEADS, HEAD).transpose(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = (_split(q) * HEAD**-0.5) @ _split(k).transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    out = scores.softmax(-1).to(v.dtype) @ _split(v)
    return out.transpose(1, 2).reshape(q.shape)


def _joined(layers: list[torch.nn.Linear], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Several layers of one input as one product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split(WIDTH, dim=-1)


def vision(models: Models, pixels: torch.Tensor) -> torch.Tensor:
    """`[images, 3, side, side]` normalised pixels to hidden states `[images, 1 + patches, WIDTH]`."""
    tower = models.caption.vision_model
    x = tower.embeddings(pixels)
    for layer in tower.encoder.layers:
        q, k, v = layer.self_attn.qkv(layer.layer_norm1(x)).split(WIDTH, dim=-1)
        x = x + layer.self_attn.projection(_attend(q, k, v, None))
        x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.layer_norm2(x))))
    return tower.post_layernorm(x)


def padding(ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, 1, 1, tokens]`: 0 where there is text, very negative where there is padding (id 0)."""
    return ((ids == 0).to(dtype) * -1e4)[:, None, None, :]


def text(bert, ids, *, causal: bool, states=None, states_mask=None) -> torch.Tensor:
    """Hidden states of texts `[rows, tokens, WIDTH]`.

    `states` are what to cross-attend to; with fewer rows than texts, each of its rows serves the next
    `rows / states.rows` texts.
    """
    rows, tokens = ids.shape
    x = bert.embeddings(input_ids=ids)
    mask = padding(ids, torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)
    if causal:
        mask = mask + torch.full((tokens, tokens), -1e4, dtype=mask.dtype).triu(1)
    for layer in bert.encoder.layer:
        own = layer.attention.self
        q, k, v = _joined([own.query, own.key, own.value], x)
        x = layer.attention.output(_attend(q, k, v, mask), x)
        if states is not None:
            cross = layer.crossattention.self
            k, v = _joined([cross.key, cross.value], states)
            q = cross.query(x).view(len(states), -1, WIDTH)
            seen = _attend(q, k, v, states_mask).view(rows, tokens, WIDTH)
            x = layer.crossattention.output(seen, x)
        x = layer.output(layer.intermediate(x), x)
    return x


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@torch.no_grad()
def check(models: Models) -> None:
    """Raises unless these functions give what the classes' own forward passes give."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 128, 128, generator=generator)
    ids = torch.randint(5, 200, (4, 9), generator=generator)
    ids[1, 6:] = 0
    attention = (ids != 0).long()
    image = vision(models, pixels)
    _close(image, models.caption.vision_model(pixels).last_hidden_state)
    repeated = image.repeat_interleave(2, 0)
    encoder = models.retrieval.text_encoder
    _close(text(encoder, ids, causal=False), encoder(ids, attention_mask=attention).last_hidden_state)
    _close(
        text(encoder, ids, causal=False, states=image),
        encoder(ids, attention_mask=attention, encoder_hidden_states=repeated).last_hidden_state,
    )
    # Without a mask over the states: the classes ignore theirs in the cross-attention, so that padded questions are
    # attended to. Ours are masked in training, and the served ones are never padded.
    decoder = models.vqa.text_decoder
    theirs = decoder(ids, attention_mask=attention, encoder_hidden_states=repeated[:, :9], is_decoder=True).logits
    _close(decoder.cls(text(decoder.bert, ids, causal=True, states=repeated[:, :9])), theirs)
