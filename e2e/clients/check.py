"""What the Python clients of this folder have in common: where to ask, and how a check is reported."""

import os
import sys

# The gateway (or an engine alone) without a path, a key, and the name of a model with a chat template.
URL, KEY, MODEL = (os.environ.get(name, "") for name in ("STOWAGE_URL", "STOWAGE_KEY", "STOWAGE_MODEL"))
BASE = URL + "/v1"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = os.environ.get("STOWAGE_ANSWER", "The capital of France is Paris.")
# More tokens than any model of the tests holds.
TOO_LONG = "hello " * 20_000

_count = 0


def check(condition, message):
    """Ends the program with `message` unless the condition holds."""
    global _count
    _count += 1
    if not condition:
        sys.exit(f"check {_count} failed: {message}")


def equal(found, expected, what):
    check(found == expected, f"{what}: expected {expected!r}, got {found!r}")


def done():
    """The last line of a client that found everything as expected."""
    print(f"{_count} checks passed")
