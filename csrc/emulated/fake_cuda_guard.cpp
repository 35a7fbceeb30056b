#include "fake_cuda_guard.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "never_destroyed.h"

namespace coxcompile::emulated {

bool register_fake_cuda_guard() {
  static NeverDestroyed<c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>> guard;
  if (c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA)) {
    return false;
  }
  c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, &*guard);
  return true;
}

}  // namespace coxcompile::emulated
