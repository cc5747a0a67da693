"""Augmentation: a crop, flipped or not, of each image, of another contrast and brightness, and nothing else."""

import jax
import numpy as np

from covey.models.augmentation import augmented, centre, whitened

SIZE = 5
IMAGES = np.random.Generator(np.random.Philox(key=3)).random((40, 8, 7, 3)).astype(np.float32)
EPS = np.finfo(np.float32).eps


def crops(image):
    places = [(i, j) for i in range(8 - SIZE + 1) for j in range(7 - SIZE + 1)]
    whole = [image[i : i + SIZE, j : j + SIZE] for i, j in places]
    return np.array(whole + [c[:, ::-1] for c in whole])


def fit(crop, made):
    """Return contrast, brightness and the largest error of ``made`` as a changed ``crop``."""
    mean = crop.mean((0, 1), keepdims=True)
    factor = float(((made - made.mean((0, 1), keepdims=True)) * (crop - mean)).sum() / ((crop - mean) ** 2).sum())
    shift = float((made - ((crop - mean) * factor + mean)).mean())
    return factor, shift, np.abs(made - ((crop - mean) * factor + mean + shift)).max()


def test_each_image_gets_a_crop_a_flip_a_contrast_and_a_brightness_of_its_own():
    made = np.asarray(augmented(IMAGES, SIZE, jax.random.key(0)), np.float64)
    assert made.shape == (40, SIZE, SIZE, 3)
    chosen, factors, shifts = [], [], []
    for image, result in zip(IMAGES, made, strict=True):
        fits = [fit(crop, result) for crop in crops(image.astype(np.float64))]
        best = min(range(len(fits)), key=lambda i: fits[i][2])
        # Pixels below 1, contrast below 2: a sum of 25 for the mean, then four roundings of numbers below 4.
        assert fits[best][2] < (25 + 4) * 4 * EPS
        chosen.append(best)
        factors.append(fits[best][0])
        shifts.append(fits[best][1])
    assert len(set(chosen)) > 12  # of 24: fewer has a chance below 1e-6
    assert any(c < 12 for c in chosen) and any(c >= 12 for c in chosen)
    assert 0.2 < min(factors) < 0.7 and 1.3 < max(factors) < 1.8  # one of 40 in the outer thirds: all but 1e-7
    assert -63 / 255 < min(shifts) < 0 < max(shifts) < 63 / 255


def test_another_key_gives_other_crops_and_the_same_key_the_same():
    one, again, other = (np.asarray(augmented(IMAGES, SIZE, jax.random.key(k))) for k in (1, 1, 2))
    assert one.tobytes() == again.tobytes() and not np.array_equal(one, other)


def test_the_centre_is_the_middle():
    assert np.array_equal(centre(IMAGES, SIZE), IMAGES[:, 1:6, 1:6])


def test_whitened_images_have_mean_zero_and_deviation_one_and_a_blank_one_is_zero():
    made = np.asarray(whitened(IMAGES), np.float64)
    assert np.abs(made.mean((1, 2, 3))).max() < 168 * EPS
    assert np.abs(made.std((1, 2, 3)) - 1).max() < 168 * EPS
    assert np.array_equal(whitened(np.full((1, 4, 4, 3), 0.5, np.float32)), np.zeros((1, 4, 4, 3)))
