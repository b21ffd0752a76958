"""Writes testdata/cases/*.json:  python testdata/generate [family ...]"""

import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "families")]

import case

FAMILIES = sorted(p.stem for p in (HERE / "families").glob("*.py"))


def main(names):
    folder = HERE.parent / "cases"
    folder.mkdir(exist_ok=True)
    total = 0
    for name in names or FAMILIES:
        family = case.Family(name)
        importlib.import_module(name).build(family)
        size = family.write(folder)
        total += size
        print(f"{name:12} {family.count:5} cases {size / 1024:7.1f} KiB")
    print(f"total {total / 1024:.1f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
