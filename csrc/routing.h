// Which tokens each expert gets: a counting sort of the router's choices.
#pragma once

#include <cstdint>
#include <vector>

namespace coxcompile {

// A slot is one (token, choice) pair, numbered token * top_k + choice.
struct Routing {
  std::vector<int64_t> slots;  // all slots, grouped by expert, ascending within one
  std::vector<int64_t>
      expert_offsets;  // [experts + 1]: expert e owns slots[offsets[e]:offsets[e+1]]
  std::vector<int64_t> active_experts;  // experts with tokens, most tokens first

  int64_t token_count(int64_t expert) const {
    return expert_offsets[expert + 1] - expert_offsets[expert];
  }
};

// `expert_ids` [slot_count], int64 or int32. Throws when an id is not in [0, experts).
template <typename index_t>
Routing route(const index_t* expert_ids, int64_t slot_count, int64_t experts);

}  // namespace coxcompile
