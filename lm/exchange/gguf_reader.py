"""The library that reads GGUF files, on its guard against damaged ones."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm.errors import UserError, require

LONGEST_STRING, MOST_ENTRIES, MOST_NAMES = 1 << 26, 1 << 21, 1 << 16
"""Bytes of a string, entries of all arrays together, keys or tensors: beyond these a file is taken to be damaged."""


def library():
    """The package gguf; raises UserError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need the package gguf: pip install -e '.[exchange]'") from error
    return gguf


def open_file(path: str | Path):
    """The library's reader, which refuses sizes that no model has before it makes lists of them."""
    gguf = library()

    class Reader(gguf.GGUFReader):
        entries = 0

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)  # whose slices cost a third of a memmap's

        def _get_str(self, offset: int):
            length = int(self._get(offset, np.uint64)[0])
            require(length <= LONGEST_STRING, f"a string of {length:,} bytes")
            return super()._get_str(offset)

        def _get_field_parts(self, orig_offs: int, raw_type: int):
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            count = int(length[0])
            require(kind[0] != gguf.GGUFValueType.ARRAY, "an array of arrays")
            self.entries += count
            require(self.entries <= MOST_ENTRIES, f"an array of {count:,} entries")
            if kind[0] not in self.gguf_scalar_to_np:
                return super()._get_field_parts(orig_offs, raw_type)
            values = self._get(orig_offs + 12, self.gguf_scalar_to_np[kind[0]], count)  # at once, not one by one
            require(len(values) == count, f"an array of {count:,} entries, of which {len(values):,} are there")
            return 12 + values.nbytes, [kind, length, values], [2], [raw_type, gguf.GGUFValueType(kind[0])]

        def _build_fields(self, offs: int, count: int) -> int:
            require(count <= MOST_NAMES, f"{int(count):,} keys")
            return super()._build_fields(offs, count)

        def _build_tensor_info(self, offs: int, count: int):
            require(count <= MOST_NAMES, f"{int(count):,} tensors")
            return super()._build_tensor_info(offs, count)

    return Reader(path)


@contextlib.contextmanager
def telling(path: str | Path) -> Iterator[None]:
    """Turns whatever the library makes of a damaged file into one line that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: not a whole GGUF file of a language model ({error or type(error).__name__})"
        ) from error
