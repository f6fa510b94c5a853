import pytest
from toy_network import drawn


@pytest.fixture
def make_toy():
    """Give what builds a toy with numbers of its own."""
    return drawn
