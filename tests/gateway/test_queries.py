"""Query strings of listings: understood or refused by name."""

import aiohttp
import pytest


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/files?limit=0", "limit"),
        ("/files?limit=10001", "limit"),
        ("/files?limit=1e3", "limit"),
        ("/files?limit=%C2%B2", "limit"),
        ("/files?limit=1&limit=2", "limit"),
        ("/files?order=up", "order"),
        ("/files?after=file-none", "after"),
        ("/files?purpose=vision", "purpose"),
        ("/files?made_up=1", "made_up"),
        ("/batches?order=asc", "order"),
        ("/responses/resp_1?stream=true", "stream"),
        ("/usage?start_time=-1", "start_time"),
        ("/usage?start_time=5&end_time=5", "start_time"),
    ],
)
async def test_a_query_is_understood_or_refused_by_name(world, path, param):
    async with (
        aiohttp.ClientSession(headers=world.headers) as session,
        session.get(f"{world.base_url}{path}") as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param
