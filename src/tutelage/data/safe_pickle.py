"""Reading CIFAR's Python 2 pickles without trusting them.

These files name three globals only: ``numpy.core.multiarray._reconstruct``, ``numpy.ndarray`` and
``numpy.dtype``. Each is answered with an inert stand-in defined here, so not even NumPy's own unpickling code
runs on what the file says; any other global ends the reading.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from tutelage.errors import UserError


def read_pickle(raw: bytes, where: str) -> dict[bytes, Any]:
    """Read a pickled dict of bytes, integers, lists and uint8 arrays, executing nothing.

    Args:
        raw: Content of the file.
        where: Name of the file, for messages.

    Returns:
        The dict; strings of Python 2 come as bytes, arrays as read-only NumPy arrays.

    Raises:
        UserError: The content is no such pickle, or asks for anything else.
    """
    try:
        content = _Restricted(io.BytesIO(raw), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dict")
        return {key: value.array if isinstance(value, _Array) else value for key, value in content.items()}
    # A hostile file can make the unpickler fail in any way it likes.
    except Exception as error:
        raise UserError(
            f"{where} is not a CIFAR file ({str(error) or type(error).__name__}); "
            "nothing in it was executed; fetch the official file anew"
        ) from error


class _Inert:
    """Can't be given attributes or a state by a pickle."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of something that has none")


class _Array(_Inert):
    """Stands in for an ndarray: keeps the bytes it is given, as uint8."""

    __slots__ = ("array",)
    array: np.ndarray

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _Byte(), bool(fortran), bytes(raw)):
                self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
            case _:
                raise pickle.UnpicklingError("it holds an array that is not of unsigned bytes")


class _Byte(_Inert):
    """Stands in for the dtype uint8, which has nothing to set."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


class _MakeArray(_Inert):
    """Stands in for NumPy's array constructor."""

    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _MakeDtype(_Inert):
    """Stands in for ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _Byte:
        if code != b"u1":
            raise pickle.UnpicklingError("it holds an array that is not of unsigned bytes")
        return _Byte()


_ALLOWED: dict[tuple[str, str], _Inert] = {
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy", "ndarray"): _Inert(),
    ("numpy", "dtype"): _MakeDtype(),
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Inert:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]
