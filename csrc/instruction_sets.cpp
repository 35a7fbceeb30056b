// What the kernels have chosen for this processor, for `coxmoe doctor` and the tests:
//
//   coxmoe::cpu_instruction_sets() -> Dict(str, str)  by dtype, of the register tiles
//   coxmoe::cpu_panel_tokens() -> Dict(str, int)      by dtype, from how many tokens of an expert
//                                                     on transposed weights go by panels; 0: never
#include <ATen/core/Dict.h>
#include <torch/library.h>

#include <string>

#include "panels.h"
#include "products.h"

namespace coxcompile {
namespace {

c10::Dict<std::string, std::string> cpu_instruction_sets() {
  c10::Dict<std::string, std::string> sets;
  sets.insert("float32", product_kernels<float>().instruction_set);
  sets.insert("bfloat16", product_kernels<at::BFloat16>().instruction_set);
  sets.insert("float16", product_kernels<at::Half>().instruction_set);
  return sets;
}

c10::Dict<std::string, int64_t> cpu_panel_tokens() {
  constexpr int64_t even_depth = 64;
  c10::Dict<std::string, int64_t> tokens;
  tokens.insert("float32", least_tokens_for_panels<float>(even_depth, true));
  tokens.insert("bfloat16", least_tokens_for_panels<at::BFloat16>(even_depth, true));
  tokens.insert("float16", least_tokens_for_panels<at::Half>(even_depth, true));
  return tokens;
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_FRAGMENT(coxmoe, m) {
  m.def("cpu_instruction_sets", &coxcompile::cpu_instruction_sets);
  m.def("cpu_panel_tokens", &coxcompile::cpu_panel_tokens);
}
