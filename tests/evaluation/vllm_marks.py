"""How tests that start vLLM are marked."""

from __future__ import annotations

import importlib.util

import pytest

NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed in this environment: make test-vllm",
    ),
    # An engine is half a minute of work, the first one of an architecture more; on a busy machine a
    # fixture that were cut short would fail every test that shares it.
    pytest.mark.timeout(3000),
]
