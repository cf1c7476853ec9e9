"""Shared by all tests: slow ones run last, and small real checkpoints and data sets are made once."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
