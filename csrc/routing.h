// Which tokens each expert gets: a counting sort of the router's choices.
#pragma once

#include <cstdint>
#include <vector>

namespace coxcompile {

// A choice is one (token, place) pair, numbered token * top_k + place. Experts are numbered as
// their weights are stacked; choices of experts whose weights are elsewhere are left out.
struct Routing {
  std::vector<int64_t> choices;     // grouped by expert, ascending within one
  std::vector<int64_t> rows;        // of each of these choices: its rank among them by number
  std::vector<int64_t> token_rows;  // [tokens + 1]: token t has rows token_rows[t]..token_rows[t+1]
  std::vector<int64_t>
      expert_offsets;  // [experts + 1]: expert e owns choices[offsets[e]:offsets[e+1]]
  std::vector<int64_t> active_experts;  // experts with tokens, most tokens first

  int64_t token_count(int64_t expert) const {
    return expert_offsets[expert + 1] - expert_offsets[expert];
  }
};

// Where the weights of the router's experts lie.
struct ExpertSlots {
  int64_t experts;       // that the router chooses from
  const int64_t* slots;  // [experts], negative: elsewhere; nullptr: all here, in order
  int64_t stacked;       // experts in the stacked weights

  int64_t of(int64_t expert) const { return slots == nullptr ? expert : slots[expert]; }
};

// `expert_ids` [tokens, top_k], int64 or int32. Throws when an id is not in [0, experts); `op` is
// who says so.
template <typename index_t>
Routing route(const char* op, const index_t* expert_ids, int64_t tokens, int64_t top_k,
              const ExpertSlots& expert_slots);

}  // namespace coxcompile
