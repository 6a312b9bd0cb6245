"""Class folders of emoji, for the example of docs/own_data.md: the images of the npm package emoji-datasource-google, by category.

    npm pack emoji-datasource-google@16.0.0 && tar xf emoji-datasource-google-16.0.0.tgz
    python tools/emoji_folders.py package emoji

Left out are the category "Component", which holds parts of other emoji, and variants by skin tone, unless --skin-tones is given. Each image
becomes a link to the file in the package, or a copy with --copy.
"""

import argparse
import json
import os
import re
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the unpacked package")
    parser.add_argument("out", type=Path, help="folder for the classes")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--copy", action="store_true", help="copy the files instead of linking them")
    parser.add_argument("--skin-tones", action="store_true", help="also the variants by skin tone")
    args = parser.parse_args()
    count = 0
    for emoji in json.loads((args.package / "emoji.json").read_text(encoding="utf-8")):
        if emoji["category"] == "Component":
            continue
        folder = args.out / re.sub("[^a-z]+", "-", emoji["category"].lower())
        variants = emoji.get("skin_variations", {}).values() if args.skin_tones else ()
        for entry in (emoji, *variants):
            file = args.package / "img" / "google" / str(args.size) / entry["image"]
            if not file.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            target = folder / entry["image"]
            if args.copy:
                shutil.copy(file, target)
            elif not target.is_symlink():
                os.symlink(file.resolve(), target)
            count += 1
    print(f"{count} images in {len(list(args.out.iterdir()))} classes")


if __name__ == "__main__":
    main()
