"""Pictures of changed samples."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from fairtrim import (
    InputError,
)
from fairtrim_adapters.plots import (
    plot_changed_images,
    plot_damage,
    plot_most_harmful,
)
from tests.plot_cases import (
    INFLUENCE,
    check_drawn,
    damage_table,
    insets_of,
    scaled,
    some_changed,
)


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)], ids=["gray", "one", "colours"])
def test_changed_images(shape: tuple[int, ...]) -> None:
    changed = some_changed(shape)
    ax = plot_changed_images(changed, number=4, class_names=["cat", "dog", "fox"])
    check_drawn(ax)
    insets = insets_of(ax)
    assert [inset.get_title() for inset in insets] == [
        "cat: cat →\u00a0fox\nFemale, White",
        "dog: fox →\u00a0cat\nMale, White",
        "fox: fox →\u00a0dog\nFemale, White",
        "cat: dog →\u00a0cat\nMale, White",
    ]
    colours = [inset.title.get_color() for inset in insets]
    assert colours[0] == colours[2] and len(set(colours)) == 3  # lost, from wrong to wrong, lost, gained
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "right before, wrong after",
        "wrong before, right after",
        "wrong before and after",
    ]
    for place, inset in enumerate(insets):
        picture = changed.inputs[place].double().numpy()
        picture = picture.reshape(5, 4) if len(shape) == 2 or shape[0] == 1 else picture.transpose(1, 2, 0)
        np.testing.assert_allclose(inset.images[0].get_array(), scaled(picture), rtol=1e-6, atol=1e-9)


def test_changed_images_of_the_whole_loader() -> None:
    images = torch.rand(12, 7, 3, generator=torch.Generator().manual_seed(1))
    changed = replace(some_changed(sensitive=False), inputs=None)
    ax = plot_changed_images(changed, images=images)
    check_drawn(ax)
    insets = insets_of(ax)
    assert [inset.get_title() for inset in insets[:2]] == ["0: 0 →\u00a02", "1: 2 →\u00a00"]
    for row, inset in zip((10, 8, 6, 4, 2, 0), insets, strict=True):
        np.testing.assert_allclose(
            inset.images[0].get_array(), scaled(images[row].double().numpy()), rtol=1e-6, atol=1e-9
        )


def test_long_names_do_not_run_into_each_other() -> None:
    changed = some_changed(n_samples=23)
    ax = plot_changed_images(changed, class_names=["aeroplane", "automobile", "ship"])
    check_drawn(ax)
    boxes = [inset.title.get_window_extent() for inset in insets_of(ax)]
    pictures = [inset.get_window_extent() for inset in insets_of(ax)]
    assert len(boxes) == 23
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 + 1 or right.x1 < left.x0
    for title in boxes[10:]:
        assert all(title.y1 <= picture.y0 + 2 for picture in pictures[:10])


def test_no_changed_image() -> None:
    ax = plot_changed_images(some_changed(n_samples=0))
    check_drawn(ax)
    assert not insets_of(ax) and [text.get_text() for text in ax.texts] == ["no label changed"] and not ax.get_legend()


def test_changed_images_are_drawn_where_asked() -> None:
    _, axes = pyplot.subplots(1, 2)
    before = pyplot.get_fignums()
    assert plot_changed_images(some_changed(), ax=axes[1]) is axes[1]
    assert plot_damage(damage_table({"a": 3}), ax=axes[0]) is axes[0]
    assert pyplot.get_fignums() == before and len(insets_of(axes[1])) == 6 and len(axes[0].images) == 1
    check_drawn(axes[0])


def test_refused_images() -> None:
    changed = some_changed()
    refused: list[tuple[Any, str]] = [
        (lambda: plot_changed_images(changed, number=0), "number=0; expected at least 1 image"),
        (lambda: plot_changed_images(changed, images=torch.ones(6, 5, 4)), "6 images for 12 samples of the loader"),
        (
            lambda: plot_changed_images(replace(changed, inputs=None)),
            r"inputs were not kept \(keep_inputs=False\); exp",
        ),
        (
            lambda: plot_changed_images(replace(changed, inputs=torch.ones(6, 4))),
            r"inputs were of shape \(6, 4\); expec",
        ),
        (lambda: plot_changed_images(replace(changed, inputs=(1,))), "inputs were no tensor; expected images"),
        (
            lambda: plot_changed_images(changed, images=torch.ones(12, 3)),
            r"an image has shape \(3,\); expected \(H, W\)",
        ),
        (lambda: plot_changed_images(changed, class_names=["a", "b"]), "class 2 has no name among the 2 class_names"),
        (
            lambda: plot_most_harmful(INFLUENCE, images=torch.ones(7, 4)),
            r"an image has shape \(4,\); expected \(H, W\)",
        ),
    ]
    for run, message in refused:
        with pytest.raises(InputError, match=message):
            run()
    assert not pyplot.get_fignums()
