"""Tests that need an NVIDIA GPU; elsewhere they are skipped with the reason."""

from pathlib import Path

import pytest

from apex4_probe.discovery import NoGpuError, discover
from apex4_probe.errors import ApexError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    try:
        discover("0")
        reason = ""
    except (NoGpuError, ApexError) as error:
        reason = str(error)
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
