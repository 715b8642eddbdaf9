"""A web page that draws prompts with a student, and with its teacher next to it.

    pip install gradio
    python examples/app.py runs/student --beside teacher

Open the address that it prints. The folder is that of a run, of an exported pipeline or of an exported LoRA.
"""

from __future__ import annotations

import argparse
from typing import Any

from nitrodistill.cli.pictures import draw, load_models
from nitrodistill.evaluation.picture import to_pil
from nitrodistill.processes import place


def build(path: str, *, compare: bool = False, teacher: str | None = None) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        path: folder of a run, of an exported pipeline, or of an exported LoRA.
        compare: draw with the teacher too.
        teacher: where it is; None looks where the run or the export says.

    Raises:
        ImportError: without gradio.
    """
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "the web page needs gradio, which is not installed; pip install gradio."
        ) from error
    models = load_models(path, compare=compare, teacher=teacher, device=place().device("auto"))

    def pictures(prompt: str, seed: float) -> list[tuple[Any, str]]:
        found = []
        for name, model in models.items():
            try:
                image, seconds = draw(model, prompt, int(seed))
            except ValueError as error:  # a word that the teacher does not know, for example
                raise gradio.Error(str(error)) from error
            steps = f"{len(model.plan)} step{'s' if len(model.plan) > 1 else ''}"
            found.append(
                (_large(to_pil(image[None])[0]), f"{name}: {1000 * seconds:.0f} ms, {steps}")
            )
        return found

    with gradio.Blocks(title="nitrodistill") as page:
        gradio.Markdown(f"# {path}")
        prompt = gradio.Textbox(label="Prompt", value="a small red circle on a black background")
        seed = gradio.Number(label="Seed", value=0, precision=0, minimum=0)
        button = gradio.Button("Draw", variant="primary")
        gallery = gradio.Gallery(label="Pictures", columns=len(models), height="auto")
        gradio.on([button.click, prompt.submit], pictures, [prompt, seed], gallery)
    return page


def _large(picture: Any) -> Any:
    """A small picture enlarged by a whole factor, without smoothing."""
    factor = max(1, 320 // max(picture.size))
    return picture.resize([factor * side for side in picture.size], resample=0)


def main() -> None:
    """Opens the page on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "path", help="folder of a run, of an exported pipeline, or of an exported LoRA"
    )
    parser.add_argument("--beside", choices=["teacher"], help="who draws too")
    parser.add_argument("--teacher", help="where the teacher is, if not where the run says")
    parser.add_argument("--port", type=int, default=7860)
    given = parser.parse_args()
    page = build(given.path, compare=given.beside is not None, teacher=given.teacher)
    page.launch(server_name="127.0.0.1", server_port=given.port)


if __name__ == "__main__":
    main()
