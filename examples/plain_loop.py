"""What `nitrodistill demo --method ladd` trains, in plain PyTorch: pairs, and a discriminator on fresh noise."""

import torch
from torch.optim import AdamW

import nitrodistill as nd
from nitrodistill import toy


def held_out_loss(student: nd.DiffusersDenoiser, plan: nd.StepPlan, pairs: nd.PairStore) -> float:
    """Smooth L1 between the student's latents and the teacher's, on pairs that it never saw."""
    batch = pairs.read(range(len(pairs)))
    with torch.no_grad():
        x0 = nd.sample(student, plan, batch.noise, batch.condition)
    return float(nd.SmoothL1Loss()(x0, batch.x0))


def main(steps: int = 300, num_pairs: int = 400, folder: str = "runs/plain_loop") -> float:
    teacher = nd.Pipeline.from_diffusers(toy.load_pipeline())
    configs = {"pairs": nd.GenerateConfig(num_pairs), "held_out": nd.GenerateConfig(100, seed=1)}
    stores = {
        name: nd.generate(
            teacher, toy.scenes.captions(), f"{folder}/{name}", config, teacher_name="toy"
        )
        for name, config in configs.items()
    }
    student = teacher.denoiser.copy()
    taps = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block")
    discriminator = nd.LatentDiscriminator(teacher.denoiser, taps, width=96)
    settings = nd.LADDConfig(
        adversarial="relativistic",
        adversarial_weight=0.5,
        fresh_fraction=2 / 3,
        warmup_steps=round(0.15 * steps),
        discriminator_timesteps={"uniform": {"ranges": [[0.0, 0.4]]}},
        updates="shared",
    )
    plan = nd.StepPlan.from_schedule(student.schedule)
    method = nd.LADD(student, discriminator, plan, settings)
    networks = {name: list(role.module.parameters()) for name, role in method.trainable().items()}
    rates = {"student": (8e-4, (0.5, 0.999)), "discriminator": (2e-3, (0.0, 0.999))}
    optimizers = {
        name: AdamW(networks[name], lr=rate, betas=betas, weight_decay=0.0, fused=True)
        for name, (rate, betas) in rates.items()
    }
    stream = nd.BatchStream(stores["pairs"], seed=0, batch_size=48)
    for step in range(steps):
        batch = stream(step)
        draws = nd.Draws(0, step, batch.index)
        for role, terms in method.losses(batch, method.active(step), draws):
            optimizers[role].zero_grad()
            terms.total.backward()
            torch.nn.utils.clip_grad_norm_(networks[role], 1.0)
            optimizers[role].step()
    return held_out_loss(student, plan, stores["held_out"])


if __name__ == "__main__":
    print(f"held-out reconstruction loss: {main():.4f}")
