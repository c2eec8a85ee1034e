"""Write the shortened dump of the English Wikipedia that the package gensim carries for its own tests.

    python real_dump.py OUT.xml.bz2

206 pages from 2016, 6 MB of XML, text CC BY-SA. The package is downloaded with pip, read, and never installed.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                "-d",
                scratch,
                PACKAGE,
            ],
            check=True,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
    unfinished = out.with_name(f".{out.name}")
    unfinished.write_bytes(content)
    unfinished.replace(out)


if __name__ == "__main__":
    main()
