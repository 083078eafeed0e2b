# SPDX-License-Identifier: Apache-2.0
"""Training images that change at random."""

import datasets
import numpy as np
import pytest
import torch

from rtransformer_hf import RTransformerImageProcessor
from rtransformer_hf.training.image_augmentation import AugmentedImages

HEIGHT, WIDTH = 12, 9


def make_images(num_channels: int = 1, permutation_seed: int | None = None, seed: int = 0, **ranges):
    """Images with a bright square in the middle, changed at random."""
    image = np.zeros((HEIGHT, WIDTH, num_channels), dtype=np.uint8)
    image[4:8, 3:6] = np.arange(1, num_channels + 1) * 80
    processor = RTransformerImageProcessor(
        size={"height": HEIGHT, "width": WIDTH},
        image_mean=[0.2] * num_channels,
        image_std=[0.5] * num_channels,
        permutation_seed=permutation_seed,
    )
    input_values = processor([image] * 3, return_tensors="np")["input_values"].reshape(3, -1)
    rows = datasets.Dataset.from_dict({"input_values": input_values, "labels": [0, 1, 2]}).with_format("torch")
    return rows, AugmentedImages(
        rows,
        processor,
        **{"shift": 0, "rotation": 0, "scale": 0, "share": 1, "interpolation": "bilinear", "seed": seed, **ranges},
    )


def grey(values: torch.Tensor) -> torch.Tensor:
    """(height, width, channels) from 0 to 1."""
    return (values * 0.5 + 0.2).view(HEIGHT, WIDTH, -1)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_any_range_images_stay_what_they_are(num_channels, interpolation):
    rows, images = make_images(num_channels, interpolation=interpolation)
    assert len(images) == 3
    for row, image in zip(rows, (images[index] for index in range(3)), strict=True):
        torch.testing.assert_close(image["input_values"], row["input_values"])
        assert image["labels"] == row["labels"]


def test_shifts_stay_in_their_range_and_leave_black_behind():
    _, images = make_images(shift=2)
    centres = []
    for epoch in range(60):
        images.set_epoch(epoch)
        image = grey(images[0]["input_values"])[..., 0]
        assert image.min() > -1e-6
        torch.testing.assert_close(image.sum(), torch.tensor(12 * 80 / 255))
        down, right = (
            (image * torch.arange(size).view(shape)).sum() / image.sum()
            for size, shape in ((12, (12, 1)), (9, (1, 9)))
        )
        centres.append((down - 5.5, right - 4))
    offsets = torch.tensor(centres)
    assert offsets.abs().max() <= 2.001 and (offsets.amax(0) > 1.5).all() and (offsets.amin(0) < -1.5).all()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_bicubic_interpolation_smooths_less_and_stays_between_black_and_white(num_channels):
    def steepness(image: torch.Tensor) -> float:
        return sum(image.diff(dim=dim).square().sum().item() for dim in (0, 1))

    kept = {}
    for interpolation in ("bilinear", "bicubic"):
        rows, images = make_images(num_channels, shift=2, interpolation=interpolation)
        kept[interpolation] = 0
        for epoch in range(20):
            images.set_epoch(epoch)
            image = grey(images[0]["input_values"])
            assert image.min() > -1e-6 and image.max() < 1 + 1e-6
            kept[interpolation] += steepness(image) / steepness(grey(rows[0]["input_values"])) / 20
    assert kept["bilinear"] < 0.65 < kept["bicubic"] < 0.8


def test_rotation_and_scale_keep_the_centre():
    _, images = make_images(rotation=45, scale=0.3)
    sizes = []
    for epoch in range(40):
        images.set_epoch(epoch)
        image = grey(images[0]["input_values"])[..., 0]
        centre = (image * torch.arange(12.0)[:, None]).sum() / image.sum()
        assert abs(centre - 5.5) < 0.05
        sizes.append(image.sum() / (12 * 80 / 255))
    assert min(sizes) < 0.65 and max(sizes) > 1.4  # 0.7 and 1.3 squared, but for the edges


def test_a_share_of_the_images_is_changed_and_the_rest_stay_as_they_are():
    rows, images = make_images(shift=2, share=0.3)
    changed = []
    for epoch in range(100):
        images.set_epoch(epoch)
        image = images[0]["input_values"]
        changed.append(not torch.equal(image, rows[0]["input_values"]))
    assert 15 < sum(changed) < 45 and changed[:10] != changed[10:20]


def test_images_follow_from_seed_epoch_and_index():
    _, images = make_images(shift=2, rotation=10)
    _, again = make_images(shift=2, rotation=10)
    _, other = make_images(shift=2, rotation=10, seed=1)
    first = images[0]["input_values"]
    torch.testing.assert_close(first, again[0]["input_values"], rtol=0, atol=0)
    again.set_epoch(1)
    for changed in (images[1], again[0], other[0]):
        assert (changed["input_values"] - first).abs().max() > 0.1


def test_permuted_pixels_change_as_an_image_does():
    _, images = make_images(shift=2, rotation=10)
    _, permuted = make_images(shift=2, rotation=10, permutation_seed=5)
    order = np.random.RandomState(5).permutation(HEIGHT * WIDTH)
    torch.testing.assert_close(permuted[0]["input_values"], images[0]["input_values"][order])
