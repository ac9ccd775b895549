"""From a Relax module to a library."""

from __future__ import annotations

from tvm import base, libinfo
from tvm_ffi.libinfo import load_lib_ctypes

from ..errors import UserError


def _check_compiler() -> None:
    """TVM goes on without its compiler where that cannot be loaded, up to the first use of it. Raises OSError with the reason,
    and UserError where it is not installed."""
    if base._RUNTIME_ONLY:
        try:
            load_lib_ctypes("tvm", "tvm_compiler", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths())
        except RuntimeError:
            raise UserError(
                "This TVM has no compiler (libtvm_compiler), which building a library takes; install apache-tvm again."
            ) from None
        raise UserError("TVM was told to leave its compiler out; unset TVM_USE_RUNTIME_LIB.")


_check_compiler()
