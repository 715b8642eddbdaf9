"""The methods that are compared: a recipe's `method`, `settings` and `optimizers`, one dict each.

Add a dict to compare another method, or another setting:

    method        as in a recipe: a name, or package.module:Class
    settings      of the method; what a teacher's methods must be told (`Teacher.settings`, and its guidance where
                  the method has that) is added
    optimizers    role -> settings of its optimizer
    shares        settings that are a share of the steps, such as {"warmup_steps": 0.15}
    trainer       other settings of the trainer, such as {"alarm_window": 50}
    times         as much time as the others; 1 where it is not given
    stages        dicts like this one instead, one after another, each with its `share` of the steps
"""

from __future__ import annotations

from typing import Any

DEPTHS = [0.25, 0.5, 0.75]
"""Taps that exist in every family."""

STUDENT = {"learning_rate": 8e-4, "lr_decay_from": 0.5, "ema_decay": 0.98}
HEADS = {"learning_rate": 2e-3, "betas": [0.0, 0.999], "lr_decay_from": 0.5}

BOTH: dict[str, Any] = {
    "method": "ladd",
    "settings": {
        "taps": DEPTHS,
        "head_width": 96,
        "adversarial": "hinge",
        "adversarial_weight": 0.5,
        "fresh_fraction": 2 / 3,
        "discriminator_timesteps": {"uniform": {"ranges": [[0.0, 0.4]]}},
        "updates": "shared",
    },
    "optimizers": {"student": {**STUDENT, "betas": [0.5, 0.999]}, "discriminator": HEADS},
    "shares": {"warmup_steps": 0.15},
}
"""The embedded teacher's recipe, with the hinge loss and on taps by depth."""

MATCHING: dict[str, Any] = {
    "method": "dmd2",
    "settings": {},
    "optimizers": {
        "student": {
            "learning_rate": 5e-4,
            "betas": [0.5, 0.999],
            "lr_decay_from": 0.6,
            "ema_decay": 0.9,
        },
        "critic": {"learning_rate": 1e-3, "lr_decay_from": 0.6},
    },
}
"""DMD2's defaults, on prompts alone; the embedded teacher's rates."""

REGRESSION: dict[str, Any] = {
    "method": "ladd",
    "settings": {"adversarial_weight": 0.0},
    "optimizers": {"student": {**STUDENT, "betas": [0.9, 0.999]}},
}


def after_regression(method: dict[str, Any], share: float) -> dict[str, Any]:
    """The method with the student of a first stage, a share of the steps, that learns the pairs."""
    first = {**REGRESSION, "share": share}
    return {"stages": [first, {**method, "student": "previous", "share": 1 - share}]}


PAIRED: dict[str, Any] = {
    "method": "dmd2",
    "settings": {
        "critic": {"updates": 2},
        "regression": {"share": 1 / 3},
        "gan": {
            "weight": 0.5,
            "real": "pairs",
            "features": "teacher",
            "taps": DEPTHS[:2],
            "head_width": 96,
            "adversarial": "relativistic",
            "timesteps": {"uniform": {"ranges": [[0.0, 0.4]]}},
        },
    },
    "optimizers": {
        "student": {**MATCHING["optimizers"]["student"], "learning_rate": 2e-4, "ema_decay": 0.95},
        "critic": MATCHING["optimizers"]["critic"],
        "discriminator": HEADS,
    },
}
"""DMD2 with pairs: regression on a third of the rows, and their latents as the discriminator's data."""

METHODS: dict[str, dict[str, Any]] = {
    "regression": REGRESSION,
    "dmd2": MATCHING,
    "dmd2 after regression": {
        **after_regression({**MATCHING, "settings": {"regression": {"share": 1 / 3}}}, 0.5),
        "times": 2,
    },
    "dmd2 with GAN after regression": {**after_regression(PAIRED, 0.5), "times": 2},
    "both": BOTH,
    "balanced": {
        **BOTH,
        "settings": {
            **BOTH["settings"],
            "taps": DEPTHS[:2],
            "adversarial_weight": 15.0,
            "balanced": True,
            "fresh_fraction": 1 / 3,
            "noising": "shared",
            "updates": "shared_pass",
        },
        "shares": {"warmup_steps": 0.5},
    },
}
"""Name -> method.

`balanced` leaves half of the steps to the reconstruction alone. Then the adversarial term has the gradient that
the discriminator can answer for (`LADDConfig.balanced`), on a third of a batch, and costs fewer passes through the
teacher.
"""
