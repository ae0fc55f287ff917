"""Damaged files of every kind end in a sentence."""

import pytest

from tests.fuzz import fuzz

OFTEN = pytest.param(10_000, marks=pytest.mark.endurance)


@pytest.mark.parametrize("count", [pytest.param(300, marks=pytest.mark.slow), OFTEN])
def test_damaged_files_end_in_a_sentence(tmp_path, count):
    refused, wrong = fuzz(tmp_path, count)
    assert wrong == []
    for kind, share in refused.items():
        assert share > 0.2, kind  # they were really damaged
