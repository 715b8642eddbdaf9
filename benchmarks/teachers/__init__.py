"""Five small teachers that methods are compared on, with one interface: `python -m benchmarks.teachers`.

    toy        UNet, prompts, v-prediction, zero terminal SNR; embedded
    toy-dit    PixArt, prompts, epsilon; embedded
    digits     UNet on the pixels of scikit-learn's digits, grey, unconditional, v-prediction, zero terminal SNR
    scenes     PixArt, prompts, flow; shapes at free places and angles
    classes    DiT, class labels, epsilon

The last three are trained here in minutes of one CPU core, and kept in a folder, with a hash of every file.
"""

from benchmarks.teachers.base import Quality, Teacher, Trained, built
from benchmarks.teachers.classes import Classes
from benchmarks.teachers.digits import Digits
from benchmarks.teachers.embedded import Embedded
from benchmarks.teachers.scenes import FreeScenes

__all__ = ["TEACHERS", "Quality", "Teacher", "Trained", "built"]

TEACHERS: dict[str, Teacher] = {
    teacher.name: teacher
    for teacher in (
        Embedded("toy"),
        Embedded("toy-dit", timestep=400.0),
        Digits(),
        FreeScenes(),
        Classes(),
    )
}
"""Name -> teacher, in the order of the table."""
