"""What `tests/test_fuzz.py` does by chance, led by the lines of our code that run: `make soak` has it after that.

    python -m tests.fuzz_atheris 10000

Takes `pip install atheris`, which has wheels for Linux. Ends with a traceback, and the bytes in a file `crash-*`, where
an answer is no error of ours, or takes half a minute.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path


def main(number: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["dpl_ray"]):
        from tests.fuzzing import answer, readers

    folder = Path(tempfile.mkdtemp())
    found = [*readers(folder / "files").values()]
    (folder / "corpus").mkdir()
    for place, (whole, _) in enumerate(found):  # the first byte says which reader it is for
        (folder / "corpus" / str(place)).write_bytes(bytes([place]) + whole)

    def try_one(data: bytes) -> None:
        if data:
            answer(found[data[0] % len(found)][1], data[1:])

    atheris.Setup([sys.argv[0], f"-runs={number}", "-timeout=30", "-max_len=20000", f"{folder}/corpus"], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    if find_spec("atheris"):
        main(int(sys.argv[1]))
    else:
        print("atheris is not installed (pip install atheris): what it would find is not looked for")
