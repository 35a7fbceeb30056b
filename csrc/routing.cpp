#include "routing.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace coxcompile {

template <typename index_t>
Routing route(const char* op, const index_t* expert_ids, int64_t tokens, int64_t top_k,
              const ExpertSlots& expert_slots) {
  Routing routing;
  routing.expert_offsets.assign(expert_slots.stacked + 1, 0);
  routing.token_rows.assign(tokens + 1, 0);
  int64_t rows = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t place = 0; place < top_k; ++place) {
      const int64_t id = expert_ids[token * top_k + place];
      TORCH_CHECK_INDEX(id >= 0 && id < expert_slots.experts, op, ": expert_ids holds ", id,
                        " for token ", token, ", but there are ", expert_slots.experts,
                        " experts; ids must lie in [0, ", expert_slots.experts, ")");
      const int64_t expert = expert_slots.of(id);
      if (expert >= 0) {
        ++routing.expert_offsets[expert + 1];
        ++rows;
      }
    }
    routing.token_rows[token + 1] = rows;
  }
  for (int64_t expert = 0; expert < expert_slots.stacked; ++expert) {
    if (routing.expert_offsets[expert + 1] > 0) {
      routing.active_experts.push_back(expert);
    }
    routing.expert_offsets[expert + 1] += routing.expert_offsets[expert];
  }
  std::vector<int64_t> next(routing.expert_offsets.begin(), routing.expert_offsets.end() - 1);
  routing.choices.resize(rows);
  routing.rows.resize(rows);
  int64_t row = 0;
  for (int64_t choice = 0; choice < tokens * top_k; ++choice) {
    const int64_t expert = expert_slots.of(expert_ids[choice]);
    if (expert >= 0) {
      const int64_t position = next[expert]++;
      routing.choices[position] = choice;
      routing.rows[position] = row++;
    }
  }
  // The largest tasks start first, so that none is left running alone at the end.
  std::stable_sort(
      routing.active_experts.begin(), routing.active_experts.end(),
      [&](int64_t a, int64_t b) { return routing.token_count(a) > routing.token_count(b); });
  return routing;
}

template Routing route(const char*, const int32_t*, int64_t, int64_t, const ExpertSlots&);
template Routing route(const char*, const int64_t*, int64_t, int64_t, const ExpertSlots&);

}  // namespace coxcompile
