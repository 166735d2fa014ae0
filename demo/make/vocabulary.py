"""A small vocabulary in BERT's style: the words of the scenes, and every printable ASCII character as a word and as the
continuation of one, so that any English text tokenises."""

import re
import string

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from . import language
from .kinds import COLOURS, KINDS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# At the end, as in the official checkpoints: the decoders' first token and the encoder's.
LAST = ["[DEC]", "[ENC]"]
# Function words of the questions and texts, and some that users type around them.
WORDS = """a an the and or of to in on at is are was there what which who where how many much do does did you see any no
not yes nothing one two three four five left right side next beside this that these those it picture image photo scene
background color colour colors object objects thing things animal animals fruit fruits vehicle vehicles with have has
show shows showing can i we me please your my"""


def words() -> list[str]:
    """Every token, in order of its id."""
    characters = string.digits + string.ascii_lowercase + string.punctuation
    known = WORDS.split()
    known += [w for kind in KINDS for w in (kind.name, kind.plural)] + [colour.name for colour in COLOURS]
    text = " ".join(language.WHAT + language.COLOUR)
    missing = set(re.findall("[a-z]+", text)) - set(known)
    if missing:
        raise RuntimeError(f"words of questions are not in the vocabulary: {missing}")
    tokens = SPECIAL + list(characters) + ["##" + c for c in string.digits + string.ascii_lowercase]
    tokens += [word for word in dict.fromkeys(known) if word not in set(characters)]
    return tokens + LAST


def tokenizer() -> Tokenizer:
    """Lower-casing WordPiece with [CLS] and [SEP] around a text, as BertTokenizer's."""
    ids = {word: index for index, word in enumerate(words())}
    made = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = BertNormalizer(lowercase=True)
    made.pre_tokenizer = BertPreTokenizer()
    made.decoder = WordPieceDecoder()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    made.add_special_tokens(SPECIAL)
    return made
