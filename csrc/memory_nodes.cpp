// The nodes, and what Python asks of them:
//
//   coxmoe::memory_nodes() -> int[]
//   coxmoe::spread_over_nodes(Tensor weight, int projections) -> int[]
//
// `weight` holds so many projections of the same size, one after the other, row-major. The n-th
// share of each one's rows is moved to the n-th node: the pages move, addresses and contents stay.
// Returns for each node how many of the bytes that should lie there do; pages at a share's ends
// belong to the share that they begin in, and large pages move as a whole.
#include "memory_nodes.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string>

#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace coxcompile {
namespace {

#if defined(__linux__)

constexpr size_t kPagesPerCall = 4096;

// The numbers in a file such as "0-1,3".
std::vector<int> numbers_in(const char* path) {
  std::ifstream file(path);
  std::vector<int> numbers;
  for (std::string part; std::getline(file, part, ',');) {
    std::istringstream range(part);
    int first = 0;
    if (!(range >> first)) {
      break;
    }
    int last = first;
    char dash = 0;
    range >> dash >> last;
    for (int number = first; number <= last; ++number) {
      numbers.push_back(number);
    }
  }
  return numbers;
}

std::vector<int> find_nodes() {
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::array<unsigned long, 1024 / kBits> allowed{};
  // Without the right to ask (containers forbid the call), no memory is moved either.
  if (syscall(SYS_get_mempolicy, nullptr, allowed.data(), kBits * allowed.size(), nullptr,
              MPOL_F_MEMS_ALLOWED) != 0) {
    return {0};
  }
  const std::vector<int> with_memory = numbers_in("/sys/devices/system/node/has_memory");
  std::vector<int> nodes;
  for (const int node : numbers_in("/sys/devices/system/node/has_cpu")) {
    if (static_cast<size_t>(node) < kBits * allowed.size() &&
        (allowed[node / kBits] >> (node % kBits) & 1) != 0 &&
        std::find(with_memory.begin(), with_memory.end(), node) != with_memory.end()) {
      nodes.push_back(node);
    }
  }
  return nodes.empty() ? std::vector<int>{0} : nodes;
}

// Calls body(pages, number of them) for the pages that begin in [begin, end), some at a time. Each
// is read before: Linux does not find those that it hides to see who reads them (NUMA balancing).
template <typename Body>
void for_pages(uintptr_t begin, uintptr_t end, const Body& body) {
  static const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::array<void*, kPagesPerCall> pages;
  for (uintptr_t page = (begin + page_bytes - 1) / page_bytes * page_bytes; page < end;) {
    size_t count = 0;
    for (; count < kPagesPerCall && page < end; ++count, page += page_bytes) {
      pages[count] = reinterpret_cast<void*>(page);
      static_cast<void>(*static_cast<const volatile char*>(pages[count]));
    }
    body(pages.data(), count);
  }
}

void move_to_node(uintptr_t begin, uintptr_t end, int node) {
  std::array<int, kPagesPerCall> nodes, status;
  nodes.fill(node);
  for_pages(begin, end, [&](void** pages, size_t count) {
    // What it could not move, bytes_on_node will miss.
    syscall(SYS_move_pages, 0, count, pages, nodes.data(), status.data(), MPOL_MF_MOVE);
  });
}

int64_t bytes_on_node(uintptr_t begin, uintptr_t end, int node) {
  static const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::array<int, kPagesPerCall> status;
  int64_t bytes = 0;
  for_pages(begin, end, [&](void** pages, size_t count) {
    if (syscall(SYS_move_pages, 0, count, pages, nullptr, status.data(), 0) == 0) {
      for (size_t i = 0; i < count; ++i) {
        if (status[i] == node) {
          bytes += std::min(page_bytes, end - reinterpret_cast<uintptr_t>(pages[i]));
        }
      }
    }
  });
  return bytes;
}

#else

std::vector<int> find_nodes() { return {0}; }

void move_to_node(uintptr_t, uintptr_t, int) {}

int64_t bytes_on_node(uintptr_t begin, uintptr_t end, int) { return end - begin; }

#endif

std::vector<int64_t> spread_over_nodes(const at::Tensor& weight, int64_t projections) {
  TORCH_CHECK_VALUE(weight.device().is_cpu() && weight.is_contiguous(),
                    "spread_over_nodes: weight is on ", weight.device(), " and has strides ",
                    weight.strides(), ", but must be on the CPU and contiguous");
  TORCH_CHECK_VALUE(weight.dim() >= 2, "spread_over_nodes: weight has shape ", weight.sizes(),
                    ", but must be [..., rows, depth]");
  const int64_t rows = weight.size(-1) == 0 ? 0 : weight.numel() / weight.size(-1);
  TORCH_CHECK_VALUE(projections > 0 && rows % projections == 0,
                    "spread_over_nodes: projections is ", projections,
                    ", but must divide weight's ", rows, " rows");
  const auto& nodes = memory_nodes();
  const int64_t row_bytes = weight.size(-1) * weight.element_size();
  const auto base = reinterpret_cast<uintptr_t>(weight.const_data_ptr());
  const auto for_parts = [&](const auto& body) {
    for (int64_t projection = 0; projection < projections; ++projection) {
      const int64_t start = projection * (rows / projections);
      for (size_t node = 0; node < nodes.size(); ++node) {
        const auto [first, end] = rows_of_node(rows / projections, node, nodes.size());
        body(base + (start + first) * row_bytes, base + (start + end) * row_bytes, node);
      }
    }
  };
  for_parts(
      [&](uintptr_t begin, uintptr_t end, size_t node) { move_to_node(begin, end, nodes[node]); });
  // Only now: a large page has moved with the last part of it.
  std::vector<int64_t> bytes(nodes.size());
  for_parts([&](uintptr_t begin, uintptr_t end, size_t node) {
    bytes[node] += bytes_on_node(begin, end, nodes[node]);
  });
  return bytes;
}

std::vector<int64_t> node_numbers() { return {memory_nodes().begin(), memory_nodes().end()}; }

}  // namespace

const std::vector<int>& memory_nodes() {
  static const std::vector<int> nodes = find_nodes();
  return nodes;
}

int64_t node_of_this_thread() {
#if defined(__linux__)
  const auto& nodes = memory_nodes();
  unsigned int processor = 0, node = 0;
  if (nodes.size() > 1 && getcpu(&processor, &node) == 0) {
    const auto found = std::find(nodes.begin(), nodes.end(), static_cast<int>(node));
    return found == nodes.end() ? 0 : found - nodes.begin();
  }
#endif
  return 0;
}

}  // namespace coxcompile

TORCH_LIBRARY_FRAGMENT(coxmoe, m) {
  m.def("memory_nodes", &coxcompile::node_numbers);
  m.def("spread_over_nodes(Tensor weight, int projections) -> int[]",
        &coxcompile::spread_over_nodes);
}
