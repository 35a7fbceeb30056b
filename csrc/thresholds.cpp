// The thresholds, and what Python reads and sets them by:
//
//   coxmoe::set_expert_thresholds(int columns, int last_vector, int panels) -> ()
//   coxmoe::expert_thresholds() -> int[]  in that order; 0 for a loop this processor does not have
//   coxmoe::expert_loops() -> str[]       of "columns", "transposed panels" and "panels", those it
//                                         has for bfloat16
#include "thresholds.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <vector>

#include "columns.h"
#include "panels.h"

namespace coxcompile {
namespace {

// Measured on Zen 4 and 5. With fewer tokens vectors are too empty, and one vector alone is bound
// by loading the weights: each broadcast of two of them is used by as many products as there are
// vectors.
constexpr int64_t kColumns = 27;
constexpr int64_t kLastVector = 14;
constexpr int64_t kPanels = 64;
// Not measured: AMX's tiles are full from 16 tokens on.
constexpr int64_t kPanelsWithAmx = 16;

// In place of a threshold for panels: the one for this processor.
constexpr int64_t kDefault = -1;

std::atomic<int64_t> columns_{kColumns};
std::atomic<int64_t> last_vector_{kLastVector};
std::atomic<int64_t> panels_{kDefault};

void check(int64_t value, const char* name, int64_t least, const char* zero) {
  TORCH_CHECK_VALUE(value >= least, "set_expert_thresholds: ", name, " is ", value,
                    ", but must be a number of tokens, 1 or more", zero);
}

void set_expert_thresholds(int64_t columns, int64_t last_vector, int64_t panels) {
  check(columns, "columns", 0, "; 0 for never");
  check(last_vector, "last_vector", 1, "; 16 for never");
  check(panels, "panels", 0, "; 0 for never");
  columns_.store(columns, std::memory_order_relaxed);
  last_vector_.store(last_vector, std::memory_order_relaxed);
  panels_.store(panels, std::memory_order_relaxed);
}

std::vector<int64_t> expert_thresholds() {
  return {has_columns() ? column_threshold() : 0, last_vector_threshold(),
          has_panels(true) ? panel_threshold(has_panels(false)) : 0};
}

std::vector<std::string> expert_loops() {
  std::vector<std::string> loops;
  if (has_columns()) {
    loops.emplace_back("columns");
  }
  if (has_panels(true)) {
    loops.emplace_back("transposed panels");
  }
  if (has_panels(false)) {
    loops.emplace_back("panels");
  }
  return loops;
}

}  // namespace

int64_t column_threshold() { return columns_.load(std::memory_order_relaxed); }

int64_t last_vector_threshold() { return last_vector_.load(std::memory_order_relaxed); }

int64_t panel_threshold(bool amx) {
  const int64_t set = panels_.load(std::memory_order_relaxed);
  return set != kDefault ? set : amx ? kPanelsWithAmx : kPanels;
}

}  // namespace coxcompile

TORCH_LIBRARY_FRAGMENT(coxmoe, m) {
  m.def("set_expert_thresholds(int columns, int last_vector, int panels) -> ()",
        &coxcompile::set_expert_thresholds);
  m.def("expert_thresholds", &coxcompile::expert_thresholds);
  m.def("expert_loops", &coxcompile::expert_loops);
}
