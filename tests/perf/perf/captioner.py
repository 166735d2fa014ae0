"""transformers as a team would call it from a server of its own: uploaded pictures to captions. Called by litserve_server.py and fastapi_server.py."""

import io
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import BertTokenizerFast, BlipForConditionalGeneration, BlipImageProcessor

TOKENS = 20


def decoded(data: bytes) -> Image.Image:
    """An image file as an RGB picture."""
    return Image.open(io.BytesIO(data)).convert("RGB")


class Captioner:
    """The captioner as transformers ships it, in bf16, on `threads` threads; captions have exactly 20 tokens with a model that never ends them early."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.model = BlipForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        self.processor = BlipImageProcessor.from_pretrained(checkpoint)
        self.tokenizer = BertTokenizerFast.from_pretrained(checkpoint)

    def captions(self, pictures: list[Image.Image]) -> list[dict]:
        """An answer for each picture, `{"caption": ..., "token_count": 20}`; all pictures are one batch."""
        with torch.inference_mode():
            pixels = self.processor(pictures, return_tensors="pt")["pixel_values"].to(torch.bfloat16)
            ids = self.model.generate(pixels, max_new_tokens=TOKENS, do_sample=False)
        return [{"caption": text, "token_count": ids.shape[1] - 1} for text in self.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)]

    def warm_up(self, batch: int) -> None:
        """Captions a batch of black pictures."""
        self.captions([Image.new("RGB", (640, 480))] * batch)
