#!/usr/bin/env bash
# Trains every direction of the default model on samples of it, and makes its samplers: build.sh [FOLDER OF RUNS]
# About a minute for each on two cores. What is there already is replaced.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/bank}
smile="a smiling face - a serious face"
age="an old face - a young adult face"
sex="a woman - a man"

train() { # NAME TEXT SOURCE TAGS(comma separated) ITERATIONS KEEP_WEIGHT KEEP...
  local name=$1 text=$2 source=$3 tags=() keep=()
  for tag in ${4//,/ }; do tags+=(--tag "$tag"); done
  for other in "${@:7}"; do keep+=(--keep "$other"); done
  flowgrad train-direction --samples 10 --seed 100 --name "$name" --text "$text" --source "$source" \
    --iterations "$5" --set keep_weight="$6" "${tags[@]}" "${keep[@]}" --bank direction_bank --output "$runs/$name" --overwrite
}

train smiling "a smiling face" "a serious face" expression,smile 8 15 "$sex" "$age"
train serious "a serious face" "a smiling face" expression 8 15 "$sex" "$age"
train surprised "a surprised face" "a face" expression 14 3 "$sex" "$age" "$smile"
train angry "an angry face" "a face" expression 14 3 "$sex" "$age"
train sad "a sad face" "a face" expression 14 3 "$sex" "$age"
train old "an old face" "a young adult face" age 14 8 "$sex" "$smile"
train young "a young adult face" "an old face" age,young 14 8 "$sex" "$smile"
train baby-faced "a baby" "a face" age,young 16 0.5 "$sex" "$smile"
train feminine "a woman" "a man" gender 14 8 "$smile" "$age"
train masculine "a man" "a woman" gender 14 8 "$smile" "$age"

flowgrad sampler debias --attribute age --pool 576 --name all-ages --title "all ages alike" --tag age --tag de-biasing \
  --description "Babies, children, young, middle-aged and old people, a fifth each to the guide and the classifier." \
  --bank direction_bank --output "$runs/all-ages" --overwrite
flowgrad sampler train --class happy,female --weight 4 --pool 1024 --name happy-women --title "happy women" \
  --tag expression --tag gender --bank direction_bank --output "$runs/happy-women" --overwrite

python - direction_bank/overview.jpg <<'PYTHON'
"""Every direction at strength 1 on the same nine samples, which none was trained on."""
import sys
from pathlib import Path

from directions.apply.inversion import join, sample_images
from directions.apply.steer import steer, to_control
from directions.bank.bank import Bank
from directions.figures import before_after
from directions.photo.reading import to_images
from directions.photo.writing import save_image
from flowgrad.models import load_model

model = load_model()
faces = join(sample_images(model, 9, seed=2000))
rows = {"sample": to_images(faces.images)}
for entry in Bank(Path("direction_bank")).list(model.name):
    rows[entry.name] = to_images(steer(model, faces, to_control(entry.load(), model)))
save_image(before_after(rows), Path(sys.argv[1]), overwrite=True)
PYTHON
