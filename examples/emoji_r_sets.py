"""Divides Emoji-R into five data sets of 40 classes for a multi-domain stream: links in a..e below a new folder.

    python examples/emoji_r_sets.py data/emoji-r data/emoji-r-5
"""

import os
import random
import sys


def main(source, target):
    classes = sorted(os.listdir(os.path.join(source, "train")))
    random.Random(0).shuffle(classes)
    for k, name in enumerate("abcde"):
        for part in ["train", "test"]:
            folder = os.path.join(target, name, part)
            os.makedirs(folder)
            for c in classes[40 * k : 40 * k + 40]:
                os.symlink(os.path.abspath(os.path.join(source, part, c)), os.path.join(folder, c))


if __name__ == "__main__":
    main(*sys.argv[1:])
