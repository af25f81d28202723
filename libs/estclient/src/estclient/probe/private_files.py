"""Files for libraries that read a private key from a path only, never on a disk.

On Linux they are anonymous files in memory (memfd_create), which end with the process however it
ends. Other systems get a folder that is removed at once after its use.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def private_files(*contents: bytes) -> Iterator[tuple[Path, ...]]:
    """Give a path for each content, readable by this process until the block ends."""
    with ExitStack() as stack:
        if sys.platform == "linux":
            paths = []
            for content in contents:
                descriptor = os.memfd_create("est-probe")
                file = stack.enter_context(os.fdopen(descriptor, "wb"))
                file.write(content)
                file.flush()
                paths.append(Path(f"/proc/self/fd/{descriptor}"))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # 0700
            paths = [folder / str(number) for number in range(len(contents))]
            for path, content in zip(paths, contents, strict=True):
                path.write_bytes(content)
        yield tuple(paths)
