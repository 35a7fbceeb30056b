// Tensors of the device: their bytes seen from the host, and copies.

#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

namespace coxcompile::emulated {

bool is_emulated(const at::Tensor& tensor);

// A CPU tensor of the same bytes, sizes and strides, which keeps them allocated.
at::Tensor as_host(const at::Tensor& tensor);

// The same without keeping a device tensor's bytes allocated: for work enqueued on streams, which a
// GPU's tensors do not wait for either. A tensor of the host is returned as it is.
at::Tensor borrow(const at::Tensor& tensor);

using CopyPair = std::pair<at::Tensor, at::Tensor>;  // destination, source

// Copies on the current stream. Blocking waits for it and throws the pending error, unless the copy
// stays on the device.
void copy_tensor(const at::Tensor& source, const at::Tensor& destination, bool non_blocking);

// One operation on the current stream that copies between host and device, all in one direction:
// of each of `rows` the first count[0] rows, of each of `whole` everything. count is int64 [1] on
// the sources' side, read when the copy begins.
void copy_rows(const std::vector<CopyPair>& rows, const at::Tensor& count,
               const std::vector<CopyPair>& whole, std::string label);

// While one lives, copies of the calling thread are made at once, and count as no transfer: for
// operators that run on the CPU instead.
class DirectCopies {
 public:
  DirectCopies();
  DirectCopies(const DirectCopies&) = delete;
  DirectCopies& operator=(const DirectCopies&) = delete;
  ~DirectCopies();

 private:
  const bool before_;
};

// The kernels of PyTorch's operators: memory, views, copies, and a fallback to the CPU.
void register_operators();

}  // namespace coxcompile::emulated
