#!/usr/bin/env bash
# scikit-image finds a template that was cut from the very image somewhere else, if pixels are float32.
#
# Library: scikit-image 0.26.0, numpy 2.4.6, scipy 1.17.1.
# Guess: match_template of float32 pixels is that of float64 to some 1e-4: correlations in [-1, 1], as
#   its page says, and 1 where the template was cut.
# Seen: it sums the image and its squares along both axes in the type of the pixels, and subtracts
#   these running sums. In float32, on a photograph of 512 x 512 in [0, 1] and a template of 10 x 10,
#   a quarter of the answers is off by more than 0.01, the largest is 1.59, and it lies elsewhere; four
#   by four such photographs have a correlation of 11.8. The same pixels as float64 or uint8 are found
#   with 1.000 where they were cut. No warning. integral_image of the same package sums float32 in
#   float64. (Answers above 1 in earlier versions: scikit-image's issue 1712, open.)
# For users: image.astype(float) first, whenever patches are looked for in images of a network.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    scikit-image==0.26.0 numpy==2.4.6 scipy==1.17.1
cat > "$folder/match.py" <<'PYTHON'
import numpy as np
import skimage
from skimage.data import camera
from skimage.feature import match_template
from skimage.transform import integral_image

PHOTO = camera()
PLACE = (100, 200)


def found(image):
    """Correlations with a piece of the image, the largest, and where it is."""
    template = image[PLACE[0] : PLACE[0] + 10, PLACE[1] : PLACE[1] + 10]
    answer = match_template(image, template)
    return answer, answer.max(), np.unravel_index(answer.argmax(), answer.shape)


print("scikit-image", skimage.__version__, "numpy", np.__version__)
for tiles in (1, 4):
    bytes_ = np.tile(PHOTO, (tiles, tiles))
    kinds = (bytes_, bytes_ / 255.0, (bytes_ / 255).astype(np.float32))
    answers = []
    for image in kinds:
        answer, most, where = found(image)
        answers.append(answer)
        shown = f"{image.dtype} {image.shape}: {answer.dtype}, largest {most:.4f} at {where}"
        off = np.abs(answer - answers[0])
        print(f"{shown}, off by > 0.01: {(off > 0.01).mean():.0%}, up to {off.max():.1f}")
        if image.dtype == np.float32:
            assert answer.dtype == np.float32
            assert most > 1.3 and (off > 0.01).mean() > 0.15
            assert (where[0] % 512, where[1] % 512) != PLACE
        else:
            assert abs(most - 1) < 1e-6 and (where[0] % 512, where[1] % 512) == PLACE
assert integral_image((PHOTO / 255).astype(np.float32)).dtype == np.float64
PYTHON
"$folder/venv/bin/python" "$folder/match.py"
