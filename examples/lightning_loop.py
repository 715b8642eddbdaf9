"""LADD as a LightningModule: `pip install lightning`, which nitrodistill does not need. Run with lightning 2.6."""

import lightning as L
import torch
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

import nitrodistill as nd
from nitrodistill import toy


class Batches(Dataset):
    """The batches of a stream by number: Lightning moves them, and may shuffle nothing."""

    def __init__(self, stream: nd.BatchStream, steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> nd.Batch:
        return self.stream(step)


class Distillation(L.LightningModule):
    def __init__(self, method: nd.DistillationMethod) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimizers, and each loss before the next is made
        self.method = method
        roles = {name: role.module for name, role in method.trainable().items()}
        self.roles = torch.nn.ModuleDict(roles)  # what Lightning moves and saves
        self.history: list[float] = []

    def configure_optimizers(self) -> list[AdamW]:
        return [AdamW(module.parameters(), lr=8e-4) for module in self.roles.values()]

    def training_step(self, batch: nd.Batch, step: int) -> None:
        optimizers = dict(zip(self.roles, self.optimizers(), strict=True))
        draws = nd.Draws(0, step, batch.index)
        for name, terms in self.method.losses(batch, self.method.active(step), draws):
            optimizers[name].zero_grad()
            self.manual_backward(terms.total)
            self.clip_gradients(optimizers[name], 1.0, "norm")
            optimizers[name].step()
            self.log(f"{name}/loss", terms.total.detach(), prog_bar=True)
            if name == "student":
                self.history.append(terms.total.item())


def main(
    steps: int = 300, num_pairs: int = 400, folder: str = "runs/lightning_loop"
) -> list[float]:
    teacher = nd.Pipeline.from_diffusers(toy.load_pipeline())
    prompts, config = toy.scenes.captions(), nd.GenerateConfig(num_pairs)
    pairs = nd.generate(teacher, prompts, folder, config, teacher_name="toy")
    student = teacher.denoiser.copy()
    discriminator = nd.LatentDiscriminator(teacher.denoiser, [0.25, 0.5], width=96)
    plan = nd.StepPlan.from_schedule(student.schedule)
    method = nd.LADD(
        student, discriminator, plan, nd.LADDConfig(updates="shared", adversarial="hinge")
    )
    batches = Batches(nd.BatchStream(pairs, seed=0, batch_size=48), steps)
    loader = DataLoader(batches, batch_size=None)  # a batch is a batch already
    trainer = L.Trainer(max_epochs=1, devices=1, logger=False, enable_checkpointing=False)
    model = Distillation(method)
    trainer.fit(model, loader)
    nd.training.Student(student, plan).save_pretrained(f"{folder}-student")
    return model.history


if __name__ == "__main__":
    print(f"the student's loss: {main()[-1]:.4f}")
