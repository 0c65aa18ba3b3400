"""Pictures inside a zip file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from protolearn.data import Preprocess, archive
from protolearn.data import archive as archive_function
from protolearn.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(path: Path, **members: bytes | str) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def test_folders_inside(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "s.zip", **{"train/b/1.png": png(1), "train/a/1.png": png(0), "test/a/2.png": png(2), "x.txt": ""}
    )
    cases = archive(path)
    assert cases.ids == ("test/a/2.png", "train/a/1.png", "train/b/1.png")
    assert [cases.picture(i).getpixel((0, 0))[0] for i in range(3)] == [2, 0, 1]
    assert cases.split("train").labels.tolist() == [0, 1]
    assert cases.name == "s"


@pytest.mark.parametrize("inside", [True, False])
def test_index(tmp_path: Path, inside: bool) -> None:
    index = "file,split,label,class\na/1.png,train,1,one\na/2.png,test,0,nil\n"
    members: dict[str, bytes | str] = {"a/1.png": png(1), "a/2.png": png(2), "a/extra.png": png(3)}
    path = packed(tmp_path / "s.zip", **members, **({"index.csv": index} if inside else {}))
    if not inside:
        (tmp_path / "index.csv").write_text(index)
    cases = archive(path)
    assert (cases.ids, cases.classes, cases.labels.tolist()) == (("a/1.png", "a/2.png"), ("nil", "one"), [1, 0])
    assert cases.split("test").picture(0).getpixel((0, 0))[0] == 2


def test_workers_read_for_themselves(tmp_path: Path) -> None:
    members = {f"{name}/{i}.png": png(10 * k + i) for k, name in enumerate("ab") for i in range(8)}
    cases = archive(
        packed(tmp_path / "s.zip", **members), transform=Preprocess(size=(4, 6), mean=(0, 0, 0), std=(1, 1, 1))
    )
    alone = cases[3].inputs  # the file is open here before the workers start
    found = {}
    for batch in DataLoader(cases, batch_size=3, num_workers=2, shuffle=True):
        found.update(zip(batch.ids, batch.inputs, strict=True))
    assert (found[cases.ids[3]] == alone).all()
    reds = {case: round(float(values[0, 0, 0]) * 255) for case, values in found.items()}
    assert reds == {case: 10 * "ab".index(case[0]) + int(case[2]) for case in members}


def test_a_forked_process_opens_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that share one open file move each other's place in it."""
    cases = archive(packed(tmp_path / "s.zip", **{"a/1.png": png(0), "b/1.png": png(1)}))
    opened = []
    real = archive_function.__globals__["_open"]
    monkeypatch.setitem(archive_function.__globals__, "_open", lambda path: opened.append(path) or real(path))
    for i in range(2):
        cases.picture(i)
    assert len(opened) == 1
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert cases.picture(1).getpixel((0, 0))[0] == 1
    assert len(opened) == 2


def test_wrong_archives(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"text\.zip is not a readable zip file"):
        archive(tmp_path / "text.zip")
    with pytest.raises(DataError, match=r"lost\.zip does not exist"):
        archive(tmp_path / "lost.zip")
    with pytest.raises(DataError, match="holds no pictures"):
        archive(packed(tmp_path / "none.zip", **{"a/1.txt": "x"}))
    index = "file,label\na/1.png,x\nb/1.png,y\n"
    with pytest.raises(DataError, match=r"index\.csv row 3: b/1\.png is not in .*\(1 of 2 are missing\)"):
        archive(packed(tmp_path / "short.zip", **{"a/1.png": png(0), "index.csv": index}))
    with pytest.raises(DataError, match=r"row 2: .* leads out of the root"):
        archive(packed(tmp_path / "out.zip", **{"../1.png": png(0), "index.csv": "file,label\n../1.png,x\n"}))


def test_damaged_members_are_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "s.zip", **{"a/1.png": png(0), "b/1.png": b""})
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(bytes(content))
    cases = archive(path)
    with pytest.raises(DataError, match=r"s\.zip/a/1\.png is damaged"):
        cases.picture(0)
    with pytest.raises(DataError, match=r"s\.zip/b/1\.png is empty"):
        cases.picture(1)


def test_a_member_that_unpacks_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = archive(packed(tmp_path / "s.zip", **{"a/1.png": png(0), "b/1.png": png(1)}))
    monkeypatch.setitem(archive_function.__globals__, "LARGEST_MEMBER", 10)
    with pytest.raises(DataError, match=r"a/1\.png unpacks to \d+ bytes, the limit is 10"):
        cases.picture(0)


def test_birds_with_their_parts(shared_data: Path) -> None:
    path = shared_data / "cub_birds6" / "cub_birds6.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    birds = archive(path)
    assert (len(birds.split("train")), len(birds.split("test")), len(birds.classes)) == (180, 143, 6)
    assert birds.classes[0] == "001.Black_footed_Albatross"
    for i in (0, 100, 300):
        width, height = birds.picture(i).size
        marks = birds.annotation(i)
        assert marks is not None
        assert marks.boxes.shape == (1, 4)
        assert len(marks.point_names) == 15
        assert (marks.boxes[0, 2:] <= np.array([width, height]) + 1).all()
        seen = marks.points[marks.points[:, 2] == 1]
        assert len(seen) > 5
        assert (seen[:, :2] <= np.array([width, height])).all()
