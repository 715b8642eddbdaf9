"""One-step distillation of the embedded teacher in plain PyTorch: no trainer, no framework.

A copy of the teacher learns by regression on pairs and from a latent discriminator on fresh noise.
"""

from pathlib import Path

import torch

import nitrodistill as nd
from nitrodistill import toy

TAPS = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block")


def held_out_loss(student: nd.DiffusersDenoiser, plan: nd.StepPlan, pairs: nd.PairStore) -> float:
    """Smooth L1 between the student's latents and the teacher's, on pairs that it never saw."""
    batch = pairs.batch(range(len(pairs)), torch.arange(len(pairs)))
    with torch.no_grad():
        x0 = nd.sample(student, plan, batch.noise, batch.condition)
    return float(nd.SmoothL1Loss()(x0, batch.x0))


def main(steps: int = 300, num_pairs: int = 400, folder: str = "runs/plain_loop") -> float:
    teacher = nd.Pipeline.from_diffusers(toy.load_pipeline())
    captions = toy.scenes.captions()
    prompts = [captions[i * 97 % len(captions)] for i in range(len(captions))]  # shuffled
    stores = {}
    for name, config in (
        ("pairs", nd.GenerateConfig(num_pairs=num_pairs)),
        ("held_out", nd.GenerateConfig(num_pairs=100, seed=1)),
    ):
        stores[name] = nd.generate(
            teacher, prompts, Path(folder) / name, config, teacher_name="toy"
        )
    student = teacher.denoiser.copy()
    discriminator = nd.LatentDiscriminator(teacher.denoiser, TAPS, width=96)
    plan = nd.StepPlan.from_schedule(student.schedule)
    settings = nd.LADDConfig(
        adversarial_weight=0.5, fresh_fraction=2 / 3, warmup_steps=steps // 3, updates="shared"
    )
    method = nd.LADD(student, discriminator, plan, settings, adversarial=nd.HingeLoss())
    heads, network = discriminator.heads.parameters(), student.module.parameters()
    optimizers = {
        "student": torch.optim.AdamW(network, lr=4e-4, betas=(0.5, 0.999)),
        "discriminator": torch.optim.AdamW(heads, lr=2e-3, betas=(0.0, 0.999)),
    }
    stream = nd.PairStream(stores["pairs"], seed=0, batch_size=48)
    for step in range(steps):
        batch = stream(step)
        draws = nd.Draws(0, step, batch.index)
        for role, terms in method.losses(batch, method.active(step), draws):
            optimizers[role].zero_grad()
            terms.total.backward()
            optimizers[role].step()
    return held_out_loss(student, plan, stores["held_out"])


if __name__ == "__main__":
    print(f"held-out reconstruction loss: {main():.4f}")
