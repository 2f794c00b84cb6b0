from __future__ import annotations

import pytest

from tests.vlm import tiny


@pytest.fixture(params=tiny.TYPES)
def any_base(request, tiny_models):
    """A random model of each type."""
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def base(tiny_folder):
    """One of them."""
    return tiny_folder
