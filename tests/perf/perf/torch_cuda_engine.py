"""PyTorch on an NVIDIA GPU as a peer: transformers as shipped, with fused attention, and compiled with CUDA graphs. Called by worker.py."""

import torch
from full import weights
from torch.nn.functional import scaled_dot_product_attention

from .torch_engine import TOKENS, TorchEngine, patch_attention

# For each layer keys and values, each `[rows, heads, tokens, width of a head]`. Tensors of their own, not parts of one: a compiled step writes into them in place.
Cache = list[tuple[torch.Tensor, torch.Tensor]]


class TorchCudaEngine(TorchEngine):
    """`torch-bf16-shipped`, `torch-bf16-sdpa`, `torch-bf16-sdpa-compiled`.

    The last one goes further than transformers: `generate` cannot become a CUDA graph, because its caches grow. It decodes over caches of a
    fixed length, by a step that is compiled, and reads no token before the last one.
    """

    # `torch.compile` compiles in the first run, records the CUDA graph in the second, and replays it from the third.
    further_warm_up_runs = 3

    def __init__(self, name: str, model: torch.nn.Module) -> None:
        _, dtype, *features = name.split("-")
        if "sdpa" in features:
            patch_attention(model)
        self.model = model.to("cuda", {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
        self.decoder = None
        if "compiled" in features:
            self.model.vision_model = torch.compile(self.model.vision_model, mode="max-autotune", dynamic=False)
            self.decoder = GraphDecoder(self.model.text_decoder, compiled=True)
        self.facts: dict = {"device": torch.cuda.get_device_name()}

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """The batch in the model's format and in the memory of the GPU; not timed."""
        return pixels.to("cuda", self.model.dtype)

    def wait(self) -> None:
        """Returns when the GPU has finished; called before the clock is read."""
        torch.cuda.synchronize()

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to the last hidden state, which the next call overwrites if the tower is a graph."""
        torch.compiler.cudagraph_mark_step_begin()
        return super().vision(pixels)

    def caption(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to the ids of twenty new tokens behind the first."""
        if self.decoder is None:
            return super().caption(pixels)
        return self.decoder.caption(self.vision(pixels))

    def caption_known(self, features: torch.Tensor) -> torch.Tensor:
        """Features of images to the ids of twenty new tokens behind the first."""
        if self.decoder is None:
            return super().caption_known(features)
        return self.decoder.caption(features)


class Step(torch.nn.Module):
    """One decode step of the text decoder over caches of a fixed length: each row's last token to its next, greedily."""

    def __init__(self, text_decoder: torch.nn.Module) -> None:
        super().__init__()
        self.bert, self.head = text_decoder.bert, text_decoder.cls

    def forward(self, ids: torch.Tensor, position: torch.Tensor, own: Cache, cross: Cache) -> torch.Tensor:
        """`ids` is `[rows]`, `position` `[1]`. This step's keys and values are written into `own`; `cross` holds those of the images."""
        embeddings = self.bert.embeddings
        hidden = embeddings.LayerNorm(embeddings.word_embeddings(ids) + embeddings.position_embeddings(position))
        mask = (torch.arange(own[0][0].shape[2], device=ids.device) <= position)[None, None, None]
        for layer, own_pair, cross_pair in zip(self.bert.encoder.layer, own, cross):
            attention = layer.attention.self
            for cache, projection in zip(own_pair, (attention.key, attention.value)):
                cache.index_copy_(2, position, split(projection(hidden)[:, None], attention))
            hidden = self._attend(layer.attention, hidden, own_pair, mask)
            hidden = self._attend(layer.crossattention, hidden, cross_pair, None)
            hidden = layer.feed_forward_chunk(hidden)
        return self.head(hidden).argmax(-1)

    @staticmethod
    def _attend(block: torch.nn.Module, hidden: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
        query = split(block.self.query(hidden)[:, None], block.self)
        context = scaled_dot_product_attention(query, pair[0], pair[1], attn_mask=mask)
        return block.output(context.flatten(1), hidden)


def split(states: torch.Tensor, attention: torch.nn.Module) -> torch.Tensor:
    """`[rows, tokens, width]` as `[rows, heads, tokens, width of a head]`."""
    return states.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)


class GraphDecoder:
    """Greedy decoding of twenty tokens by `Step`, with caches that stay at one address for each number of rows, as CUDA graphs need."""

    def __init__(self, text_decoder: torch.nn.Module, compiled: bool) -> None:
        self.layers = text_decoder.bert.encoder.layer
        step = Step(text_decoder)
        self.step = torch.compile(step, mode="max-autotune", dynamic=False) if compiled else step
        self.caches: dict[int, tuple[Cache, Cache]] = {}

    def caption(self, features: torch.Tensor) -> torch.Tensor:
        """The ids of each row, the first token included."""
        own, cross = self._caches(features)
        for pair, layer in zip(cross, self.layers):
            attention = layer.crossattention.self
            for cache, projection in zip(pair, (attention.key, attention.value)):
                cache.copy_(split(projection(features), attention))
        ids = [torch.full((len(features),), weights.IDS["bos"], device=features.device)]
        position = torch.zeros(1, dtype=torch.long, device=features.device)
        for _ in range(TOKENS):
            torch.compiler.cudagraph_mark_step_begin()
            ids.append(self.step(ids[-1], position, own, cross).clone())  # a replay overwrites the output of the last one
            position += 1
        found = torch.stack(ids, 1)
        assert weights.IDS["sep"] not in found, "a caption ended early"
        return found

    def _caches(self, features: torch.Tensor) -> tuple[Cache, Cache]:
        """The caches of the tokens and of the images for this number of rows."""
        rows, tokens, _ = features.shape
        if rows not in self.caches:
            attention = self.layers[0].attention.self

            def empty(length: int) -> torch.Tensor:
                cache = features.new_zeros(rows, attention.num_attention_heads, length, attention.attention_head_size)
                torch._dynamo.mark_static_address(cache)  # otherwise each replay would copy it to another place
                return cache

            own, cross = ([(empty(length), empty(length)) for _ in self.layers] for length in (TOKENS, tokens))
            self.caches[rows] = own, cross
        return self.caches[rows]
