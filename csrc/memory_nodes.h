// The NUMA nodes of this machine: memory is nearest to the processors of its own node.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace coxcompile {

// The numbers of the nodes that have processors and memory which this process may use, read once;
// {0} where the system does not say.
const std::vector<int>& memory_nodes();

// The place in memory_nodes() of the node on which the calling thread runs; 0 if it has none there.
int64_t node_of_this_thread();

// Which of a projection's `rows` are the `node`-th of `nodes` nodes' share: first and end.
inline std::pair<int64_t, int64_t> rows_of_node(int64_t rows, int64_t node, int64_t nodes) {
  return {rows * node / nodes, rows * (node + 1) / nodes};
}

}  // namespace coxcompile
