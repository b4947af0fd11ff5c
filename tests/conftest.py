"""What several test modules share."""

import pytest
from environments import fresh


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A virtual environment that lends itself to one plugin after another."""
    return fresh(tmp_path_factory.mktemp("environment"))
