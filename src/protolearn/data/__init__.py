"""Data sets whose cases keep their identity: pictures from files, tables, archives, arrays and other libraries."""

from __future__ import annotations

from protolearn.data.annotations import Annotation, MaskFolder, read_coco, read_marks
from protolearn.data.archive import ArchiveCases, archive
from protolearn.data.arrays import ArrayCases, arrays, digits
from protolearn.data.augment import Augment, Augmented
from protolearn.data.cases import Cases, Transform, view_seed
from protolearn.data.catalogue import medmnist_cases, medmnist_names, torchvision_cases, torchvision_names
from protolearn.data.concepts import Concepts, read_concepts, with_concepts
from protolearn.data.cub import cub
from protolearn.data.features import FeatureCases, features
from protolearn.data.folder import FileCases, folder, one_file
from protolearn.data.joined import JoinedCases, join
from protolearn.data.load import load_cases
from protolearn.data.manifest import manifest
from protolearn.data.pictures import content_hash, read_picture
from protolearn.data.splits import check_pair, check_training, duplicates, group_split, stratified_split, train_test
from protolearn.data.transforms import Preprocess
from protolearn.data.wrapped import WrappedCases, hugging_face, wrap

__all__ = [
    "Annotation",
    "ArchiveCases",
    "ArrayCases",
    "Augment",
    "Augmented",
    "Cases",
    "Concepts",
    "FeatureCases",
    "FileCases",
    "JoinedCases",
    "MaskFolder",
    "Preprocess",
    "Transform",
    "WrappedCases",
    "archive",
    "arrays",
    "check_pair",
    "check_training",
    "content_hash",
    "cub",
    "digits",
    "duplicates",
    "features",
    "folder",
    "group_split",
    "hugging_face",
    "join",
    "load_cases",
    "manifest",
    "medmnist_cases",
    "medmnist_names",
    "one_file",
    "read_coco",
    "read_concepts",
    "read_marks",
    "read_picture",
    "stratified_split",
    "torchvision_cases",
    "torchvision_names",
    "train_test",
    "view_seed",
    "with_concepts",
    "wrap",
]
