"""The three models as transformers' classes, sharing one vision tower and one text encoder."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from . import vocabulary
from .kinds import COLOURS, KINDS

IMAGE_SIZE = 128
PATCH_SIZE = 16
WIDTH = 192
HEADS = 3
VISION_LAYERS = 6
TEXT_LAYERS = 3
MAX_TOKENS = 128
EMBEDDING = 128


def config() -> BlipConfig:
    """The configuration of all three; each model reads its part."""
    ids = {word: index for index, word in enumerate(vocabulary.words())}
    text = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "bos_token_id": ids["[DEC]"],
        "eos_token_id": ids["[SEP]"],
        "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        # The class's own default is 1e-10: a tower of zeros.
        "initializer_range": 0.02,
    }
    made = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=EMBEDDING, projection_dim=EMBEDDING)
    made.tie_word_embeddings = True
    made.text_config.tie_word_embeddings = True
    return made


class Models(nn.Module):
    """What is trained: the three models, and heads that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.caption = BlipForConditionalGeneration(config())
        self.vqa = BlipForQuestionAnswering(config())
        self.retrieval = BlipForImageTextRetrieval(config())
        self.vqa.vision_model = self.retrieval.vision_model = self.caption.vision_model
        self.vqa.text_encoder = self.retrieval.text_encoder
        self.log_temperature = nn.Parameter(torch.tensor(2.66))
        kinds = len(KINDS)
        self.patch_kind = nn.Linear(WIDTH, kinds + 1)
        self.summary = nn.ModuleDict(
            {
                "left": nn.Linear(WIDTH, kinds),
                "right": nn.Linear(WIDTH, kinds),
                "count": nn.Linear(WIDTH, 3),
                "colour": nn.Linear(WIDTH, len(COLOURS)),
            }
        )

    def named_models(self) -> dict[str, nn.Module]:
        return {"caption": self.caption, "vqa": self.vqa, "retrieval": self.retrieval}


def write_tokenizer(directory: Path) -> None:
    """`tokenizer.json`, `tokenizer_config.json` and `vocab.txt`, as the official checkpoints have them."""
    vocabulary.tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("".join(word + "\n" for word in vocabulary.words()), encoding="utf-8")
    settings = {
        "cls_token": "[CLS]",
        "do_lower_case": True,
        "mask_token": "[MASK]",
        "model_max_length": MAX_TOKENS,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
