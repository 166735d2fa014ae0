"""Calls the routes of the OpenAI API with the package `langchain-openai`.

    python langchain_python.py http://127.0.0.1:8080 PICTURE
"""

import openai
import tiktoken
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from checks import ANSWER, BASE64, CAPTION, DATA_URI, QUESTION, SERVER, cosine, refused

OPTIONS = {"base_url": f"{SERVER}/v1", "api_key": "none", "max_retries": 0}
IMAGE = {"type": "image_url", "image_url": {"url": DATA_URI}}

# Chat. LangChain has several formats of images; all reach the server as image_url.
caption = ChatOpenAI(model="demo-caption", **OPTIONS)
for image in [IMAGE, {"type": "image", "base64": BASE64, "mime_type": "image/png"}]:
    message = caption.invoke([HumanMessage([image])])
    assert message.content == CAPTION, message
    assert message.usage_metadata["total_tokens"] > 0, message
vqa = ChatOpenAI(model="demo-vqa", temperature=0, max_tokens=4096, **OPTIONS)
assert vqa.invoke([HumanMessage([{"type": "text", "text": QUESTION}, IMAGE])]).content == ANSWER

parts = list(caption.stream([HumanMessage([IMAGE])]))
assert "".join(part.content for part in parts) == CAPTION, parts
parts = list(ChatOpenAI(model="demo-caption", stream_usage=True, **OPTIONS).stream([HumanMessage([IMAGE])]))
assert "".join(part.content for part in parts) == CAPTION, parts
assert sum(bool(part.usage_metadata) for part in parts) == 1, parts

# Embeddings. check_embedding_ctx_length=False makes LangChain send texts. By default it sends up to 1,000 in one request;
# 200 are more than a batch of the server, and a debug build answers them in time.
texts = [f"a picture of {count} cats" for count in range(220)]
embeddings = OpenAIEmbeddings(model="demo-retrieval", chunk_size=200, check_embedding_ctx_length=False, **OPTIONS)
vectors = embeddings.embed_documents(texts)
assert len(vectors) == len(texts)
assert cosine(vectors[210], embeddings.embed_query(texts[210])) > 0.9999

# By default LangChain sends token ids of OpenAI's tokenizer. tiktoken downloads that tokenizer, so here a tokenizer of
# bytes takes its place.
BYTES = tiktoken.Encoding(
    "bytes", pat_str="(?s:.)", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
)
tiktoken.get_encoding = lambda name: BYTES
tokens = OpenAIEmbeddings(model="demo-retrieval", **OPTIONS)
refused(openai.BadRequestError, lambda: tokens.embed_query("two cats"), "check_embedding_ctx_length")

# Errors
unknown = ChatOpenAI(model="nope", **OPTIONS)
refused(openai.NotFoundError, lambda: unknown.invoke([HumanMessage([IMAGE])]), "nope", "demo-caption")
refused(openai.NotFoundError, lambda: list(unknown.stream([HumanMessage([IMAGE])])), "nope", "demo-caption")
refused(openai.BadRequestError, lambda: caption.invoke("Describe the picture."), "image_url")
web = HumanMessage([{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}])
refused(openai.BadRequestError, lambda: caption.invoke([web]), "fetch.enabled")

print("langchain-openai (Python): chat, streams, embeddings and errors are right")
