#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include "streams.h"

namespace coxcompile::emulated {

bool is_emulated(const at::Tensor& tensor) { return tensor.device().type() == kDeviceType; }

namespace {

at::Tensor alias_of(const at::Tensor& tensor, c10::DataPtr bytes) {
  c10::Storage host(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(bytes),
                    /*allocator=*/nullptr, /*resizable=*/false);
  at::Tensor alias = at::detail::make_tensor<c10::TensorImpl>(
      std::move(host), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                     tensor.storage_offset());
  return alias;
}

}  // namespace

at::Tensor as_host(const at::Tensor& tensor) {
  if (!is_emulated(tensor)) {
    return tensor;
  }
  const c10::Storage& storage = tensor.storage();
  return alias_of(tensor, c10::InefficientStdFunctionContext::makeDataPtr(
                              storage.mutable_data(), [storage](void*) {}, c10::kCPU));
}

at::Tensor borrow(const at::Tensor& tensor) {
  if (!is_emulated(tensor)) {
    return tensor;
  }
  return alias_of(tensor, c10::DataPtr(tensor.storage().mutable_data(), c10::kCPU));
}

}  // namespace coxcompile::emulated
