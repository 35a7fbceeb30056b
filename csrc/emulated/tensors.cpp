#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include "streams.h"

namespace coxcompile::emulated {

bool is_emulated(const at::Tensor& tensor) { return tensor.device().type() == kDeviceType; }

at::Tensor as_host(const at::Tensor& tensor) {
  if (!is_emulated(tensor)) {
    return tensor;
  }
  const c10::Storage& storage = tensor.storage();
  auto bytes = c10::InefficientStdFunctionContext::makeDataPtr(
      storage.mutable_data(), [storage](void*) {}, c10::Device(c10::kCPU));
  c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes),
                    /*allocator=*/nullptr, /*resizable=*/false);
  at::Tensor alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(host), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                     tensor.storage_offset());
  return alias;
}

}  // namespace coxcompile::emulated
