from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nitrodistill.data.images import fitted, open_images
from nitrodistill.toy import scenes

RADIUS = 0.68 * 16  # of a large shape whose third uniform is 1/2

# Areas of the shapes for a radius of 1.
AREAS = {
    "circle": math.pi,
    "square": 1.7**2,
    "triangle": 0.5 * 2 * 1.8,
    "ring": math.pi * (1 - 0.44**2),
    "cross": 2 * (2 * 0.66) - 0.66**2,
}


def plain(caption: str, x: float = 0.5, y: float = 0.5) -> Tensor:
    """Draws a caption without tint and gradient: two colours, known to the last bit."""
    uniforms = torch.full((1, scenes.NUM_UNIFORMS), 0.5)
    uniforms[0, 0], uniforms[0, 1], uniforms[0, 10] = x, y, 0.0
    return scenes.draw(scenes.attribute_indices([caption]), uniforms)[0]


def coverage(caption: str, x: float = 0.5, y: float = 0.5) -> Tensor:
    """The shape's coverage `(32, 32)`, from the channel where the two colours differ most."""
    found = scenes.attributes(caption)
    front, back = (torch.tensor(scenes.RGB[n]) for n in (found.colour, found.background))
    channel = (front - back).abs().argmax()
    image = (plain(caption, x, y)[channel] + 1) / 2
    return (image - back[channel]) / (front[channel] - back[channel])


def test_grammar_has_330_captions_that_read_back():
    captions = scenes.captions()
    assert len(captions) == len(set(captions)) == 330
    assert [scenes.attributes(c).caption() for c in captions] == captions
    assert scenes.attributes("a small red ring on a gray background") == scenes.Attributes(
        "small", "red", "ring", "gray"
    )


def test_indices_are_positions_in_the_word_lists():
    (row,) = scenes.attribute_indices(["a large orange cross on a blue background"]).tolist()
    assert row == [1, 5, 4, 5]
    assert scenes.attribute_indices([]).shape == (0, 4)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_area_is_the_closed_form(shape: str):
    found = coverage(f"a large yellow {shape} on a black background").sum().item()
    assert found == pytest.approx(AREAS[shape] * RADIUS**2, rel=0.02)


def test_small_and_large_radii_do_not_meet():
    ratio = (
        coverage("a large red circle on a white background").sum()
        / coverage("a small red circle on a white background").sum()
    )
    assert ratio.item() == pytest.approx((0.68 / 0.46) ** 2, rel=0.02)


@pytest.mark.parametrize("colour", scenes.COLOURS)
@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_both_colours_are_the_palette(colour: str, background: str):
    if colour == background:
        return
    image = (plain(f"a large {colour} circle on a {background} background") + 1) / 2
    torch.testing.assert_close(image[:, 16, 16], torch.tensor(scenes.RGB[colour]))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor(scenes.RGB[background]))


@pytest.mark.parametrize(("size", "first", "count"), [("small", 8, 5), ("large", 12, 3)])
def test_centres_are_corners_of_latent_cells(size: str, first: int, count: int):
    place = torch.arange(scenes.IMAGE_SIZE) + 0.5
    for i in range(count):
        mask = coverage(f"a {size} red cross on a black background", x=(i + 0.5) / count, y=0.0)
        assert ((mask.sum(0) * place).sum() / mask.sum()).item() == pytest.approx(
            first + 4 * i, abs=1e-3
        )
        assert ((mask.sum(1) * place).sum() / mask.sum()).item() == pytest.approx(first, abs=1e-3)


def test_gradient_is_linear_and_bounded():
    uniforms = torch.full((1, scenes.NUM_UNIFORMS), 0.5)
    uniforms[0, 9], uniforms[0, 10] = 0.0, 1.0  # to the right, as strong as it gets
    indices = scenes.attribute_indices(["a small red circle on a gray background"])
    row = (scenes.draw(indices, uniforms)[0, 0, 0] + 1) / 2
    step = 2 * scenes.GRADIENT / scenes.IMAGE_SIZE
    torch.testing.assert_close(row.diff(), torch.full((31,), step), atol=1e-6, rtol=0)


def test_render_is_a_function_of_the_seed():
    captions = scenes.captions()[:40]
    first, again, other = (scenes.render(captions, seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(first, scenes.render(scenes.attribute_indices(captions), generator))
    assert first.shape == (40, 3, 32, 32)
    assert first.dtype == torch.float32
    assert first.min() >= -1
    assert first.max() <= 1


def test_render_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    scenes.render(scenes.captions()[:2], 0)
    assert torch.equal(before, torch.get_rng_state())


def test_render_is_pinned():
    """Data must not drift under weights that were trained on it."""
    images = scenes.render(scenes.captions(), 0)
    assert images.double().mean().item() == pytest.approx(PINNED_MEAN, abs=1e-6)
    assert images.double().std().item() == pytest.approx(PINNED_STD, abs=1e-6)


PINNED_MEAN, PINNED_STD = -0.120225113, 0.690448456


@pytest.mark.parametrize(
    "prompt", ["", "red", "a small red circle on a black background", "A Red RING"]
)
def test_known_words_pass(prompt: str):
    scenes.check_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a small cyan circle", "'cyan'.*allowed: a, small.*orange"),
        ("a small gren circle", "did you mean 'green'"),
        ("a " * 11, "11 words.*at most 10"),
    ],
)
def test_unknown_prompts_are_refused(prompt: str, message: str):
    with pytest.raises(ValueError, match=message):
        scenes.check_prompt(prompt)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red circle", "3 words instead of 8"),
        ("a small white circle on a red background", "'white'.*allowed: red, green"),
        ("a small red circle on a red background", "two different ones"),
        ("a small red blob on a gray background", "'blob'"),
    ],
)
def test_captions_outside_the_grammar_are_refused(caption: str, message: str):
    with pytest.raises(ValueError, match=message):
        scenes.attributes(caption)


def test_render_refuses_another_shape():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(B, 4\)"):
        scenes.render(torch.zeros(3, 2, dtype=torch.int64), 0)


def test_saved_scenes_are_what_is_rendered_with_their_captions(tmp_path):
    texts = scenes.captions()[:3]
    tar = scenes.save(texts, tmp_path / "made" / "scenes.tar", seed=5)
    found = open_images(tar)
    assert list(found.captions) == texts
    rendered = scenes.render(texts, 5)
    for i in range(3):
        picture = fitted(found.image(i), None)
        torch.testing.assert_close(picture, rendered[i], atol=1 / 255 + 1e-6, rtol=0)
    before = tar.stat().st_mtime_ns
    assert scenes.save(texts, tar, seed=6).stat().st_mtime_ns == before
