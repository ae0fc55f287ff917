"""The samples of all systems give the data and the scores that tests/golden/ holds."""

import json

import pytest

from tests.golden import SYSTEMS, found_by, path_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, "short", id=name, marks=pytest.mark.slow) for name in SYSTEMS),
        *(
            pytest.param(name, "sample", id=f"{name}, whole sample", marks=pytest.mark.long)
            for name in SYSTEMS
        ),
    ],
)
def test_a_sample_gives_what_is_written_down(name, kind, tmp_path):
    expected = json.loads(path_of(name, kind).read_text())
    found = found_by(name, kind, tmp_path)
    assert found["data"] == expected["data"]
    assert found["scores"].keys() == expected["scores"].keys()
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    if name == "trunk":
        says_that_it_is_the_sample(tmp_path)


def says_that_it_is_the_sample(workspace):
    first, *_, table = (workspace / "printed.txt").read_text().split("SAMPLE: synthetic tissue")
    assert first == ""
    assert "not Lizard" in table
    assert "miou" in table
    assert "SAMPLE" in (workspace / "sample" / "SAMPLE.txt").read_text()
    for layout in ("Lizard_Images2/sample_2.png", "Lizard_Labels/Labels/sample_1.mat"):
        assert (workspace / "sample" / layout).exists()
