"""Tables of users, as spreadsheets save them: each is read right, or what is wrong is named."""

import dataclasses

import pytest

from config import UserError
from medood.data import ood_set
from medood.data.files import csv_text, read_table, write_text
from medood.data.folds import Fold, read_list, read_official
from medood.data.patients import patients_of
from medood.data.workspace import ranking_path
from tests.conftest import TINY
from tests.test_names import NFC, NFD
from weak.image_labels import read_image_labels

WAYS = [(",", "utf-8", "\n"), (";", "utf-8-sig", "\r\n"), ("\t", "utf-8", "\n")]


def saved(path, rows, separator=",", encoding="utf-8", end="\n", quote=""):
    """Write a table as a spreadsheet may."""
    lines = (separator.join(f"{quote}{value}{quote}" for value in row) + end for row in rows)
    path.write_bytes("".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize("way", WAYS)
def test_every_table_of_a_user_is_read_from_any_spreadsheet(way, tmp_path):
    def save(rows, name="table.csv", quote=""):
        header, *others = rows
        empty = [""] * len(header)
        return saved(tmp_path / name, [header, empty, *others, [], empty], *way, quote)

    path = save([[" IMG_NAME", "Patient "], [f"{NFC}.png", "Jäger"], ["b_1", "p, 2"]], quote='"')
    cfg = dataclasses.replace(TINY, patients=str(path))
    assert patients_of(cfg, [f"{NFC}_0.png", "b_1_3.png"]) == ["Jäger", "p, 2"]
    rows = [["", "Img_Name", "OBJ_TAG"], ["0", f"{NFC}_0.png", "train"], ["1", "b_0.png", " test"]]
    there = {f"{NFC}_0.png", "b_0.png"}
    assert read_list(save(rows), there, set()) == ([f"{NFC}_0.png"], ["b_0.png"])
    rows = [["Höhle ", " PATIENT", "Split", "Img_Name", ""]]
    rows += [[" 1", "x ", " train ", f"{NFC} ", ""], ["0", " y", "test", "b", ""]]
    found = read_image_labels(save(rows))
    assert (found.names, found.patients, found.classes) == ([NFC, "b"], ["x", "y"], ("Höhle",))
    assert (found.given, found.labels.tolist()) == (["train", "test"], [[1], [0]])
    save([["Filename", " source", "SPLIT"], [NFC, "a", "2"], ["b.1", "a", "3"]], "info.csv")
    assert read_official(tmp_path, [f"{NFC}_0.png", "b.1_0.png"]) == {NFC: 2, "b.1": 3}


def test_a_ranking_is_read_back_whatever_the_classes_are_called(tmp_path, monkeypatch):
    classes = (("tumour ", "#000000"), (NFD, "#ffffff"))
    cfg = dataclasses.replace(TINY, workspace=tmp_path, classes=classes)
    monkeypatch.setattr(ood_set, "read_fold", lambda *_: Fold(["a_0.png"], [], []))
    row = [1, "a_0.png", 0.5, 3, 1, 2, 1]
    write_text(ranking_path(cfg, 1), csv_text(ood_set.columns(cfg), [row]))
    assert ood_set.read_hard_oods(cfg, 1) == ["a_0.png"]


def test_what_is_written_is_read_back(tmp_path):
    rows = [["a;b", "1,5", 'c"d'], ["\t", "x\ny", ""], ["", "ä", "0"]]
    write_text(tmp_path / "t.csv", csv_text(["one", "two; too", "three"], rows))
    found = [list(row.values()) for row in read_table(tmp_path / "t.csv")]
    assert found == [["a;b", "1,5", 'c"d'], ["", "x\ny", ""], ["", "ä", "0"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a;b\nhöhle;1\n".encode("cp1252"), "not a CSV in UTF-8 .* 0xf6 .*: save it as"),
        (b'a,b\n"1,2\n3,4\n', "not a CSV .*unexpected end of data.* close its quotes"),
        (b"a,A\n1,2\n", "has two columns named a: rename or remove one"),
        (b"a,b\n\n1,2\n1,5,2,5\n", "row 4 has more values than there are columns: correct it"),
    ],
)
def test_what_cannot_be_read_right_is_named_with_its_cure(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_table(tmp_path / "t.csv", known=("a",))
    assert "\n" not in str(caught.value)


def test_a_wrong_or_missing_official_split_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no info.csv in .*: add Lizard's, or set split to"):
        read_official(tmp_path, ["a_0.png"])
    for rows, said in (
        ([["a", "1"], ["a", "2"]], "row 3, FileName 'a', has the Split '2', expected 1, 2 or 3"),
        ([["a", "4"]], "row 2, FileName 'a', has the Split '4', expected 1, 2 or 3"),
        ([["b", "1"]], "does not name region a"),
    ):
        saved(tmp_path / "info.csv", [["FileName", "Split"], *rows], ";")
        with pytest.raises(UserError, match=said):
            read_official(tmp_path, ["a_0.png"])


def test_a_decimal_comma_is_named_where_a_number_is_needed(tmp_path):
    saved(tmp_path / "t.csv", [["img_name", "cat"], ["a", "1,0"], ["b", "0,0"]], ";")
    with pytest.raises(UserError, match=r"row 2 \(a\) has '1,0' in column cat, expected 0 or 1"):
        read_image_labels(tmp_path / "t.csv")
