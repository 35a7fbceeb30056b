// An expert's tokens in blocks that stay in the cache beside the weight rows they meet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "expert_projections.h"
#include "expert_tasks.h"
#include "panels.h"
#include "routing.h"

namespace coxcompile {

// Block sizes chosen on Zen 4 (1 MB of second-level cache a core): the weight rows of a task and
// the tokens they meet stay there together. Panels are smaller than a task's rows, so more tokens
// fit beside them, and each further block of tokens packs the panels again.
constexpr int64_t kTokensPerBlock = 256;
constexpr int64_t kTokensPerPanelBlock = 512;

// What a thread keeps from task to task, and of memory from call to call: to ask the system for
// some, a thread waits as long as it takes to read megabytes of weights.
template <typename scalar_t>
struct Scratch {
  std::vector<const scalar_t*> rows;
  TokenBlock<scalar_t> tokens;
  // Which tokens those are: a thread's next task often has the same.
  Task::Stage stage = Task::Stage::gate_up;
  int64_t position = -1;
  std::vector<scalar_t> panel;
  std::vector<float> products;

  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    scratch.position = -1;
    return scratch;
  }

  float* room_for_products(size_t count) {
    products.resize(std::max(products.size(), count));
    return products.data();
  }
};

// Calls body(first position, number of tokens) with these tokens in scratch.tokens, for the
// expert's tokens in blocks of about equal size. `row` gives a position's token.
template <typename scalar_t, typename Row, typename Body>
void for_token_blocks(const Task& task, const Routing& routing,
                      const Projection<scalar_t>& projection, const Row& row,
                      Scratch<scalar_t>& scratch, const Body& body) {
  const int64_t begin = routing.expert_offsets[task.expert];
  const int64_t count = routing.token_count(task.expert);
  const int64_t least = least_tokens_for_panels<scalar_t>(projection.depth, projection.transposed);
  const bool panels = least > 0 && count >= least;
  const int64_t most = panels ? kTokensPerPanelBlock : kTokensPerBlock;
  const int64_t blocks = (count + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t position = begin + count * block / blocks;
    const int64_t token_count = begin + count * (block + 1) / blocks - position;
    // Another thread may have set other thresholds since, and so other sizes of blocks.
    if (scratch.position != position || scratch.stage != task.stage ||
        scratch.tokens.count != token_count) {
      scratch.rows.resize(token_count);
      for (int64_t t = 0; t < token_count; ++t) {
        scratch.rows[t] = row(position + t);
      }
      projection.prepare(scratch.rows, panels, scratch.tokens);
      scratch.position = position;
      scratch.stage = task.stage;
    }
    body(position, token_count);
  }
}

}  // namespace coxcompile
