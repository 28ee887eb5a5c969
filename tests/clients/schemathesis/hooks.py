"""Lets schemathesis ask for what is there, too: for random ids everything is 404.

HOLDFAST_KNOWN is an object: of each parameter's or member's name the values that mean something, and some that do not.
What does not fit at all is tried all the same: schemathesis breaks the description on purpose in half of its cases.
"""

import json
import os

import schemathesis

KNOWN = json.loads(os.environ["HOLDFAST_KNOWN"])
METHODS = ("get", "put", "post", "patch", "delete", "head")


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for item in raw_schema["paths"].values():
        for holder in (item, *(item[method] for method in METHODS if method in item)):
            for parameter in holder.get("parameters", []):
                if parameter["name"] in KNOWN:
                    parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
    for kind, schema in raw_schema["components"]["schemas"].items():
        # Not where an answer has it: that is compared with the description.
        if "Body" in kind:
            for name in schema.get("properties", {}).keys() & KNOWN.keys():
                schema["properties"][name] = {"enum": KNOWN[name]}
