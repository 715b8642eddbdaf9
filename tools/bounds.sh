#!/usr/bin/env bash
# Do the bounds in pyproject.toml hold? Installs the package with all extras into a throw-away environment, by the
# lowest versions that it allows or by the highest, and there goes the whole road and runs a part of the tests.
#
#   tools/bounds.sh 3.10 lowest-direct
#   tools/bounds.sh 3.13 highest
#
# The first argument is what `uv venv --python` takes: a version or a path. Some 8 GB for a while,
# and minutes.
set -euo pipefail
python=${1:?a version of Python, or a path} resolution=${2:?lowest-direct or highest}
here=$(cd "$(dirname "$0")/.." && pwd)
uv=$(command -v uv || echo "$here/.venv/bin/uv")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PATH="$place/venv/bin:$PATH"

"$uv" venv -q --python "$python" "$place/venv"
# lpips wants any torchvision: without a bound of its own the newest one would bring the newest torch along
"$uv" pip install -q --python "$place/venv/bin/python" --resolution "$resolution" \
  "$here[all]" "torchvision>=0.20" "hypothesis>=6.100" "pytest>=8.3"
"$uv" pip list -q --python "$place/venv/bin/python" | grep -iE '^(accelerate|diffusers|numpy|torch|transformers) '

cd "$place" # so that what is installed runs, not the source beside it
python -c "from nitrodistill.toy import scenes; print(*scenes.captions()[:64], sep='\n')" > prompts.txt
nitrodistill doctor
nitrodistill recipes > /dev/null
nitrodistill generate --teacher toy --prompts prompts.txt --output pairs --num_pairs 64 --num_inference_steps 4 --quiet
nitrodistill estimate --config toy > /dev/null
nitrodistill train --config toy --pairs pairs --output run --steps 6 --stages.trainer.preview_every 2 \
  --stages.trainer.batch_size 8 --quiet
test -f run/previews/stage-0-step-00000006.png
nitrodistill evaluate --run run --num_samples 16 --num_inference_steps 4 --cost_repeats 0
nitrodistill export --run run --output pipeline

cd "$here" # the tests lie beside the source, which is what is installed; torch 2.5 itself lets the deselected one fail
# other families' tokenizers are made there in the way of transformers 5
python -m pytest -q -p no:cacheprovider tests/export/test_lora.py -k "sd15 or sdxl or kohya or roles"
python -m pytest -q -p no:cacheprovider tests/test_init.py tests/test_prediction.py tests/schedules \
  tests/losses/test_named.py tests/losses/test_lpips.py tests/losses/test_composition.py tests/losses/test_adversarial.py \
  tests/discriminator/test_augmentation.py tests/models/test_lora.py tests/training/test_previews.py \
  --deselect tests/test_init.py::test_importing_loads_nothing_heavy_that_torch_does_not
