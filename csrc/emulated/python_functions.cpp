#include "python_functions.h"

#include <c10/core/SafePyObject.h>
#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "failure.h"
#include "records.h"
#include "streams.h"

namespace coxcompile::emulated {
namespace {

namespace py = pybind11;

// Calls it under the GIL, which is held, and returns the seconds that the operation takes.
double seconds_of_call(PyObject* function, double seconds) {
  const double started = now();
  const py::object result = py::handle(function)();
  const double worked = now() - started;
  if (!result.is_none()) {
    if (!PyFloat_Check(result.ptr()) && !PyLong_Check(result.ptr())) {
      throw py::type_error("the function returned " + std::string(py::str(py::type::of(result))) +
                           ", but must return None, or as a float the seconds that it takes");
    }
    seconds = result.cast<double>();
  }
  return std::max(seconds, worked);
}

py::object python_exception(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (py::error_already_set& error) {
    if (error.trace()) {
      PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
    }
    return error.value();
  } catch (const py::builtin_exception& error) {
    return py::module_::import("builtins").attr("TypeError")(error.what());
  } catch (const c10::OutOfMemoryError& error) {
    return py::module_::import("torch").attr("OutOfMemoryError")(error.what_without_backtrace());
  } catch (const c10::ValueError& error) {
    return py::module_::import("builtins").attr("ValueError")(error.what_without_backtrace());
  } catch (const c10::Error& error) {
    return py::module_::import("builtins").attr("RuntimeError")(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return py::module_::import("builtins").attr("RuntimeError")(error.what());
  }
}

}  // namespace

void enqueue_function(py::function function, std::string label, double seconds, Kind kind) {
  // Lets go of the function under the GIL, on whatever thread.
  const auto held =
      std::make_shared<c10::SafePyObject>(function.release().ptr(), getPyInterpreter());
  auto run = [held, seconds, kind](double begin) {
    const py::gil_scoped_acquire gil;
    const double taken = seconds_of_call(held->ptr(getPyInterpreter()), seconds);
    if (kind == Kind::kKernel) {
      ++counts().launches;
    }
    return Interval{begin, begin + taken};
  };
  streams().queue(current_stream()).enqueue({kind, std::move(label), std::move(run)});
}

void run_on_host(const py::function& function, double seconds) {
  const double begin = now();
  const double end = begin + seconds_of_call(function.ptr(), seconds);
  {
    const py::gil_scoped_release without_gil;
    sleep_until(end);
  }
  timeline().add({current_label(), kNoStream, Kind::kHost, {begin, end}});
}

py::object take_error() {
  streams().drain();
  const auto error = failure().take();
  if (!error.has_value()) {
    return py::none();
  }
  return py::make_tuple(error->label, python_exception(error->exception));
}

}  // namespace coxcompile::emulated
