"""Write docs/run.schema.json, the required and the optional keys of run.json, from the models that read it."""

import json
from pathlib import Path
from typing import Any

from clbench.results.record import SCHEMA_VERSION, RunRecord

FILE = Path(__file__).with_name("run.schema.json")


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of this version's run.json, which allows further keys."""
    made = RunRecord.model_json_schema(mode="validation")
    made["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "run.json",
        "description": f"One run of clbench, schema_version {SCHEMA_VERSION}; see docs/concepts.md.",
        "required": ["schema_version", *made["required"]],
    }


def text() -> str:
    """Return the whole file."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
