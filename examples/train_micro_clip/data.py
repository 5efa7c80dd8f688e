"""Pictures and words for `train_micro_clip`: emoji that are not among the classes of a data set to be kept apart.

    pip install resvg-py pillow
    npm pack ... (see models/clip-micro/README.md) and unpack each archive into PACKAGES/NAME-VERSION/
    python data.py PACKAGES HELD_BACK OUT

HELD_BACK is a folder whose entries are named as the classes that must not be seen: Emoji-R's `train`. OUT gets
`images/CONCEPT/RENDITION.png`, 112 x 112 on white, and `texts.json`: {"CONCEPT": ["name", "keyword", ...]}.

A concept is an entry of emojibase by its code points without variation selector, skin tone and gender. Those of the held-back classes
are left out with every variant, and so are their names and keywords. Country flags and letters are left out because there is nothing
to learn from their names.
"""

import io
import json
import re
import sys
from multiprocessing import Pool
from pathlib import Path

RENDITIONS = [
    "emojione", "emojione-monotone", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast",
    "fxemoji", "noto", "noto-v1", "twemoji",
]
SIDE = 112
# Variation selector, skin tones, joiner, female and male sign.
VARIANT = {0xFE0F, 0x1F3FB, 0x1F3FC, 0x1F3FD, 0x1F3FE, 0x1F3FF, 0x200D, 0x2640, 0x2642}
TONES = {0x1F3FB, 0x1F3FC, 0x1F3FD, 0x1F3FE, 0x1F3FF}


def slug(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("&", "and").replace("’", "")).strip("-")


def points(hexcode):
    return [int(point, 16) for point in hexcode.split("-")]


def plain(hexcode):
    """Code points without variants; of a sequence that is nothing else, all."""
    all_points = points(hexcode)
    kept = tuple(p for p in all_points if p not in VARIANT)
    return kept or tuple(all_points)


def package(root, name):
    found = [d for d in root.iterdir() if re.fullmatch(rf".*{re.escape(name)}-\d[\d.]*", d.name)]
    found = [d for d in found if "iconify" not in d.name or d.name.rsplit("-", 1)[0].endswith("json-" + name)]
    if len(found) != 1:
        sys.exit(f"{root}: expected one folder {name}-VERSION, found {[d.name for d in found]}")
    return found[0] / "package"


def concepts(root, held_back):
    """Slug to texts, and code points to slug, of everything that may be seen."""
    entries = json.loads((package(root, "emojibase-data") / "en/data.json").read_text())
    cldr = package(root, "cldr-annotations-full") / "annotations/en/annotations.json"
    cldr = json.loads(cldr.read_text())["annotations"]["annotations"]
    by_slug = {slug(e["label"]): e for e in entries}
    missing = [name for name in held_back if name not in by_slug]
    if missing:
        sys.exit(f"these classes have no emoji, so they could not be kept apart: {missing}")
    apart = {plain(by_slug[name]["hexcode"]) for name in held_back}
    texts, places, left_out = {}, {}, 0
    for entry in entries:
        name, key = slug(entry["label"]), plain(entry["hexcode"])
        flag_or_letter = entry.get("group") in (None, 9) and all(0x1F1E6 <= p <= 0x1F1FF for p in key)
        if key in apart or name in held_back:
            left_out += 1
            continue
        if flag_or_letter or entry.get("group") is None:
            continue
        own = cldr.get(entry["emoji"].replace("\ufe0f", ""), {})
        words = [entry["label"], *own.get("tts", []), *entry.get("tags", []), *own.get("default", [])]
        words = [re.sub(r"\s+", " ", w.lower().replace("’", "'")).strip() for w in words]
        words = [w for w in dict.fromkeys(words) if re.search("[a-z]", w)]
        texts[name] = words
        places[tuple(p for p in points(entry["hexcode"]) if p != 0xFE0F)] = name
    print(f"{len(texts)} concepts, {left_out} left out for {len(held_back)} classes", file=sys.stderr)
    return texts, places


def drawings(root, rendition, texts, places):
    """Slug to SVG of one rendition: by code point where the package knows it, else by name."""
    folder = package(root, rendition)
    icons = json.loads((folder / "icons.json").read_text())
    chars = folder / "chars.json"
    chars = json.loads(chars.read_text()) if chars.exists() else {}
    squashed = {name.replace("-", ""): name for name in texts}
    coded = {}
    for code, icon in chars.items():
        if TONES.isdisjoint(points(code)):
            coded.setdefault(icon, set()).add(tuple(p for p in points(code) if p != 0xFE0F))
    found = {}
    names = {**{name: name for name in icons["icons"]}, **{n: a["parent"] for n, a in icons.get("aliases", {}).items()}}
    for name, parent in names.items():
        # An icon that the package says is something else is not what its name says.
        codes = coded.get(parent, set())
        concept = next((places[code] for code in codes if code in places), None)
        if not codes:
            concept = name if name in texts else squashed.get(name) if rendition == "fxemoji" else None
        if concept and parent in icons["icons"]:
            found.setdefault(concept, svg(icons, parent))
    return found


def svg(icons, name):
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
    return f'{head} width="{width}" height="{height}" color="#000">{icon["body"]}</svg>'


def draw(job):
    import resvg_py
    from PIL import Image

    path, text = job
    if path.exists():
        return None
    try:
        data = resvg_py.svg_to_bytes(svg_string=text, width=2 * SIDE, height=2 * SIDE)
        drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    except Exception as error:  # whatever the renderer refuses
        return f"{path}: {error}"
    white = Image.new("RGBA", (2 * SIDE, 2 * SIDE), "white")
    white.alpha_composite(drawn, ((2 * SIDE - drawn.width) // 2, (2 * SIDE - drawn.height) // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    small = white.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS)
    part = path.with_suffix(".part")
    small.save(part, "PNG")
    part.rename(path)
    return None


def main():
    if len(sys.argv) != 4 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    root, held, out = map(Path, sys.argv[1:])
    held_back = {d.name for d in held.iterdir()}
    texts, places = concepts(root, held_back)
    all_drawings = {r: drawings(root, r, texts, places) for r in RENDITIONS}
    count = {name: sum(name in d for d in all_drawings.values()) for name in texts}
    texts = {name: words for name, words in texts.items() if count[name] >= 2}
    jobs = []
    for rendition, found in all_drawings.items():
        mine = [(out / "images" / name / f"{rendition}.png", text) for name, text in found.items() if name in texts]
        print(f"{rendition}: {len(mine)}", file=sys.stderr)
        jobs += mine
    with Pool() as pool:
        for problem in pool.imap_unordered(draw, jobs, 16):
            if problem:
                print(problem, file=sys.stderr)
    assert held_back.isdisjoint(texts)
    (out / "texts.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False, sort_keys=True))
    print(f"{len(jobs)} images of {len(texts)} concepts", file=sys.stderr)


if __name__ == "__main__":
    main()
