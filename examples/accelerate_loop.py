"""LADD in a loop of Accelerate, on any number of GPUs: `accelerate launch examples/accelerate_loop.py`.

On CPUs: `torchrun --nproc_per_node 2 examples/accelerate_loop.py`, as `accelerate launch --cpu --num_processes 2`
starts one process and does not say so.
"""

from torch.optim import AdamW

import nitrodistill as nd
from nitrodistill import toy


def main(
    steps: int = 300, num_pairs: int = 400, folder: str = "runs/accelerate_loop"
) -> list[float]:
    accelerator = nd.training.make_accelerator()  # an accelerate.Accelerator
    teacher = nd.Pipeline.from_diffusers(toy.load_pipeline().to(accelerator.device))
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    prompts, config = toy.scenes.captions(), nd.GenerateConfig(num_pairs)
    pairs = nd.generate(teacher, prompts, folder, config, teacher_name="toy", **place)
    student = teacher.denoiser.copy()
    discriminator = nd.LatentDiscriminator(teacher.denoiser, [0.25, 0.5], width=96)
    plan = nd.StepPlan.from_schedule(student.schedule)
    method = nd.LADD(
        student, discriminator, plan, nd.LADDConfig(updates="shared", adversarial="hinge")
    )
    optimizers = {}
    for name, role in method.trainable().items():
        module, optimizers[name] = accelerator.prepare(
            role.module, AdamW(role.module.parameters(), lr=8e-4)
        )
        role.bind(module)  # so that the method calls the prepared one
    stream = nd.BatchStream(pairs, seed=0, batch_size=48, **place)
    history = []
    for step in range(steps):
        batch = stream(step).to(accelerator.device)
        draws = nd.Draws(0, step, batch.index, gather=accelerator.gather)
        for name, terms in method.losses(batch, method.active(step), draws):
            optimizers[name].zero_grad()
            accelerator.backward(terms.total)
            accelerator.clip_grad_norm_(optimizers[name].param_groups[0]["params"], 1.0)
            optimizers[name].step()
            if name == "student":
                history.append(accelerator.reduce(terms.total.detach(), "mean").item())
    if accelerator.is_main_process:
        student.module = accelerator.unwrap_model(student.module)
        nd.training.Student(student, plan).save_pretrained(f"{folder}-student")
    return history


if __name__ == "__main__":
    print(f"the student's loss: {main()[-1]:.4f}")
