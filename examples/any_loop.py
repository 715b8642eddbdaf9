"""Losses and a latent discriminator in anybody's loop: the embedded teacher in one step, no method, no trainer."""

import torch

import nitrodistill as nd
from nitrodistill import toy


def main(steps: int = 100, batch_size: int = 24) -> list[float]:
    teacher = nd.Pipeline.from_diffusers(toy.load_pipeline())
    schedule, student = teacher.denoiser.schedule, teacher.denoiser.copy()
    many, one = (nd.StepPlan.from_schedule(schedule, n) for n in (12, 1))
    structure, pyramid = nd.LatentSSIMLoss(8.0, window_size=7), nd.LaplacianPyramidLoss(2)
    terms = {"l1": (1, nd.SmoothL1Loss()), "ssim": (0.2, structure), "lap": (0.2, pyramid)}
    rebuild, game = nd.WeightedSum(terms), nd.HingeGANLoss()
    critic = nd.LatentDiscriminator(teacher.denoiser, ["down_blocks.0", "mid_block"], width=64)
    learn = torch.optim.AdamW(student.module.parameters(), lr=4e-4)
    learn_heads = torch.optim.AdamW(critic.heads.parameters(), lr=1e-3, betas=(0.0, 0.99))
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(batch_size, *teacher.latent_shape, generator=rng)
    condition = teacher.encode_prompt(toy.scenes.captions()[::13][:batch_size])
    with torch.no_grad():  # a few pairs; plain_loop.py has a store of them
        real = nd.sample(teacher.guided(3.0), many, noise, condition)
    history = []
    for _ in range(steps):
        fake = nd.predict_x0(student, one.steps[0], noise, condition)
        t = schedule.timestep(0.4 * torch.rand(batch_size, generator=rng))
        eps = torch.randn(noise.shape, generator=rng)
        real_t, fake_t = (schedule(t).mix(x0, eps) for x0 in (real, fake))
        loss = rebuild(fake, real)
        learn.zero_grad()
        (loss + 0.2 * game.generator(critic(fake_t, t, condition)).mean()).backward()
        learn.step()
        learn_heads.zero_grad()
        logits = (critic(x_t.detach(), t, condition) for x_t in (real_t, fake_t))
        game.discriminator(*logits).mean().backward()
        learn_heads.step()
        history.append(loss.item())
    return history
