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
    schemas.PromptRequest,
    schemas.PromptModel,
    schemas.ChooseModelRequest,
    schemas.UntouchedRequest,
    schemas.ImageResponse,
    schemas.JobResponse,
    schemas.ErrorResponse,
]


@pytest.mark.parametrize("model", REQUESTS)
def test_examples_are_valid(model):
    examples = model.model_json_schema()["examples"]
    assert examples
    for example in examples:
        TypeAdapter(model).validate_json(json.dumps(example))


def test_every_body_has_an_example_and_every_operation_a_text(live):
    document = live.get("/openapi.json").json
    named = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            assert "4XX" in operation["responses"], (method, path)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = content["schema"]
                if schema.get("format") == "binary":
                    continue
                choices = schema.get("oneOf", [schema])
                for choice in choices:
                    name = choice["$ref"].rpartition("/")[2]
                    assert named[name]["examples"], name


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
