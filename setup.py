"""Builds the C++ kernels; everything else about the package is in pyproject.toml."""

import glob
import sys

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension


class OptionalBuildExtension(BuildExtension):
    """Lets an install go on without a C++ compiler: experts then run on plain PyTorch calls."""

    def run(self) -> None:
        """Build, or say once why not."""
        try:
            super().run()
        except Exception as error:  # a missing compiler surfaces as one of many exception types
            self.extensions = []
            print(
                f"coxcompile: the C++ kernels were not built ({error}); installing without them. "
                "Experts will run on plain PyTorch calls, several times slower.",
                file=sys.stderr,
            )


setup(
    ext_modules=[
        CppExtension(
            "coxcompile._native",
            sorted(glob.glob("csrc/*.cpp")),
            # Without OpenMP at::parallel_for is compiled to a plain loop. The library it links has
            # the name of the one torch ships, so that both share one thread pool.
            extra_compile_args=[
                *("-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-Wall", "-Wno-psabi")
            ],
            extra_link_args=["-fopenmp"],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuildExtension.with_options(use_ninja=False)},
)
