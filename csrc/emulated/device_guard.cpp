#include "device_guard.h"

#include <memory>
#include <utility>

#include "completion.h"
#include "device_memory.h"
#include "failure.h"
#include "gil.h"
#include "streams.h"

namespace coxcompile::emulated {
namespace {

// What PyTorch's handle of an event points to.
struct Event {
  std::shared_ptr<Completion> recorded;
};

Event& event_of(void* handle) { return *static_cast<Event*>(handle); }

c10::Stream stream_of(c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }

double time_of(void* handle) {
  const auto time = handle == nullptr ? std::nullopt : event_of(handle).recorded->time();
  TORCH_CHECK(time.has_value(),
              "both events must have been recorded and completed for the time "
              "between them: synchronize with the later one first");
  return *time;
}

}  // namespace

void require_only_device(c10::Device device) {
  TORCH_CHECK(device.index() <= 0, "there is one emulated device, of index 0, but ", device,
              " is asked for");
}

c10::DeviceType DeviceGuard::type() const { return kDeviceType; }

c10::Device DeviceGuard::exchangeDevice(c10::Device device) const {
  require_only_device(device);
  return kDevice;
}

c10::Device DeviceGuard::getDevice() const { return kDevice; }

void DeviceGuard::setDevice(c10::Device device) const { require_only_device(device); }

c10::Stream DeviceGuard::getStream(c10::Device) const { return stream_of(current_stream()); }

c10::Stream DeviceGuard::getDefaultStream(c10::Device) const { return stream_of(kDefaultStream); }

c10::Stream DeviceGuard::getNewStream(c10::Device, int priority) const {
  return stream_of(streams().create(priority));
}

c10::Stream DeviceGuard::getStreamFromGlobalPool(c10::Device device, bool high_priority) const {
  return getNewStream(device, high_priority ? -1 : 0);
}

c10::Stream DeviceGuard::exchangeStream(c10::Stream stream) const {
  return stream_of(exchange_stream(stream.id()));
}

bool DeviceGuard::queryStream(const c10::Stream& stream) const {
  return streams().queue(stream.id()).idle();
}

void DeviceGuard::synchronizeStream(const c10::Stream& stream) const {
  streams().synchronize(stream.id());
}

void DeviceGuard::synchronizeDevice(c10::DeviceIndex) const {
  streams().synchronize_all();
  device_memory().release_spare();
}

void DeviceGuard::recordDataPtrOnStream(const c10::DataPtr& pointer,
                                        const c10::Stream& stream) const {
  device_memory().recordStream(pointer, stream);
}

void DeviceGuard::record(void** event, const c10::Stream& stream, c10::DeviceIndex,
                         c10::EventFlag) const {
  auto recorded = streams().record(stream.id());
  if (*event == nullptr) {
    *event = std::make_unique<Event>().release();  // until destroyEvent
  }
  event_of(*event).recorded = std::move(recorded);
}

void DeviceGuard::block(void* event, const c10::Stream& stream) const {
  if (event != nullptr) {
    streams().block(stream.id(), event_of(event).recorded);
  }
}

bool DeviceGuard::queryEvent(void* event) const {
  return event == nullptr || event_of(event).recorded->time().has_value();
}

void DeviceGuard::synchronizeEvent(void* event) const {
  if (event != nullptr) {
    require_may_wait();
    {
      const auto recorded = event_of(event).recorded;
      const WithoutGil without_gil;
      recorded->wait();
    }
    failure().check();
  }
}

double DeviceGuard::elapsedTime(void* begin, void* end, c10::DeviceIndex) const {
  constexpr double kMillisecondsPerSecond = 1e3;
  return (time_of(end) - time_of(begin)) * kMillisecondsPerSecond;
}

void DeviceGuard::destroyEvent(void* event, c10::DeviceIndex) const noexcept {
  const std::unique_ptr<Event> destroyed(static_cast<Event*>(event));
}

}  // namespace coxcompile::emulated
