"""How far the optimisers get: mean latent distance reached on photographs, and the seconds it takes.

python -m benchmarks.quality PHOTOGRAPHS --encoder ENCODER --target IMAGE --run release:500 --run momentum:60
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shade_fast import Budget, View, poison_batch
from shade_fast.archive import find_images
from shade_fast.cli import bound
from shade_fast.images import decode


def main() -> int:
    """Run every optimiser over the same squares of the same photographs; one CSV line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--encoder", default="embedded")
    parser.add_argument("--target", default="cat")
    parser.add_argument("--size", type=int, default=256, help="side of the centre squares that are protected")
    parser.add_argument("--linf", type=bound, default=0.05)
    parser.add_argument("--lpips", type=bound, default=None)
    parser.add_argument("--run", action="append", metavar="OPTIMIZER:STEPS", required=True)
    options = parser.parse_args()
    squares = [
        np.asarray(ImageOps.fit(Image.fromarray(decode(source.path).pixels), (options.size, options.size)))
        for source in find_images(options.photographs)
    ]
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(
        ["optimizer", "steps", "images", "start", "distance", "left", "worst_linf_levels", "worst_lpips", "seconds"]
    )
    for run in options.run:
        optimizer, steps = run.split(":")
        result = poison_batch(
            squares,
            options.target,
            encoder=options.encoder,
            budget=Budget(linf=options.linf, lpips=options.lpips),
            view=View(size=None),
            perceptual="auto" if options.lpips else None,
            optimizer=optimizer,
            steps=int(steps),
        )
        start = np.mean([image.distance_before for image in result])
        distance = np.mean([image.distance_after for image in result])
        rows.writerow(
            [
                *(optimizer, steps, len(result), f"{start:.3f}", f"{distance:.3f}", f"{distance / start:.4f}"),
                max(round(255 * (image.linf or 0)) for image in result),
                f"{max(image.lpips or 0 for image in result):.4f}",
                f"{result.seconds:.1f}",
            ]
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
