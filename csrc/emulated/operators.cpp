#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "device_guard.h"
#include "device_memory.h"
#include "never_destroyed.h"
#include "streams.h"
#include "tensors.h"

namespace coxcompile::emulated {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  require_only_device(device.value_or(kDevice));
  return at::detail::empty_generic(sizes, &device_memory(), kKeys, c10::dtype_or_default(dtype),
                                   format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  require_only_device(device.value_or(kDevice));
  return at::detail::empty_strided_generic(sizes, strides, &device_memory(), kKeys,
                                           c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& destination, bool non_blocking) {
  copy_tensor(source, destination, non_blocking);
  return destination;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& destination) {
  destination.resize_(source.sizes());
  return copy_from(source, destination, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  const at::Tensor scalar = at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  copy_tensor(tensor, scalar, false);
  return scalar.item();
}

const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef sizes,
                         std::optional<at::MemoryFormat>) {
  // A larger storage gets the old one's bytes at once.
  streams().synchronize(current_stream());
  at::native::resize_impl_cpu_(tensor.unsafeGetTensorImpl(), sizes, std::nullopt);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, int64_t offset,
                        at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::native::set_storage_cpu_(tensor, std::move(storage), offset, sizes, strides);
}

void record_stream(at::Tensor& tensor, c10::Stream stream) {
  device_memory().recordStream(tensor.storage().data_ptr(), stream);
}

void require_on_device(const c10::OperatorHandle& op, const at::Tensor& tensor) {
  TORCH_CHECK(!tensor.defined() || is_emulated(tensor) || tensor.dim() == 0, op.schema().name(),
              ": Expected all tensors to be on the same device, but found at least two devices, ",
              kDevice, " and ", tensor.device());
}

// Runs the operator on the CPU, after the current stream and before anything else.
void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const c10::IValue& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) {
      require_on_device(op, argument.toTensor());
    } else if (argument.isTensorList()) {
      for (const at::Tensor& tensor : argument.toTensorList()) {
        require_on_device(op, tensor);
      }
    } else if (argument.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& tensor : argument.toOptionalTensorList()) {
        require_on_device(op, tensor.value_or(at::Tensor()));
      }
    }
  }
  streams().synchronize(current_stream());
  const DirectCopies direct_copies;
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

struct Registrations {
  torch::Library aten{torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__,
                      __LINE__};
  torch::Library any{torch::Library::IMPL, "_", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__};
};

}  // namespace

void register_operators() {
  static NeverDestroyed<Registrations> registrations;
  torch::Library& aten = (*registrations).aten;
  aten.impl("empty.memory_format", empty);
  aten.impl("empty_strided", empty_strided);
  aten.impl("_copy_from", copy_from);
  aten.impl("_copy_from_and_resize", copy_from_and_resize);
  aten.impl("_local_scalar_dense", local_scalar_dense);
  aten.impl("resize_", resize);
  aten.impl("set_.source_Storage_storage_offset", set_storage);
  aten.impl("record_stream", record_stream);
  aten.impl("as_strided", at::native::as_strided_tensorimpl);
  aten.impl("view", at::native::view);
  aten.impl("_reshape_alias", at::native::_reshape_alias);
  aten.impl("unfold", at::native::unfold);
  aten.impl("view_as_real", at::native::view_as_real);
  aten.impl("view_as_complex", at::native::view_as_complex);
  (*registrations).any.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}

}  // namespace coxcompile::emulated
