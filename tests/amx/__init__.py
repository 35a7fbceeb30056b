"""AMX on machines without: an emulator, and oneDNN made to dispatch to its AMX kernels.

A parent process starts a child with :func:`tests.amx.emulator.environment`, which preloads the
emulator: AMX instructions raise SIGILL, and its handler executes them on tiles of the thread's own.
The child calls :func:`tests.amx.activation.activate` before its first product: the CPUID and XGETBV
instructions in oneDNN's functions become traps too, answered as by a processor with AMX, so that
PyTorch's own build compiles and runs its AMX kernels. :func:`tests.amx.activation.counters` says
what was executed.

For correctness alone, since a trap costs some ten microseconds: keep a test below 100,000 tile
operations. Executed are tile configuration, loads and stores, and products of bfloat16 and bytes;
not those of float16, so no float16 may go to oneDNN in such a process.
"""
