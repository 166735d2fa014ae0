"""What many teams write first: FastAPI around transformers in bf16, without batches, captions of 20 tokens for uploaded pictures.

Usage: fastapi_server.py --checkpoint DIR [--port 8091] [--threads 2]. README.md beside it says how it is measured.

`POST /predict` takes the picture as the raw body and answers `{"caption": ..., "token_count": 20}`. One thread decodes the
picture, runs the model and does the same for the next request; the event loop only reads and writes.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import uvicorn
from fastapi import FastAPI, Request
from perf.captioner import Captioner, decoded


def application(checkpoint: Path, threads: int) -> FastAPI:
    """The routes; the port opens when the model is loaded and warm."""
    worker = ThreadPoolExecutor(max_workers=1)

    def load() -> Captioner:
        captioner = Captioner(checkpoint, threads)
        captioner.warm_up(1)
        return captioner

    def caption(data: bytes) -> dict:
        return app.state.captioner.captions([decoded(data)])[0]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.captioner = await asyncio.get_running_loop().run_in_executor(worker, load)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/predict")
    async def predict(request: Request) -> dict:
        return await asyncio.get_running_loop().run_in_executor(worker, caption, await request.body())

    return app


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", type=Path, required=True, help="a captioner, as peers.py makes it in its work directory")
    arguments.add_argument("--port", type=int, default=8091)
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    uvicorn.run(application(args.checkpoint, args.threads), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
