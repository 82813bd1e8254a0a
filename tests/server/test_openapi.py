import json
import os
import subprocess

import pytest
from pydantic import TypeAdapter
from schemathesis_run import command

from pathosam_qupath.server import schemas

REQUESTS = [
    schemas.OpenImageRequest,
    schemas.SegmentJob,
    schemas.ProjectJob,
    schemas.RollbackJob,
    schemas.CollectJob,
    schemas.FinetuneJob,
    schemas.SuggestJob,
    schemas.RerunJob,
    schemas.PromptRequest,
    schemas.PromptModel,
    schemas.ChooseModelRequest,
    schemas.UntouchedRequest,
    schemas.WithdrawnRequest,
    schemas.ImageResponse,
    schemas.JobResponse,
    schemas.JobsResponse,
    schemas.HealthResponse,
    schemas.ModelChoice,
    schemas.PromptResponse,
    schemas.UntouchedResponse,
    schemas.ShutdownResponse,
    schemas.ErrorResponse,
]


@pytest.mark.parametrize("model", REQUESTS)
def test_examples_are_valid(model):
    examples = model.model_json_schema()["examples"]
    assert examples
    for example in examples:
        TypeAdapter(model).validate_json(json.dumps(example))


def examples(document, content):
    """Examples of a body: its own, or those of each kind of object that it may be."""
    if "example" in content:
        return [content["example"]]
    schema = content["schema"]
    found = []
    for choice in schema.get("oneOf", [schema.get("items", schema)]):
        name = choice["$ref"].rpartition("/")[2]
        assert document["components"]["schemas"][name]["examples"], name
        found += document["components"]["schemas"][name]["examples"]
    return found


def test_every_request_every_response_and_every_parameter_has_an_example(live):
    document = live.get("/openapi.json").json
    shown = live.get("/docs").body.decode()
    for path, methods in document["paths"].items():
        assert path in shown
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["description"], where
            for parameter in operation.get("parameters", []):
                assert parameter["description"], (where, parameter["name"])
                schema = parameter["schema"]
                given = [schema, *schema.get("anyOf", ())]
                assert any(one.get("examples") for one in given), (where, parameter["name"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert examples(document, content), where
            statuses = set(operation["responses"])
            assert {"4XX", "5XX"} < statuses, where
            (success,) = statuses - {"4XX", "5XX"}
            for status, response in operation["responses"].items():
                if success != "204" or status != success:
                    assert response["content"], (where, status)
                for kind, content in response.get("content", {}).items():
                    assert kind == "image/png" or examples(document, content), (where, status)


def test_the_document_is_openapi(live):
    from jsonschema_rs import Draft202012Validator

    document = live.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert document["security"] == [{"token": []}]
    for name, schema in document["components"]["schemas"].items():
        validator = Draft202012Validator({**schema, "components": document["components"]})
        for example in schema.get("examples", ()):
            assert validator.is_valid(example), name


def test_malformed_requests_do_not_break_it(live):
    """A few dozen of schemathesis' requests; benchmarks/server.py sends many hundreds."""
    done = subprocess.run(
        command(live.state, 4),
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert live.get("/v1/health").json["state"] == "ready"
