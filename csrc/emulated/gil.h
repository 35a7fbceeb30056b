// Waiting without the GIL: what is waited for may be a Python function on another thread.

#pragma once

#include <Python.h>

namespace coxcompile::emulated {

// Releases the GIL for its lifetime, where the calling thread holds it.
class WithoutGil {
 public:
  WithoutGil() : state_(Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    if (state_ != nullptr) {
      PyEval_RestoreThread(state_);
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace coxcompile::emulated
