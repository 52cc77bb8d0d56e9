from __future__ import annotations

import itertools

import cv2
import numpy as np

from inference.colours import class_colour


def test_twenty_classes_have_colours_that_can_be_told_apart() -> None:
    """By OpenCV's CIE L*a*b*: a difference of 2 is the least that is seen, of 10 is plain."""
    colours = np.array([class_colour(number) for number in range(20)], np.uint8)
    lab = cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2)) > 15


def test_more_classes_have_colours_of_their_own() -> None:
    colours = {class_colour(number) for number in range(60)}
    assert len(colours) >= 55
    assert all(0 <= part <= 255 for colour in colours for part in colour)
