"""`nitrodistill encode`: latents from real images.

Turn real images with captions into latents and text conditioning, through a teacher's VAE and text encoder, for
methods that learn from data. The images are a folder, with a .txt file of the same name beside each image, or tar
files as webdataset writes them (KEY.jpg, KEY.txt). Each image is scaled until it covers the teacher's size, and
the middle is cut out. The same command goes on with, or repairs, a folder that it began; several processes share
the work, as in generate. What is written is a pair store whose noise is drawn and belongs to no image.

example:
  nitrodistill encode --teacher ./my-pipeline --images photos --output runs/real
  torchrun --nproc_per_node 8 -m nitrodistill encode --images shards --output runs/real
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nitrodistill.cli.arguments import DeviceOption, Parser, TeacherOption, parse, read_config
from nitrodistill.cli.terminal import results, say


@dataclass(frozen=True)
class _Options:
    """Options.

    Attributes:
        images: folder of images, tar file, or folder of tar files.
        output: folder of the store.
    """

    images: str
    output: str


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `nitrodistill encode --help`."""
    from nitrodistill.data import EncodeConfig, encode, open_images
    from nitrodistill.processes import place
    from nitrodistill.teachers import TeacherSettings, load_teacher

    parts = TeacherOption, TeacherSettings, _Options, EncodeConfig, DeviceOption
    given = parse(Parser("encode", __doc__, *parts), argv)
    config = read_config(given, EncodeConfig)
    images = open_images(given.images)
    here = place()
    device = here.device(given.device)

    pipeline = load_teacher(given.teacher, read_config(given, TeacherSettings)).to(device)
    store = encode(
        pipeline,
        images,
        given.output,
        config,
        teacher_name=given.teacher,
        rank=here.rank,
        world_size=here.world_size,
        progress=not given.quiet,
    )
    results(output=given.output, images=len(store), captions=len(store.prompts))
    if here.rank == 0:
        say(f"{len(store)} images with {len(store.prompts)} captions in {given.output}")
    return 0
