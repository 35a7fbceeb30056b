"""Builds the C++ extensions; everything else about the package is in pyproject.toml."""

import glob
import platform
import subprocess
import sys

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension


class OptionalBuildExtension(BuildExtension):
    """Builds them where there is a C++ compiler, and installs without them where not.

    Must not hide that a compiler there is fails: such an install ends with the compiler's errors.
    """

    def build_extensions(self) -> None:
        """Build, or say why not (pip shows it with ``-v``; at run time a line says it again)."""
        compiler = self.compiler.compiler_cxx[0]
        if _starts(compiler):
            super().build_extensions()
            return
        self.extensions = []
        print(
            f"coxcompile: no C++ compiler was found ({compiler}), so the C++ kernels are not built "
            "and experts will run on plain PyTorch calls, slower. Neither is the emulated "
            "accelerator, a device for tests.",
            file=sys.stderr,
        )


def _starts(compiler: str) -> bool:
    """Whether it is a compiler to Inductor too, which asks the same."""
    try:
        return subprocess.run([compiler, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


# Their instruction sets are x86-64's.
KERNELS_FIT = platform.machine() in ("x86_64", "AMD64")

WARNINGS = ["-Wall", "-Wno-psabi"]
NATIVE = CppExtension(
    "coxcompile._native",
    sorted(glob.glob("csrc/*.cpp")),
    # Without OpenMP at::parallel_for is compiled to a plain loop. The library it links has
    # the name of the one torch ships, so that both share one thread pool.
    extra_compile_args=["-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", *WARNINGS],
    extra_link_args=["-fopenmp"],
    py_limited_api=True,
)
# pybind11, which it uses, knows no limited API.
EMULATED = CppExtension(
    "coxcompile._emulated",
    sorted(glob.glob("csrc/emulated/*.cpp")),
    extra_compile_args=["-O2", "-std=c++20", *WARNINGS],
)

setup(
    ext_modules=[
        *([NATIVE] if KERNELS_FIT else []),
        # It sleeps by Linux's clocks.
        *([EMULATED] if platform.system() == "Linux" else []),
    ],
    cmdclass={"build_ext": OptionalBuildExtension.with_options(use_ninja=False)},
)
