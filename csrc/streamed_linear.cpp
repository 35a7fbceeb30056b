// coxmoe::streamed_linear on the CPU: a linear layer of few tokens, which is bound by reading its
// weight. The weight streams past the tokens once, from where the model keeps it; oneDNN reaches
// the same speed only with a packed second copy.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <atomic>
#include <optional>
#include <vector>

#include "parallel.h"
#include "products.h"

namespace coxcompile {
namespace {

constexpr int64_t kRowsPerTask = 128;

template <typename scalar_t>
void run_streamed_linear(const at::Tensor& tokens, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias, at::Tensor& output) {
  const int64_t count = tokens.size(0), depth = tokens.size(1), rows = weight.size(0);
  const auto& kernels = product_kernels<scalar_t>();
  const scalar_t* token_data = tokens.const_data_ptr<scalar_t>();
  const scalar_t* weight_data = weight.const_data_ptr<scalar_t>();
  const scalar_t* bias_data = bias.has_value() ? bias->const_data_ptr<scalar_t>() : nullptr;
  scalar_t* output_data = output.mutable_data_ptr<scalar_t>();
  std::vector<const scalar_t*> pointers(count);
  for (int64_t t = 0; t < count; ++t) {
    pointers[t] = token_data + t * depth;
  }
  PackedTokens<scalar_t> packed;
  packed.pack(pointers.data(), count, depth, kernels.row_major_step);
  std::atomic<int64_t> next_row{0};
  parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::vector<float> products(count * kRowsPerTask);
    for (int64_t first = next_row.fetch_add(kRowsPerTask); first < rows;
         first = next_row.fetch_add(kRowsPerTask)) {
      const int64_t block = std::min(kRowsPerTask, rows - first);
      const scalar_t* task = weight_data + first * depth;
      kernels.row_major(task, depth, block, task + block * depth, packed, depth, products.data(),
                        kRowsPerTask);
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t i = 0; i < block; ++i) {
          const float sum = products[t * kRowsPerTask + i];
          output_data[t * rows + first + i] = static_cast<scalar_t>(
              bias_data == nullptr ? sum : sum + static_cast<float>(bias_data[first + i]));
        }
      }
    }
  });
}

at::Tensor streamed_linear(const at::Tensor& input, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(),
                    "streamed_linear: weight has shape ", weight.sizes(), " and strides ",
                    weight.strides(), ", but must be a contiguous [outputs, inputs]");
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.size(-1) == weight.size(1),
                    "streamed_linear: input has shape ", input.sizes(), ", but must end in ",
                    weight.size(1), ", the inputs of weight");
  TORCH_CHECK_VALUE(input.scalar_type() == weight.scalar_type(), "streamed_linear: input is ",
                    input.scalar_type(), ", but must have weight's dtype ", weight.scalar_type());
  if (bias.has_value()) {
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                          bias->is_contiguous() && bias->scalar_type() == weight.scalar_type(),
                      "streamed_linear: bias is ", bias->scalar_type(), " ", bias->sizes(),
                      ", but must be a contiguous ", weight.scalar_type(), " [", weight.size(0),
                      "]");
  }
  const auto tokens = input.reshape({-1, input.size(-1)}).contiguous();
  auto output = at::empty({tokens.size(0), weight.size(0)}, input.options());
  switch (input.scalar_type()) {
    case at::kFloat:
      run_streamed_linear<float>(tokens, weight, bias, output);
      break;
    case at::kBFloat16:
      run_streamed_linear<at::BFloat16>(tokens, weight, bias, output);
      break;
    case at::kHalf:
      run_streamed_linear<at::Half>(tokens, weight, bias, output);
      break;
    default:
      TORCH_CHECK_VALUE(false, "streamed_linear: input is ", input.scalar_type(),
                        ", but must be float32, bfloat16 or float16");
  }
  auto shape = input.sizes().vec();
  shape.back() = weight.size(0);
  return output.view(shape);
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_IMPL(coxmoe, CPU, m) { m.impl("streamed_linear", &coxcompile::streamed_linear); }
