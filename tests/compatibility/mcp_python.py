"""Calls the tools of `/mcp` and of `blip-server mcp` with the official Python SDK of the Model Context Protocol, `mcp`.

    BLIP_SERVER=target/debug/blip-server python mcp_python.py http://127.0.0.1:8080 PICTURE

The server needs the setting `mcp.enabled`.
"""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from mcp import Client, MCPError, StdioServerParameters

from checks import ANSWER, BASE64, CAPTION, PICTURE, QUESTION, SERVER

TOOLS = ["ask", "caption", "classify", "match", "rank"]


def text(result):
    """Returns what a language model reads."""
    return "\n".join(block.text for block in result.content)


async def assert_described(client):
    """Checks what the tools say about themselves. Returns the names of the arguments of each tool."""
    assert client.server_info.name == "blip-server", client.server_info
    assert "caption" in client.instructions, client.instructions
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert sorted(tools) == TOOLS, tools
    for tool in tools.values():
        assert len(tool.description) > 80, tool
        assert tool.annotations.read_only_hint, tool
        # The demo models know no photographs, and the tools say so.
        assert "not photographs" in tool.description, tool
    return {name: set(tool.input_schema["properties"]) for name, tool in tools.items()}


async def assert_answers(client):
    """Calls each tool with a picture as data, then by the id that the answer contains."""
    caption = await client.call_tool("caption", {"image": BASE64, "verify": True})
    first, second = text(caption).splitlines()
    assert first.startswith(f"{CAPTION} (match "), first
    found = caption.structured_content
    assert found["captions"][0]["text"] == CAPTION, found
    image = found["image"]["id"]
    assert second == f"Picture: {image}", second
    asked = await client.call_tool("ask", {"image": image, "questions": [QUESTION]})
    assert text(asked).splitlines()[0] == f"{QUESTION}: {ANSWER}", asked
    texts = [CAPTION, "a red car"]
    matched = await client.call_tool("match", {"image": image, "texts": texts})
    right, wrong = matched.structured_content["scores"][0]
    assert right["match"] > 0.9 > 0.1 > wrong["match"], matched
    assert text(matched).startswith(f"{CAPTION} (match "), matched
    chosen = await client.call_tool("classify", {"image": image, "labels": ["a red car", "two cats"]})
    assert text(chosen).startswith("two cats (probability "), chosen
    ranked = await client.call_tool("rank", {"image": image, "texts": texts[::-1]})
    assert text(ranked).startswith(f"1. {CAPTION} (match "), ranked


async def assert_refused(client, tool, arguments, *words):
    """Checks that the result is an error whose text tells what to do."""
    failed = await client.call_tool(tool, arguments)
    missing = [word for word in words if word not in text(failed)]
    assert failed.is_error and not missing, f"{missing} not in: {failed}"


async def assert_errors(client):
    await assert_refused(client, "caption", {}, "image", "is needed")
    await assert_refused(client, "caption", {"image": "AAAA"}, "image", "format")
    await assert_refused(client, "caption", {"image": BASE64, "stream": True}, "stream: no argument of caption")
    await assert_refused(client, "caption", {"image": BASE64, "model": "none"}, "demo-caption")
    await assert_refused(client, "match", {"image": BASE64, "texts": [""]}, "texts[0]")
    await assert_refused(client, "rank", {"text": CAPTION}, "images")
    try:
        unknown = await client.call_tool("paint", {})
        raise AssertionError(f"expected an error, but got: {unknown}")
    except MCPError as error:
        assert "caption, ask, match" in error.message, error


async def over_http(mode):
    async with Client(f"{SERVER}/mcp", mode=mode) as client:
        arguments = await assert_described(client)
        assert "path" not in arguments["caption"], arguments
        await assert_answers(client)
        await assert_errors(client)
        # Only the command reads files.
        await assert_refused(client, "caption", {"path": PICTURE}, "path: no argument of caption")
        together = [client.call_tool("caption", {"image": BASE64}) for _ in range(8)]
        assert {text(result).splitlines()[0] for result in await asyncio.gather(*together)} == {CAPTION}
        print(f"mcp over HTTP ({mode}): version {client.protocol_version}")


async def over_stdio(mode):
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        photos = home / "photos"
        photos.mkdir()
        shutil.copy(PICTURE, photos / "cats.png")
        shutil.copy(Path(PICTURE).with_name("rocket.png"), photos / "rocket.png")
        shutil.copy(PICTURE, home / "private.png")
        (photos / "notes.txt").write_text("no picture")
        command = StdioServerParameters(command=os.environ["BLIP_SERVER"], args=["mcp", "--allow", str(photos)])
        async with Client(command, mode=mode) as client:
            arguments = await assert_described(client)
            assert {"path", "paths"} <= arguments["rank"], arguments
            await assert_answers(client)
            await assert_errors(client)
            for path in ["cats.png", str(photos / "cats.png")]:
                caption = await client.call_tool("caption", {"path": path})
                assert text(caption).splitlines()[0] == CAPTION, caption
            ranked = await client.call_tool("rank", {"text": CAPTION, "paths": ["rocket.png", "cats.png"]})
            assert text(ranked).startswith("1. cats.png (match "), ranked
            await assert_refused(client, "caption", {"path": "../private.png"}, "outside of")
            await assert_refused(client, "caption", {"path": str(home / "private.png")}, "outside of")
            await assert_refused(client, "caption", {"path": "none.png"}, "no such file")
            await assert_refused(client, "caption", {"path": "notes.txt"}, "path", "format")
            await assert_refused(client, "rank", {"text": CAPTION, "paths": ["cats.png", "notes.txt"]}, "notes.txt")
            print(f"mcp over standard input and output ({mode}): version {client.protocol_version}")


async def main():
    for mode in ["auto", "legacy"]:
        await over_http(mode)
        await over_stdio(mode)


asyncio.run(main())
