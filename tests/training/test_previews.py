from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from accelerate import tracking
from PIL import Image

from nitrodistill.methods import LADDConfig
from nitrodistill.models import Pipeline
from nitrodistill.training import run_recipe
from nitrodistill.training.previews import _show

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
LISTED = {"previews": [PIXELS]}


@pytest.mark.parametrize(
    ("kind", "method", "given"),
    [
        (kind, method, given)
        for kind, method, given in [
            ("WandBTracker", "log_images", (LISTED,)),
            ("SwanLabTracker", "log_images", (LISTED,)),
            ("AimTracker", "log_images", ({"previews": PIXELS},)),
            ("ClearMLTracker", "log_images", ({"previews": PIXELS},)),
            ("MLflowTracker", "log_artifact", ("preview.png", "previews")),
        ]
        if hasattr(tracking, kind)  # accelerate 1.6 lacks SwanLab's
    ],
)
def test_each_tracker_gets_the_sheet_as_its_method_takes_it(kind, method, given):
    """Against the signatures of Accelerate's own trackers; the services themselves are not asked."""
    tracker = object.__new__(getattr(tracking, kind))
    with mock.patch.object(type(tracker), method, autospec=True) as called:
        _show(tracker, Path("preview.png"), PIXELS, 7)
    ((_, *arguments), named) = called.call_args
    assert repr(arguments) == repr([*given])
    assert named == ({"step": 7} if method == "log_images" else {})


def test_a_tracker_is_known_by_its_name_where_accelerate_lacks_another(monkeypatch):
    monkeypatch.delattr(tracking, "SwanLabTracker", raising=False)
    tracker = mock.Mock(spec=["name", "log_images"])
    tracker.name = "tensorboard"
    _show(tracker, Path("preview.png"), PIXELS, 7)
    ((images,), named) = tracker.log_images.call_args
    assert images["previews"].shape == (1, *PIXELS.shape)
    assert named == {"step": 7, "dataformats": "NHWC"}


def test_the_sheet_is_on_the_disk_and_in_tensorboard(
    make_recipe, tiny_diffusers, tiny_scheduler, tmp_path
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pipeline = Pipeline.from_diffusers(tiny_diffusers(tiny_scheduler))
    recipe = make_recipe(LADDConfig(adversarial_weight=0.0), steps=2, preview_every=1)
    list(run_recipe(recipe, pipeline))
    files = sorted((tmp_path / "run" / "previews").iterdir())
    (events,) = (tmp_path / "run" / "logs").glob("events*")
    found = EventAccumulator(str(events), {"images": 0}).Reload().Images("previews")
    assert [event.step for event in found] == [1, 2]
    for event, file in zip(found, files, strict=True):
        with Image.open(file) as picture:
            assert (event.width, event.height) == picture.size
