import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response

from service.app import create_app
from service.settings import Settings
from service.web.access import allow


@allow("read")
async def read_plain() -> Response:
    return Response()


@pytest.mark.parametrize("options", [{}, {"operation_id": "plain"}, {"tags": ["plain"]}], ids=["bare", "name", "tag"])
def test_a_route_without_a_name_or_tags_is_declared_like_others(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.telemetry.log.configure", lambda *_: None)  # the log of this process is pytest's
    app = create_app(Settings(api_keys_file=tmp_path / "keys", database_read_url="postgresql://replica/users"))
    app.get("/plain", **options)(read_plain)

    async def document() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/openapi.json")

    operation = asyncio.run(document()).json()["paths"]["/plain"]["get"]
    assert operation["security"] == [{"bearer": []}, {"basic": []}]
    assert [each["name"] for each in operation["parameters"]] == ["Read-After"]
    assert set(operation["responses"]["200"]["headers"]) == {"Read-From"}
