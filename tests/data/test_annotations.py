"""Boxes, parts and masks in the forms people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protolearn.data import Annotation, MaskFolder, cub, load_cases, manifest, read_coco, read_marks
from protolearn.errors import DataError

BIRDS = {
    "images.txt": "1 001.Auk/a.jpg\n2 001.Auk/b.jpg\n3 002.Gull/c d.jpg\n",
    "classes.txt": "1 001.Auk\n2 002.Gull\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n",
    "bounding_boxes.txt": "1 2.0 1.0 10.0 8.0\n2 0.0 0.0 4.0 4.0\n3 5.0 5.0 1.0 2.0\n",
    "parts/parts.txt": "1 back\n2 left eye\n",
    "parts/part_locs.txt": "1 1 3.0 4.0 1\n1 2 0.0 0.0 0\n2 1 1.5 2.5 1\n2 2 2.0 2.0 1\n3 1 0.0 0.0 0\n3 2 0.0 0.0 0\n",
}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for name, text in BIRDS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for path in ("001.Auk/a.jpg", "001.Auk/b.jpg", "002.Gull/c d.jpg"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / path)
    return tmp_path


def test_cub(birds: Path) -> None:
    cases = cub(birds)
    assert cases.ids == ("001.Auk/a.jpg", "001.Auk/b.jpg", "002.Gull/c d.jpg")
    assert (cases.classes, cases.labels.tolist()) == (("001.Auk", "002.Gull"), [0, 0, 1])
    assert cases.splits == ("train", "test", "train")
    marks = cases.annotation(0)
    assert marks is not None
    assert marks.boxes.tolist() == [[2, 1, 12, 9]]
    assert marks.point_names == ("back", "left eye")
    assert marks.points.tolist() == [[3, 4, 1], [0, 0, 0]]
    test = load_cases(birds, "test")
    assert test.ids == ("001.Auk/b.jpg",)
    assert test.annotation(0) == cases.annotation(1)
    assert test.picture(0).size == (20, 10)


def test_cub_without_boxes_or_parts(birds: Path) -> None:
    (birds / "bounding_boxes.txt").unlink()
    marks = cub(birds).annotation(1)
    assert marks is not None
    assert (len(marks.boxes), len(marks.points)) == (0, 2)
    (birds / "parts" / "part_locs.txt").unlink()
    assert cub(birds).annotation(1) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("images.txt", "1\n", r"images\.txt line 1 should have 2 cells, got '1'"),
        ("bounding_boxes.txt", "1 2.0 x 1 1\n", r"bounding_boxes\.txt line 1 should have 5 cells"),
        ("bounding_boxes.txt", "1 2.0 1.0\n", r"bounding_boxes\.txt line 1 should have 5 cells"),
        ("image_class_labels.txt", "1 1\n3 2\n", r"says nothing about image 2 \(1 of 3 are missing\)"),
        ("image_class_labels.txt", "1 1\n2 9\n3 2\n", r"classes\.txt does not name class 9"),
        ("train_test_split.txt", "1 1\n2 1\n", r"train_test_split\.txt says nothing about image 3"),
        (
            "images.txt",
            "1 001.Auk/gone.jpg\n2 001.Auk/b.jpg\n3 002.Gull/c d.jpg\n",
            r"gone\.jpg does not exist \(1 of 3",
        ),
        ("classes.txt", "", r"classes\.txt is empty"),
    ],
)
def test_cub_errors_name_file_and_line(birds: Path, name: str, text: str, message: str) -> None:
    (birds / name).write_text(text)
    with pytest.raises(DataError, match=message):
        cub(birds)


def test_cub_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\.txt cannot be read .* expected the files of CUB"):
        cub(tmp_path)


def test_plain_tables(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(
        "id,x0,y0,x1,y1,name\na.png,1,2,3,4.5,leaf\na.png,0,0,9,9,tree\nb.png,0,0,1,1,leaf\n"
    )
    (tmp_path / "parts.csv").write_text("id,part,x,y,visible\na.png,eye,5,6,1\na.png,tail,,,0\n")
    marks = read_marks(tmp_path / "boxes.csv", tmp_path / "parts.csv")
    assert marks["a.png"] == Annotation(
        boxes=np.array([[1, 2, 3, 4.5], [0, 0, 9, 9]]),
        box_labels=("leaf", "tree"),
        points=np.array([[5, 6, 1], [0, 0, 0]]),
        point_names=("eye", "tail"),
    )
    assert marks["b.png"].points.shape == (0, 3)
    assert marks["b.png"].box_labels == ("leaf",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x0,y0,x1,y1\na,1,2,x,4\n", "row 2: x1 must be a number, got 'x'"),
        ("id,x0,y0,x1,y1\na,1,2,nan,4\n", "row 2: x1 must be a number"),
        ("id,x0,y0,x1,y1\na,1,2,3,4\nb,5,0,1,1\n", "row 3: box .* ends before it starts"),
        ("id,part,x,y\na,eye,1,\n", "row 2: y must be a number, got ''"),
        ("id,a,b\n1,2,3\n", "has the columns id, a, b: expected id,x0,y0,x1,y1"),
        ("x0,y0,x1,y1\n1,2,3,4\n", "has no column id or path"),
    ],
)
def test_wrong_plain_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_marks(tmp_path / "m.csv")


def test_marks_in_a_manifest(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    head = "path,label,box_x,box_y,box_w,box_h,eye_x,eye_y,eye_visible"
    (tmp_path / "i.csv").write_text(f"{head}\na.png,x,1,2,3,4,5,6,1\nb.png,y,,,,,0,0,0\n")
    first, second = (manifest(tmp_path / "i.csv").annotation(i) for i in range(2))
    assert first == Annotation(boxes=np.array([[1, 2, 4, 6]]), points=np.array([[5, 6, 1]]), point_names=("eye",))
    assert second == Annotation(points=np.array([[0, 0, 0]]), point_names=("eye",))


COCO = {
    "images": [
        {"id": 5, "file_name": "a.jpg", "width": 6, "height": 4},
        {"id": 6, "file_name": "b.jpg", "width": 3, "height": 2},
    ],
    "categories": [{"id": 18, "name": "dog", "keypoints": ["nose", "tail"]}, {"id": 3, "name": "car"}],
    "annotations": [
        {"image_id": 5, "category_id": 18, "bbox": [1, 1, 2, 2], "keypoints": [1, 2, 2, 3, 3, 1]},
        {"image_id": 5, "category_id": 3, "bbox": [3, 0, 3, 4], "segmentation": [[3, 0, 5, 0, 5, 3, 3, 3]]},
        {"image_id": 6, "category_id": 18, "bbox": [0, 0, 1, 1], "segmentation": {"size": [2, 3], "counts": [1, 2, 3]}},
    ],
}


def test_coco(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    marks = read_coco(tmp_path / "c.json", prefix="val/")
    assert set(marks) == {"val/a.jpg", "val/b.jpg"}
    first = marks["val/a.jpg"]
    assert (first.box_labels, first.boxes.tolist()) == (("dog", "car"), [[1, 1, 3, 3], [3, 0, 6, 4]])
    assert (first.point_names, first.points.tolist()) == (("nose", "tail"), [[1, 2, 1], [3, 3, 0]])
    assert first.mask is not None
    assert first.mask.shape == (4, 6)
    assert set(np.unique(first.mask)) == {0, 2}
    assert (first.mask[:, :3] == 0).all()
    assert (first.mask[1:3, 3:5] == 2).all()
    second = marks["val/b.jpg"].mask
    assert second is not None
    assert second.tolist() == [[0, 1, 0], [1, 0, 0]]  # run lengths go down the columns


def test_wrong_coco(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(path)
    for text in ("{", "[]", json.dumps({"images": []})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"c\.json is not a COCO file"):
            read_coco(path)
    wrong = json.loads(json.dumps(COCO))
    wrong["annotations"][1]["image_id"] = 99
    path.write_text(json.dumps(wrong))
    with pytest.raises(DataError, match=r"annotation 2 is not in COCO's form \(KeyError\(99\)\)"):
        read_coco(path)
    wrong["annotations"][1] = {"image_id": 6, "category_id": 18, "segmentation": {"size": [2, 3], "counts": "abc"}}
    path.write_text(json.dumps(wrong))
    with pytest.raises(DataError, match="compressed run lengths need pycocotools"):
        read_coco(path)


def test_mask_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    mask = np.array([[0, 3], [2, 0]], dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "train" / "7.png")
    masks = MaskFolder(tmp_path, ["train/7.jpg", "train/8.jpg"])
    assert list(masks) == ["train/7.jpg"]
    found = masks["train/7.jpg"].mask
    assert found is not None
    assert found.tolist() == mask.tolist()
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "8.png")
    with pytest.raises(DataError, match=r"8\.png has mode RGB: a mask must be"):
        MaskFolder(tmp_path, ["train/8.jpg"])["train/8.jpg"]
    with pytest.raises(DataError, match=r"holds no mask for any of 1 cases: expected e\.g\. test/9\.png"):
        MaskFolder(tmp_path, ["test/9.jpg"])
    with pytest.raises(DataError, match="is not a folder"):
        MaskFolder(tmp_path / "no", ["a"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": np.zeros((2, 3))}, r"boxes must be \(n, 4\)"),
        ({"boxes": np.array([[2, 0, 1, 1]])}, "ends before it starts"),
        ({"boxes": np.array([[0, 0, np.nan, 1]])}, "must be finite"),
        ({"boxes": np.zeros((2, 4)), "box_labels": ("a",)}, "1 box labels for 2 boxes"),
        ({"points": np.zeros((2, 2))}, r"points must be \(k, 3\)"),
        ({"points": np.zeros((2, 3)), "point_names": ("a",)}, "1 point names for 2 points"),
        ({"mask": np.zeros((2, 2))}, r"a mask must be \(H, W\) uint8"),
    ],
)
def test_wrong_annotations(fields: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Annotation(**fields)


def test_equality_sees_every_field() -> None:
    one = Annotation(boxes=np.array([[0, 0, 1, 1]]), mask=np.zeros((2, 2), dtype=np.uint8))
    assert one == Annotation(boxes=np.array([[0, 0, 1, 1]]), mask=np.zeros((2, 2), dtype=np.uint8))
    assert one != Annotation(boxes=np.array([[0, 0, 1, 1]]))
    assert one != Annotation(boxes=np.array([[0, 0, 1, 2]]), mask=one.mask)
    assert one != "no"
