"""The work of `nitrodistill generate` on Ray Data, for fleets that are uneven or come and go.

    pip install ray[data]
    python examples/ray_generate.py --teacher toy --prompts prompts.txt --output /shared/pairs --num_pairs 100000

Every task is one file of the store. Files are a function of their number, written aside and renamed, so Ray may
run a task again, or twice, wherever it likes; the bytes are those of `nitrodistill generate`, which can also
complete what this began. The folder must be shared by all machines.
"""

from __future__ import annotations

import argparse
from typing import Any

from nitrodistill.data import GenerateConfig, Generation, PairStore, read_prompts
from nitrodistill.teachers import load_teacher


def open_work(teacher: str, prompts: str, output: str, config: GenerateConfig, device: str) -> Any:
    """The work, with its teacher loaded."""
    pipeline = load_teacher(teacher)
    pipeline.diffusers.to(device)
    work = Generation(pipeline, read_prompts(prompts), output, config, teacher)
    work.prepare()
    return work


class Worker:
    """What Ray runs, one in each of its processes: makes the files whose numbers it is given."""

    def __init__(self, kind: str, *settings: Any) -> None:
        self.kind, self.work = kind, open_work(*settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`{"file": [k, ...]}` -> the same, and whether each was made or there."""
        write = self.work.write_prompts if self.kind == "prompts" else self.work.write_pairs
        return {"file": batch["file"], "made": [write(int(k)) for k in batch["file"]]}


def run(settings: tuple[Any, ...], workers: int, gpus: float) -> PairStore:
    """The prompt table, then the pairs, then the manifest."""
    import ray.data

    work = open_work(*settings)
    for kind, files in (("prompts", work.prompt_files), ("shards", work.shards)):
        tasks = ray.data.from_items([{"file": k} for k in files])
        made = tasks.map_batches(
            Worker, fn_constructor_args=(kind, *settings), batch_size=1, concurrency=workers, num_gpus=gpus
        )  # fmt: skip
        print(f"{kind}: {sum(row['made'] for row in made.iter_rows())} of {len(files)} files made")
    return work.finish()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("teacher", "prompts", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_pairs", type=int, default=GenerateConfig.num_pairs)
    parser.add_argument(
        "--num_inference_steps", type=int, default=GenerateConfig.num_inference_steps
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="for each worker; 0 is the CPU")
    given = parser.parse_args()
    config = GenerateConfig(
        num_pairs=given.num_pairs, num_inference_steps=given.num_inference_steps
    )
    device = "cuda" if given.gpus else "cpu"
    settings = (given.teacher, given.prompts, given.output, config, device)
    print(f"{len(run(settings, given.workers, given.gpus))} pairs in {given.output}")


if __name__ == "__main__":
    main()
