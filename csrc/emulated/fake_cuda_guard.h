// For tests that trace fake tensors on "cuda" with a PyTorch built for the CPU alone.

#pragma once

namespace coxcompile::emulated {

// Registers a CUDA device guard that does nothing, where there is none. Says whether it did.
bool register_fake_cuda_guard();

}  // namespace coxcompile::emulated
