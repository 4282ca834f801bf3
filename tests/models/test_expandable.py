"""What the network refuses, and the classifier that grows."""

import pytest
import tiny
import torch

from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import Variant


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.rand(2, 3, 8, 12), "float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "(2, 3, 8, 8)"),
        (torch.zeros(2, 1, 8, 12, dtype=torch.uint8), "(2, 1, 8, 12)"),
        (torch.zeros(3, 8, 12, dtype=torch.uint8), "(3, 8, 12)"),
        (torch.zeros(2, 3, 8, 12, dtype=torch.int64), "int64"),
    ],
    ids=["float", "size", "channels", "one image", "int64"],
)
def test_wrong_images(images: torch.Tensor, given: str) -> None:
    with pytest.raises(LabError, match=r"uint8 images of shape \(B, 3, 8, 12\)") as error:
        tiny.model()(images)
    assert given in str(error.value)


def test_patch_must_divide() -> None:
    with pytest.raises(LabError, match=r"patch = 5 does not divide images of 8 x 12 pixels\. Allowed: 1, 2, 4"):
        ExpandableViT(Network(patch=5), (3, 8, 12))


def test_a_model_without_experts() -> None:
    with pytest.raises(LabError, match="expand"):
        ExpandableViT(Network(), (3, 8, 8))(tiny.images(1, (3, 8, 8)))


def test_unknown_variant() -> None:
    with pytest.raises(LabError, match=r"Variant.reads.*Allowed: all, own"):
        Variant("mine", reads="some")
    with pytest.raises(LabError, match=r"Variant.mixes 'tasks'.*Did you mean"):
        Variant("mine", mixes="tasks")


def test_classifier_grows() -> None:
    torch.manual_seed(0)
    classifier = ExpandableClassifier()
    classifier.grow(3, 4)
    with torch.no_grad():
        classifier.bias.normal_()
    a, b = torch.randn(5, 4), torch.randn(5, 2)
    before = classifier([a])
    classifier.grow(2, 2)
    after = classifier([a, b])
    assert torch.equal(after[:, :3], before)
    assert [tuple(w.shape) for w in classifier.weights] == [(5, 4), (5, 2)]
    assert classifier.classes == 5
    assert classifier.weights[1][:3].abs().max() == 0 and classifier.weights[1][3:].abs().min() > 0
    assert torch.equal(classifier.bias[3:], torch.zeros(2))
    with pytest.raises(ValueError):
        classifier([a])
