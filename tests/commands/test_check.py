"""`dne-lab check`: damaged images are named before a run meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Here


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for place, name in enumerate(("ant", "bee")):
            (tmp_path / "T" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng(10 * place + number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "T" / split / name / f"{number}.jpg")
    return tmp_path / "T"


def test_whole_images_are_counted_and_get_a_digest(here: Here, tree: Path) -> None:
    done = here("check", "T", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["images"] == {"train": 6, "test": 6} and found["damaged"] == []
    assert found["classes"] == ["ant", "bee"] and found["shape"] == [3, 40, 40] and found["path"] == str(tree)
    assert found["images_sha256"] in here("check", "T").out
    (tree / "train" / "ant" / "0.jpg").write_bytes((tree / "test" / "bee" / "0.jpg").read_bytes())
    assert json.loads(here("check", "T", "--json").out)["digest"] != found["digest"]
    assert json.loads(here("check", "digits", "--json").out)["images"] == {"train": 1258, "test": 539}


def test_every_damaged_image_is_named(here: Here, tree: Path) -> None:
    for name in ("train/ant/1.jpg", "test/bee/2.jpg"):
        content = bytearray((tree / name).read_bytes())
        (tree / name).write_bytes(content[: len(content) * 3 // 4])
    done = here("check", "T")
    assert done.code == 2 and "train/ant/1.jpg" in done.out and "test/bee/2.jpg" in done.out
    assert "2 file(s) of T" in done.err and "Traceback" not in done.err
    done = here("check", "T", "--json")
    assert done.code == 2 and len(json.loads(done.out)["damaged"]) == 2
    assert here("check", "nowhere/").code == 2


def test_the_home_folder_is_known_where_a_shell_leaves_it(
    here: Here, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert json.loads(here("check", "folder", "--path=~/T", "--json").out)["path"] == str(tree)
    assert json.loads(here("check", "~/T", "--json").out)["path"] == str(tree)


def test_the_name_of_a_file_forges_no_line(here: Here, tree: Path) -> None:
    (tree / "train" / "ant" / "zz\nall images can be decoded; .jpg").write_bytes(b"\xff\xd8\xff")
    done = here("check", "T", "--size", "8")
    assert done.code == 2 and "zz\\nall images can be decoded" in done.err and len(done.err.splitlines()) == 1
    whole = (tree / "train" / "ant" / "0.jpg").read_bytes()
    (tree / "train" / "ant" / "zz\nall images can be decoded; .jpg").write_bytes(whole[: len(whole) // 2])
    done = here("check", "T", "--size", "8")
    assert done.code == 2 and len(done.out.splitlines()) == 2 and len(done.err.splitlines()) == 1
    assert "zz\\nall images can be decoded; .jpg cannot be decoded" in done.out
    (tree / "train" / "ant" / "zz\nall images can be decoded; .jpg").unlink()
    (tree / "train" / "ant" / "no\nimage.txt").touch()
    with pytest.warns(UserWarning, match=r"the first is .*no\\nimage\.txt"):
        done = here("check", "T", "--size", "8")
    assert done.code == 0 and len(done.out.splitlines()) == 2
