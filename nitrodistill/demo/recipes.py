"""What the demo trains: the recipes of its methods on the embedded teacher."""

from __future__ import annotations

from nitrodistill.methods import DMD2Config, LADDConfig
from nitrodistill.methods.dmd2.config import CriticConfig, GANConfig
from nitrodistill.training import OptimizerConfig, TrainerConfig
from nitrodistill.training.recipe import Recipe, Stage

TAPS = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block")


def toy_recipe(pairs: str, output: str, steps: int, seed: int = 0, batch_size: int = 48) -> Recipe:
    """LADD on pairs, as `benchmarks/demo_quality.py` measures it; the demo takes larger batches.

    Example:
        >>> from nitrodistill.demo import toy_recipe
        >>> toy_recipe("pairs", "runs/mine", steps=300).stages[0].trainer.steps
        300
    """
    settings = LADDConfig(
        taps=TAPS,
        head_width=96,
        adversarial="relativistic",
        adversarial_weight=0.5,
        fresh_fraction=2 / 3,
        warmup_steps=round(0.15 * steps),
        discriminator_timesteps={"uniform": {"ranges": [[0.0, 0.4]]}},
        updates="shared",
        seed=seed,
    )
    optimizers = {
        "student": OptimizerConfig(
            8e-4, (0.5, 0.999), lr_decay_from=0.5, ema_decay=_ema_decay(steps)
        ),
        "discriminator": OptimizerConfig(2e-3, (0.0, 0.999), lr_decay_from=0.5),
    }
    trainer = TrainerConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        optimizers=optimizers,
        checkpoint_every=200,
        log_every=20,
        preview_every=300,
    )
    return Recipe("toy", output, [Stage("ladd", trainer, settings)], pairs=pairs)


def _ema_decay(steps: int) -> float:
    """A short run must forget the teacher that the average starts as."""
    return min(0.99, 1 - 5 / max(steps, 6))


def matching_recipe(
    scenes: str, output: str, steps: int, num_inference_steps: int, seed: int = 0
) -> Recipe:
    """DMD2 without pairs: the captions of the scenes, and a light discriminator on the scenes themselves.

    Args:
        scenes: store of the rendered scenes' latents.
        output: folder of the run.
        steps: updates of the critic; the student has half as many.
        num_inference_steps: of the student.
        seed: of everything.

    Example:
        >>> from nitrodistill.demo import matching_recipe
        >>> matching_recipe("scenes", "runs/mine", 300, 4).stages[0].settings.num_inference_steps
        4
    """
    gan = GANConfig(
        weight=0.15,
        features="teacher",
        taps=TAPS,
        head_width=96,
        adversarial="hinge",
        timesteps={"uniform": {"ranges": [[0.0, 0.5]]}},
        seed=seed,
    )
    settings = DMD2Config(
        guidance=3.0,
        critic=CriticConfig(updates=2),
        gan=gan,
        num_inference_steps=num_inference_steps,
    )
    rate = 5e-4 if num_inference_steps == 1 else 3e-4
    student = OptimizerConfig(
        rate, (0.5, 0.999), lr_decay_from=0.6, ema_decay=_ema_decay(steps // 2)
    )
    critic = OptimizerConfig(2 * rate, (0.9, 0.999), lr_decay_from=0.6)
    discriminator = OptimizerConfig(1e-3, (0.0, 0.999), lr_decay_from=0.6)
    trainer = TrainerConfig(
        steps=steps,
        batch_size=16,
        seed=seed,
        optimizers={"student": student, "critic": critic, "discriminator": discriminator},
        checkpoint_every=200,
        log_every=20,
        preview_every=400,
    )
    return Recipe("toy", output, [Stage("dmd2", trainer, settings)], real=scenes, prompts=scenes)
