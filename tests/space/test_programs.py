"""The endpoints, as gradio_client and an MCP client see them."""

from __future__ import annotations

import ast
import asyncio
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hub_merge import Adapter, score
from tests.space.conftest import need
from tests.space.serving import BASE, ZOO, Space

PAIR = ["examples/zoo/math", "examples/zoo/medicine"]
ENDPOINTS = {"search", "check", "score", "plan", "merge"}


@pytest.fixture(scope="module")
def client(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    return Client(space.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_the_documented_endpoints_are_these_and_each_is_explained(client: Any) -> None:
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert {name.strip("/") for name in told} == ENDPOINTS
    for endpoint in told.values():
        assert endpoint["description"]


def test_search(client: Any) -> None:
    found = client.predict(text=BASE, api_name="/search")
    entry = next(row for row in found if row["reference"] == "carol/math-lora")
    assert (entry["rank"], entry["license"], entry["downloads"]) == (4, "apache-2.0", 1234)
    assert [row["reference"] for row in client.predict(api_name="/search")] == [
        f"examples/zoo/{name}" for name in ("finance", "math", "medicine")
    ]


def test_check_and_score_say_what_the_library_says(client: Any) -> None:
    checked = client.predict(adapters=PAIR, api_name="/check")
    assert checked["compatible"] and checked["total_rank"] == 8
    scored = client.predict(adapters=PAIR, weights=[1.0, 0.5], api_name="/score")
    own = score([Adapter.from_pretrained(ZOO / name) for name in ("math", "medicine")], [1.0, 0.5])
    assert scored["rms_cosine"] == pytest.approx(own.rms_cosine)
    assert scored["retention"] == pytest.approx(list(own.retention))


def test_plan_gives_the_ways_to_carry_it_out(client: Any) -> None:
    planned = client.predict(adapters=PAIR, api_name="/plan")
    assert planned["advice"]["method"] == planned["recipe"]["merge_method"] == "mean"
    assert planned["command"].startswith("hub-merge merge examples/zoo/math examples/zoo/medicine --method mean")
    assert planned["link"] == "?a=examples/zoo/math&b=examples/zoo/medicine&method=mean"
    assert planned["retention_is_exact"]


def test_merge_returns_a_proved_zip_and_leaves_nothing_else(client: Any, space: Space, tmp_path: Path) -> None:
    before = set((space.home / "tmp").glob(".hub-merge.*"))
    path = client.predict(adapters=PAIR, method="svd", rank=4, api_name="/merge")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    record = json.loads((tmp_path / "math-medicine" / "hub_merge.json").read_text())
    assert record["proof"]["passed"] and record["output"]["rank"] == 4
    assert set((space.home / "tmp").glob(".hub-merge.*")) == before


@pytest.mark.parametrize(
    ("endpoint", "given", "told"),
    [
        ("/check", {"adapters": ["/etc"]}, "no files"),
        ("/check", {"adapters": []}, "Name one or more"),
        ("/merge", {"adapters": PAIR, "method": "tyes"}, "Did you mean ties"),
        ("/merge", {"adapters": PAIR, "weights": [1.0]}, "one weight an adapter"),
        ("/check", {"adapters": [f"carol/a{n}" for n in range(9)]}, "at most 8"),
    ],
)
def test_errors_have_the_remedy(client: Any, endpoint: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        client.predict(**given, api_name=endpoint)


def test_a_token_counts_for_the_request_that_brings_it_only(space: Space) -> None:
    from gradio_client import Client

    private = ["bob/secret-lora", "carol/math-lora"]
    bob = Client(space.url, verbose=False, oauth_token=space.hub.token("bob"))
    assert bob.predict(adapters=private, api_name="/check")["compatible"]
    with pytest.raises(Exception, match="bob/secret-lora"):
        Client(space.url, verbose=False).predict(adapters=private, api_name="/check")


def test_tools_for_agents(space: Space) -> None:
    need("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[dict[str, Any], Any, Any]:
        async with (
            streamablehttp_client(f"{space.url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            name = next(name for name in tools if name.endswith("check"))
            good = await session.call_tool(name, {"adapters": PAIR})
            bad = await session.call_tool(name, {"adapters": ["nobody/nothing"]})
            return tools, good, bad

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests has a loop of its own in this thread
        tools, good, bad = pool.submit(lambda: asyncio.run(talk())).result(timeout=60)
    assert {name.rpartition("_")[2] for name in tools} == ENDPOINTS
    for tool in tools.values():
        assert tool.description
        assert "token" not in tool.inputSchema["properties"]
    schema = next(tool for name, tool in tools.items() if name.endswith("merge")).inputSchema
    assert schema["properties"]["adapters"]["type"] == "array"
    assert ast.literal_eval(good.content[0].text)["compatible"]
    assert bad.isError and "nobody/nothing" in bad.content[0].text
