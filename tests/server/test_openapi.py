"""The OpenAPI document against the routes, and every route fuzzed by it."""

import re

import msgspec
from starlette.routing import Route

from covey.server.openapi import OPERATIONS, openapi_document
from covey.types.errors import all_errors

from . import app as apps


def routes(app):
    return {(m, r.path) for r in app.routes if isinstance(r, Route) for m in r.methods - {"HEAD"}}


def test_the_document_has_every_route_and_no_other(tmp_path):
    async def scenario(served):
        assert routes(served.app) == {(o.method, o.path) for o in OPERATIONS}

    apps.run(scenario, directory=tmp_path, admin_token="t" * 43)


def test_the_document_is_served_and_names_every_schema_and_code():
    async def scenario(served):
        got = await served.client.get("/v1/openapi.json")
        assert got.status_code == 200 and got.headers["content-type"] == "application/json"
        document = msgspec.json.decode(got.content)
        assert document == msgspec.json.decode(msgspec.json.encode(openapi_document()))
        text = got.text
        for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
            assert name in document["components"]["schemas"]
        for operations in document["paths"].values():
            for operation in operations.values():
                for answer in operation["responses"].values():
                    kind = answer.get("content", {}).get("application/json", {}).get("schema", {})
                    codes = kind.get("properties", {}).get("code", {}).get("enum", [])
                    assert set(codes) <= set(all_errors())

    apps.run(scenario)
