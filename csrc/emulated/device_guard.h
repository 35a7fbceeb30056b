// What torch.Stream, torch.Event and torch.accelerator ask of the device.

#pragma once

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace coxcompile::emulated {

// Throws for a device of another index than 0.
void require_only_device(c10::Device device);

class DeviceGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override;
  c10::Device exchangeDevice(c10::Device device) const override;
  c10::Device getDevice() const override;
  void setDevice(c10::Device device) const override;
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }

  c10::Stream getStream(c10::Device) const override;
  c10::Stream getDefaultStream(c10::Device) const override;
  c10::Stream getNewStream(c10::Device, int priority = 0) const override;
  c10::Stream getStreamFromGlobalPool(c10::Device, bool high_priority = false) const override;
  c10::Stream exchangeStream(c10::Stream stream) const override;
  bool queryStream(const c10::Stream& stream) const override;
  void synchronizeStream(const c10::Stream& stream) const override;
  void synchronizeDevice(c10::DeviceIndex) const override;
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override;

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex,
              c10::EventFlag) const override;
  void block(void* event, const c10::Stream& stream) const override;
  bool queryEvent(void* event) const override;
  void synchronizeEvent(void* event) const override;
  double elapsedTime(void* begin, void* end, c10::DeviceIndex) const override;
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override;
};

}  // namespace coxcompile::emulated
