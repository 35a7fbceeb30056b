// coxmoe::coalesced_experts on the CPU: the routed FFN of one layer over the whole batch, from the
// weights as the model stores them. Schema and fake kernel are in coxcompile/ops.py.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "activation.h"
#include "panels.h"
#include "products.h"
#include "routing.h"

namespace coxcompile {
namespace {

// Block sizes chosen on Zen 4 (1 MB of second-level cache a core): the weight rows of a task and
// the tokens they meet stay there together. Panels are smaller than a task's rows, so more tokens
// fit beside them, and each further block of tokens packs the panels again.
constexpr int64_t kTokensPerBlock = 128;
constexpr int64_t kTokensPerPanelBlock = 512;

struct Dimensions {
  int64_t tokens, top_k, experts, hidden, intermediate;
};

// Some tokens of one expert in the form its projection multiplies: rows for panels, else tiles.
template <typename scalar_t>
struct TokenBlock {
  int64_t count;
  const scalar_t* rows;  // [count, depth]; nullptr: they are in `tiles`
  PackedTokens<scalar_t> tiles;
  std::vector<scalar_t> gathered;
};

// One expert's projection: depth inputs to `outputs` outputs, in either of the two layouts.
template <typename scalar_t>
struct Projection {
  const scalar_t* weight;
  const scalar_t* bias;  // nullptr for none
  int64_t outputs;
  int64_t depth;
  bool transposed;

  void prepare(const std::vector<const scalar_t*>& tokens, bool panels,
               TokenBlock<scalar_t>& block) const {
    block.count = tokens.size();
    if (!panels) {
      const auto& kernels = product_kernels<scalar_t>();
      block.rows = nullptr;
      block.tiles.pack(tokens.data(), block.count, depth,
                       transposed ? kernels.transposed_step : kernels.row_major_step);
      return;
    }
    block.rows = tokens[0];
    if (tokens.back() != tokens[0] + (block.count - 1) * depth) {
      block.gathered.resize(block.count * depth);
      for (int64_t t = 0; t < block.count; ++t) {
        std::copy_n(tokens[t], depth, block.gathered.data() + t * depth);
      }
      block.rows = block.gathered.data();
    }
  }

  // result[token][i] = outputs[first + i] for i < count, bias included.
  void run(int64_t first, int64_t count, const TokenBlock<scalar_t>& tokens, float* result,
           int64_t result_stride, std::vector<scalar_t>& panel) const {
    const auto& kernels = product_kernels<scalar_t>();
    const scalar_t* block = transposed ? weight + first : weight + first * depth;
    const int64_t stride = transposed ? outputs : depth;
    if (tokens.rows != nullptr) {
      multiply_by_panels(block, stride, transposed, count, depth, tokens.rows, depth, tokens.count,
                         result, result_stride, panel);
    } else {
      (transposed ? kernels.transposed : kernels.row_major)(block, stride, count, tokens.tiles,
                                                            depth, result, result_stride);
    }
    if (bias != nullptr) {
      for (int64_t t = 0; t < tokens.count; ++t) {
        for (int64_t i = 0; i < count; ++i) {
          result[t * result_stride + i] += static_cast<float>(bias[first + i]);
        }
      }
    }
  }
};

template <typename scalar_t>
struct ExpertWeights {
  const scalar_t* gate_up;
  const scalar_t* down;
  const scalar_t* gate_up_bias;
  const scalar_t* down_bias;
  bool interleaved;
  bool transposed;

  Projection<scalar_t> gate_up_of(int64_t expert, const Dimensions& d) const {
    const int64_t outputs = 2 * d.intermediate;
    return {gate_up + expert * outputs * d.hidden,
            gate_up_bias == nullptr ? nullptr : gate_up_bias + expert * outputs, outputs, d.hidden,
            transposed};
  }
  Projection<scalar_t> down_of(int64_t expert, const Dimensions& d) const {
    return {down + expert * d.hidden * d.intermediate,
            down_bias == nullptr ? nullptr : down_bias + expert * d.hidden, d.hidden,
            d.intermediate, transposed};
  }
};

struct Task {
  enum class Stage { gate_up, down } stage;
  int64_t expert;
  int64_t first;  // first intermediate (gate_up) or hidden (down) index of the block
  int64_t count;
};

template <typename scalar_t>
class CoalescedExperts {
 public:
  CoalescedExperts(const Dimensions& dimensions, const ExpertWeights<scalar_t>& weights,
                   const Activation& activation, const Routing& routing,
                   const scalar_t* hidden_states, const float* routing_weights)
      : dimensions_(dimensions),
        weights_(weights),
        activation_(activation),
        routing_(routing),
        hidden_states_(hidden_states),
        routing_weights_(routing_weights),
        workspace_(calling_thread_workspace()),
        pending_(new std::atomic<int64_t>[dimensions.experts]) {
    const int64_t slots = dimensions.tokens * dimensions.top_k;
    workspace_.weighted.resize(
        std::max<size_t>(workspace_.weighted.size(), slots * dimensions.hidden));
    workspace_.intermediate.resize(
        std::max<size_t>(workspace_.intermediate.size(), slots * dimensions.intermediate));
    plan_tasks();
  }

  void run(scalar_t* output) {
    std::atomic<size_t> next_task{0};
    // Tasks are taken in order and every gate_up task precedes every down task, so a thread that
    // waits for an expert's gate_up tasks waits only for tasks already running: no deadlock, no
    // barrier.
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      Scratch scratch;
      for (size_t i = next_task++; i < tasks_.size(); i = next_task++) {
        if (tasks_[i].stage == Task::Stage::gate_up) {
          run_gate_up(tasks_[i], scratch);
        } else {
          run_down(tasks_[i], scratch);
        }
      }
      release_panels<scalar_t>();
    });
    at::parallel_for(0, dimensions_.tokens, 16, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        combine(token, output + token * dimensions_.hidden);
      }
    });
  }

 private:
  // What a thread keeps from task to task.
  struct Scratch {
    std::vector<const scalar_t*> rows;
    TokenBlock<scalar_t> tokens;
    // Which tokens those are: a thread's next task often has the same.
    Task::Stage stage = Task::Stage::gate_up;
    int64_t position = -1;
    std::vector<scalar_t> panel;
    std::vector<float> products;
  };

  // Kept from call to call: fresh pages cost more than a tenth of a prefill's experts.
  struct Workspace {
    std::vector<scalar_t> intermediate;  // [slots, intermediate], grouped by expert
    std::vector<float> weighted;         // [tokens, top_k, hidden]
  };
  static Workspace& calling_thread_workspace() {
    thread_local Workspace workspace;
    return workspace;
  }

  // An expert of few tokens is read faster in long runs of rows; one of many computes on blocks
  // that stay in the cache. Either way there are several tasks a thread, so that none idles at the
  // end.
  void plan_tasks() {
    const int64_t outputs = dimensions_.intermediate * routing_.active_experts.size();
    const int64_t outputs_per_thread = outputs / (4 * at::get_num_threads());
    const int64_t run = std::clamp<int64_t>(outputs_per_thread / 64 * 64, 64, 256);
    const auto add = [&](Task::Stage stage, int64_t expert, int64_t rows, int64_t block) {
      for (int64_t first = 0; first < rows; first += block) {
        tasks_.push_back({stage, expert, first, std::min(block, rows - first)});
      }
    };
    const auto block_of = [&](int64_t expert, int64_t depth) {
      return multiplies_by_panels(expert, depth) ? 64 : run;
    };
    for (const int64_t expert : routing_.active_experts) {
      const size_t before = tasks_.size();
      add(Task::Stage::gate_up, expert, dimensions_.intermediate,
          block_of(expert, dimensions_.hidden));
      pending_[expert] = tasks_.size() - before;
    }
    for (const int64_t expert : routing_.active_experts) {
      add(Task::Stage::down, expert, dimensions_.hidden,
          2 * block_of(expert, dimensions_.intermediate));
    }
  }

  bool multiplies_by_panels(int64_t expert, int64_t depth) const {
    const int64_t least = least_tokens_for_panels<scalar_t>(depth);
    return least > 0 && routing_.token_count(expert) >= least;
  }

  void run_gate_up(const Task& task, Scratch& scratch) {
    const auto projection = weights_.gate_up_of(task.expert, dimensions_);
    const int64_t stride = 2 * task.count;
    const bool interleaved = weights_.interleaved;
    const auto row = [&](int64_t position) {
      return hidden_states_ + routing_.slots[position] / dimensions_.top_k * dimensions_.hidden;
    };
    for_token_blocks(task, projection, row, scratch, [&](int64_t position, int64_t token_count) {
      scratch.products.resize(token_count * stride + task.count);
      float* products = scratch.products.data();
      float* activated = products + token_count * stride;
      if (interleaved) {
        projection.run(2 * task.first, stride, scratch.tokens, products, stride, scratch.panel);
      } else {
        projection.run(task.first, task.count, scratch.tokens, products, stride, scratch.panel);
        projection.run(dimensions_.intermediate + task.first, task.count, scratch.tokens,
                       products + task.count, stride, scratch.panel);
      }
      for (int64_t t = 0; t < token_count; ++t) {
        const float* gate = products + t * stride;
        activate(activation_, gate, interleaved ? gate + 1 : gate + task.count, interleaved ? 2 : 1,
                 task.count, activated);
        scalar_t* destination =
            workspace_.intermediate.data() + (position + t) * dimensions_.intermediate + task.first;
        for (int64_t i = 0; i < task.count; ++i) {
          destination[i] = static_cast<scalar_t>(activated[i]);
        }
      }
    });
    pending_[task.expert].fetch_sub(1, std::memory_order_release);
  }

  void run_down(const Task& task, Scratch& scratch) {
    while (pending_[task.expert].load(std::memory_order_acquire) > 0) {
      std::this_thread::yield();
    }
    const auto projection = weights_.down_of(task.expert, dimensions_);
    const auto row = [&](int64_t position) {
      return workspace_.intermediate.data() + position * dimensions_.intermediate;
    };
    for_token_blocks(task, projection, row, scratch, [&](int64_t position, int64_t token_count) {
      scratch.products.resize(token_count * task.count);
      projection.run(task.first, task.count, scratch.tokens, scratch.products.data(), task.count,
                     scratch.panel);
      for (int64_t t = 0; t < token_count; ++t) {
        const int64_t slot = routing_.slots[position + t];
        float* destination = workspace_.weighted.data() + slot * dimensions_.hidden + task.first;
        const float* source = scratch.products.data() + t * task.count;
        const float routing_weight = routing_weights_[slot];
        for (int64_t i = 0; i < task.count; ++i) {
          destination[i] = routing_weight * source[i];
        }
      }
    });
  }

  // Calls body(first position, number of tokens) with these tokens in scratch.tokens, for the
  // expert's tokens in blocks of about equal size. `row` gives a position's token.
  template <typename Row, typename Body>
  void for_token_blocks(const Task& task, const Projection<scalar_t>& projection, const Row& row,
                        Scratch& scratch, const Body& body) const {
    const int64_t begin = routing_.expert_offsets[task.expert];
    const int64_t count = routing_.token_count(task.expert);
    const bool panels = multiplies_by_panels(task.expert, projection.depth);
    const int64_t most = panels ? kTokensPerPanelBlock : kTokensPerBlock;
    const int64_t blocks = (count + most - 1) / most;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t position = begin + count * block / blocks;
      const int64_t token_count = begin + count * (block + 1) / blocks - position;
      if (scratch.position != position || scratch.stage != task.stage) {
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

  // A token's choices are summed in the router's order, whoever computed them: the result has the
  // same bits for any number of threads.
  void combine(int64_t token, scalar_t* output) const {
    const float* first =
        workspace_.weighted.data() + token * dimensions_.top_k * dimensions_.hidden;
    for (int64_t i = 0; i < dimensions_.hidden; ++i) {
      float sum = 0;
      for (int64_t choice = 0; choice < dimensions_.top_k; ++choice) {
        sum += first[choice * dimensions_.hidden + i];
      }
      output[i] = static_cast<scalar_t>(sum);
    }
  }

  const Dimensions dimensions_;
  const ExpertWeights<scalar_t> weights_;
  const Activation activation_;
  const Routing& routing_;
  const scalar_t* hidden_states_;
  const float* routing_weights_;
  Workspace& workspace_;
  std::unique_ptr<std::atomic<int64_t>[]> pending_;  // gate_up tasks left, by expert
  std::vector<Task> tasks_;
};

using OptionalTensor = std::optional<at::Tensor>;

void check_weight(const at::Tensor& weight, const char* name, at::ScalarType dtype,
                  at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(weight.scalar_type() == dtype, "coalesced_experts: ", name, " is ",
                    weight.scalar_type(), ", but must have hidden_states' dtype ", dtype);
  TORCH_CHECK_VALUE(weight.sizes() == shape, "coalesced_experts: ", name, " has shape ",
                    weight.sizes(), ", but must have shape ", shape);
  TORCH_CHECK_VALUE(weight.is_contiguous(), "coalesced_experts: ", name, " has strides ",
                    weight.strides(), ", but must be contiguous; call .contiguous() on it once, ",
                    "before compiling");
}

at::Tensor coalesced_experts(const at::Tensor& hidden_states, const at::Tensor& expert_ids,
                             const at::Tensor& routing_weights, const at::Tensor& gate_up,
                             const at::Tensor& down, const OptionalTensor& gate_up_bias,
                             const OptionalTensor& down_bias, c10::string_view activation_name,
                             c10::string_view gate_layout, bool transposed, double alpha,
                             std::optional<double> limit) {
  TORCH_CHECK_VALUE(hidden_states.dim() == 2, "coalesced_experts: hidden_states has shape ",
                    hidden_states.sizes(), ", but must be [tokens, hidden]");
  TORCH_CHECK_VALUE(expert_ids.dim() == 2 && expert_ids.size(0) == hidden_states.size(0),
                    "coalesced_experts: expert_ids has shape ", expert_ids.sizes(),
                    ", but must be [", hidden_states.size(0), ", top_k]");
  TORCH_CHECK_VALUE(expert_ids.scalar_type() == at::kLong || expert_ids.scalar_type() == at::kInt,
                    "coalesced_experts: expert_ids is ", expert_ids.scalar_type(),
                    ", but must be int64 or int32");
  TORCH_CHECK_VALUE(routing_weights.sizes() == expert_ids.sizes(),
                    "coalesced_experts: routing_weights has shape ", routing_weights.sizes(),
                    ", but must have expert_ids' shape ", expert_ids.sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(routing_weights.scalar_type()),
                    "coalesced_experts: routing_weights is ", routing_weights.scalar_type(),
                    ", but must be of a floating-point dtype");
  TORCH_CHECK_VALUE(
      gate_up.dim() == 3 && gate_up.size(transposed ? 2 : 1) % 2 == 0,
      "coalesced_experts: gate_up has shape ", gate_up.sizes(), ", but must be ",
      transposed ? "[experts, hidden, 2 * intermediate]" : "[experts, 2 * intermediate, hidden]");
  TORCH_CHECK_VALUE(gate_layout == "concatenated" || gate_layout == "interleaved",
                    "coalesced_experts: gate_layout is '", gate_layout,
                    "', but must be 'concatenated' or 'interleaved'");
  const Dimensions d{hidden_states.size(0), expert_ids.size(1), gate_up.size(0),
                     hidden_states.size(1), gate_up.size(transposed ? 2 : 1) / 2};
  const Activation activation{
      activation_kind(std::string_view(activation_name.data(), activation_name.size())),
      static_cast<float>(alpha),
      static_cast<float>(limit.value_or(std::numeric_limits<double>::infinity()))};
  const auto dtype = hidden_states.scalar_type();
  if (transposed) {
    check_weight(gate_up, "gate_up", dtype, {d.experts, d.hidden, 2 * d.intermediate});
    check_weight(down, "down", dtype, {d.experts, d.intermediate, d.hidden});
  } else {
    check_weight(gate_up, "gate_up", dtype, {d.experts, 2 * d.intermediate, d.hidden});
    check_weight(down, "down", dtype, {d.experts, d.hidden, d.intermediate});
  }
  if (gate_up_bias.has_value()) {
    check_weight(*gate_up_bias, "gate_up_bias", dtype, {d.experts, 2 * d.intermediate});
  }
  if (down_bias.has_value()) {
    check_weight(*down_bias, "down_bias", dtype, {d.experts, d.hidden});
  }

  const auto tokens = hidden_states.contiguous();
  const auto weights_of_choices = routing_weights.to(at::kFloat).contiguous();
  const auto ids = expert_ids.contiguous();
  const Routing routing = ids.scalar_type() == at::kLong
                              ? route(ids.const_data_ptr<int64_t>(), ids.numel(), d.experts)
                              : route(ids.const_data_ptr<int32_t>(), ids.numel(), d.experts);
  auto output = at::empty(tokens.sizes(), tokens.options());
  const auto run = [&](auto element) {
    using scalar_t = decltype(element);
    const auto data = [](const OptionalTensor& tensor) {
      return tensor.has_value() ? tensor->const_data_ptr<scalar_t>() : nullptr;
    };
    const ExpertWeights<scalar_t> weights{gate_up.const_data_ptr<scalar_t>(),
                                          down.const_data_ptr<scalar_t>(),
                                          data(gate_up_bias),
                                          data(down_bias),
                                          gate_layout == "interleaved",
                                          transposed};
    CoalescedExperts<scalar_t>(d, weights, activation, routing, tokens.const_data_ptr<scalar_t>(),
                               weights_of_choices.const_data_ptr<float>())
        .run(output.mutable_data_ptr<scalar_t>());
  };
  switch (dtype) {
    case at::kFloat:
      run(float{});
      break;
    case at::kBFloat16:
      run(at::BFloat16{});
      break;
    case at::kHalf:
      run(at::Half{});
      break;
    default:
      TORCH_CHECK_VALUE(false, "coalesced_experts: hidden_states is ", dtype,
                        ", but must be float32, bfloat16 or float16");
  }
  return output;
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_IMPL(coxmoe, CPU, m) { m.impl("coalesced_experts", &coxcompile::coalesced_experts); }
