#include "routing.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace coxcompile {

template <typename index_t>
Routing route(const index_t* expert_ids, int64_t slot_count, int64_t experts) {
  Routing routing;
  routing.expert_offsets.assign(experts + 1, 0);
  for (int64_t slot = 0; slot < slot_count; ++slot) {
    const int64_t expert = expert_ids[slot];
    TORCH_CHECK_INDEX(expert >= 0 && expert < experts, "coalesced_experts: expert_ids holds ",
                      expert, " at slot ", slot, ", but there are ", experts,
                      " experts; ids must lie in [0, ", experts, ")");
    ++routing.expert_offsets[expert + 1];
  }
  for (int64_t expert = 0; expert < experts; ++expert) {
    if (routing.expert_offsets[expert + 1] > 0) {
      routing.active_experts.push_back(expert);
    }
    routing.expert_offsets[expert + 1] += routing.expert_offsets[expert];
  }
  std::vector<int64_t> next(routing.expert_offsets.begin(), routing.expert_offsets.end() - 1);
  routing.slots.resize(slot_count);
  for (int64_t slot = 0; slot < slot_count; ++slot) {
    routing.slots[next[expert_ids[slot]]++] = slot;
  }
  // The largest tasks start first, so that none is left running alone at the end.
  std::stable_sort(
      routing.active_experts.begin(), routing.active_experts.end(),
      [&](int64_t a, int64_t b) { return routing.token_count(a) > routing.token_count(b); });
  return routing;
}

template Routing route(const int32_t*, int64_t, int64_t);
template Routing route(const int64_t*, int64_t, int64_t);

}  // namespace coxcompile
