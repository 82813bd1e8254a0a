"""How schemathesis is called on a live server: requests made from its own OpenAPI document."""

import sys
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)


def command(state, examples, *words):
    """Words of a run with at most so many generated requests per operation and phase."""
    return [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{state['url']}/openapi.json",
        "--header",
        f"Authorization: Bearer {state['token']}",
        "--checks",
        ",".join(CHECKS),
        # It would end the server, as asked.
        "--exclude-path=/v1/shutdown",
        "--max-examples",
        str(examples),
        "--seed=7",
        "--request-timeout=60",
        "--phases=examples,fuzzing",
        "--suppress-health-check=all",
        "--warnings=off",
        "--no-shrink",
        *words,
    ]
