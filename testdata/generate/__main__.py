"""Writes testdata/cases/*.json:  python testdata/generate [family or table ...]"""

import importlib
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "families"), str(HERE / "tables")]

import case

FAMILIES = sorted(p.stem for p in (HERE / "families").glob("*.py"))
TABLES = sorted(p.stem for p in (HERE / "tables").glob("*.py"))


def main(names):
    folder = HERE.parent / "cases"
    folder.mkdir(exist_ok=True)
    total = 0
    for name in names or FAMILIES + TABLES:
        module = importlib.import_module(name)
        if name in TABLES:
            text, count = module.build(), ""
        else:
            family = case.Family(name)
            module.build(family)
            text, count = family.text(), f"{family.count} cases"
        (folder / f"{name}.json").write_text(text)
        total += len(text)
        print(f"{name:12} {count:12} {len(text) / 1024:7.1f} KiB")
    print(f"total {total / 1024:.1f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
