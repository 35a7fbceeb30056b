#include "expert_runner.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "expert_projections.h"
#include "expert_tasks.h"
#include "memory_nodes.h"
#include "parallel.h"
#include "row_arithmetic.h"
#include "token_blocks.h"

namespace coxcompile {
namespace {

// Kept from call to call: fresh pages cost more than a tenth of a prefill's experts.
template <typename scalar_t>
struct Workspace {
  std::vector<scalar_t> intermediate;  // [choices, intermediate], grouped by expert
  std::vector<float> weighted;         // [choices, hidden], by token

  static Workspace& of_calling_thread(size_t choices, const Dimensions& dimensions) {
    thread_local Workspace workspace;
    const auto grow = [](auto& buffer, size_t size) {
      buffer.resize(std::max(buffer.size(), size));
    };
    grow(workspace.intermediate, choices * dimensions.intermediate);
    grow(workspace.weighted, choices * dimensions.hidden);
    return workspace;
  }
};

template <typename scalar_t>
class ExpertRunner {
 public:
  ExpertRunner(const ExpertCall& call, const Routing& routing)
      : dimensions_(call.dimensions),
        weights_(call),
        activation_(call.activation),
        routing_(routing),
        hidden_states_(call.hidden_states.const_data_ptr<scalar_t>()),
        routing_weights_(call.routing_weights.data()),
        workspace_(Workspace<scalar_t>::of_calling_thread(routing.choices.size(), dimensions_)),
        pending_(std::make_unique<std::atomic<int64_t>[]>(dimensions_.experts)),
        gate_up_(Task::Stage::gate_up, dimensions_, routing, at::get_num_threads(),
                 memory_nodes().size()),
        down_(Task::Stage::down, dimensions_, routing, at::get_num_threads(),
              memory_nodes().size()) {
    for (const Task& task : gate_up_.tasks()) {
      ++pending_[task.expert];
    }
  }

  // Leaves the weighted output of every choice in the workspace.
  void run() {
    // No thread takes a down task before every gate_up task is taken, so a thread that waits for an
    // expert's gate_up tasks waits only for tasks already running: no deadlock, no barrier.
    parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      try {
        auto& scratch = Scratch<scalar_t>::of_this_thread();
        const int64_t share = gate_up_.claim_share(node_of_this_thread());
        while (const Task* task = failed_ ? nullptr : gate_up_.take(share)) {
          run_gate_up(*task, scratch);
        }
        while (const Task* task = failed_ ? nullptr : down_.take(share)) {
          run_down(*task, scratch);
        }
        release_panels<scalar_t>();
      } catch (...) {
        failed_ = true;  // nobody must wait for this thread's tasks
        throw;
      }
    });
  }

  void replace(scalar_t* output) const {
    for_sums([&](int64_t token, int64_t first, int64_t count, const float* sums) {
      round_row(sums, count, output + token * dimensions_.hidden + first);
    });
  }

  void add(float* output) const {
    for_sums([&](int64_t token, int64_t first, int64_t count, const float* sums) {
      if (routing_.token_rows[token] < routing_.token_rows[token + 1]) {
        add_row(sums, count, output + token * dimensions_.hidden + first);
      }
    });
  }

 private:
  void run_gate_up(const Task& task, Scratch<scalar_t>& scratch) {
    const auto gate = weights_.gate_of(task.expert);
    const int64_t stride = 2 * task.count;
    const bool interleaved = weights_.interleaved();
    const Task& next = gate_up_.after(task);
    const scalar_t* following =
        weights_.gate_of(next.expert).of_output(interleaved ? 2 * next.first : next.first);
    const auto row = [&](int64_t position) {
      return hidden_states_ + routing_.choices[position] / dimensions_.top_k * dimensions_.hidden;
    };
    const auto body = [&](int64_t position, int64_t token_count) {
      float* products = scratch.room_for_products(token_count * stride + task.count);
      float* activated = products + token_count * stride;
      if (interleaved) {
        gate.run(2 * task.first, stride, following, scratch.tokens, products, stride,
                 scratch.panel);
      } else {
        const auto up = weights_.up_of(task.expert);
        gate.run(task.first, task.count, up.of_output(task.first), scratch.tokens, products, stride,
                 scratch.panel);
        up.run(task.first, task.count, following, scratch.tokens, products + task.count, stride,
               scratch.panel);
      }
      for (int64_t t = 0; t < token_count; ++t) {
        const float* row_products = products + t * stride;
        activate(activation_, row_products, row_products + (interleaved ? 1 : task.count),
                 interleaved ? 2 : 1, task.count, activated);
        round_row(activated, task.count,
                  workspace_.intermediate.data() + (position + t) * dimensions_.intermediate +
                      task.first);
      }
    };
    for_token_blocks(task, routing_, gate, row, scratch, body);
    pending_[task.expert].fetch_sub(1, std::memory_order_release);
  }

  void run_down(const Task& task, Scratch<scalar_t>& scratch) {
    while (pending_[task.expert].load(std::memory_order_acquire) > 0) {
      if (failed_) {
        return;
      }
      std::this_thread::yield();
    }
    const auto projection = weights_.down_of(task.expert);
    const Task& next = down_.after(task);
    const scalar_t* following = weights_.down_of(next.expert).of_output(next.first);
    const auto row = [&](int64_t position) {
      return workspace_.intermediate.data() + position * dimensions_.intermediate;
    };
    const auto body = [&](int64_t position, int64_t token_count) {
      float* products = scratch.room_for_products(token_count * task.count);
      projection.run(task.first, task.count, following, scratch.tokens, products, task.count,
                     scratch.panel);
      for (int64_t t = 0; t < token_count; ++t) {
        scale_row(products + t * task.count, routing_weights_[routing_.choices[position + t]],
                  task.count,
                  workspace_.weighted.data() + routing_.rows[position + t] * dimensions_.hidden +
                      task.first);
      }
    };
    for_token_blocks(task, routing_, projection, row, scratch, body);
  }

  // Calls body(token, first hidden index, number of them, sums over the token's choices). Choices
  // are summed in the router's order, whoever computed them: the result has the same bits for any
  // number of threads.
  template <typename Body>
  void for_sums(const Body& body) const {
    constexpr int64_t kMost = 4096;
    parallel_for(0, dimensions_.tokens, 16, [&](int64_t begin, int64_t end) {
      float sums[kMost];
      for (int64_t token = begin; token < end; ++token) {
        const int64_t row = routing_.token_rows[token];
        for (int64_t first = 0; first < dimensions_.hidden; first += kMost) {
          const int64_t count = std::min(kMost, dimensions_.hidden - first);
          sum_rows(workspace_.weighted.data() + row * dimensions_.hidden + first,
                   routing_.token_rows[token + 1] - row, dimensions_.hidden, count, sums);
          body(token, first, count, sums);
        }
      }
    });
  }

  const Dimensions dimensions_;
  const ExpertWeights<scalar_t> weights_;
  const Activation activation_;
  const Routing& routing_;
  const scalar_t* hidden_states_;
  const float* routing_weights_;
  Workspace<scalar_t>& workspace_;
  std::unique_ptr<std::atomic<int64_t>[]> pending_;  // gate_up tasks left, by expert
  std::atomic<bool> failed_{false};
  TaskQueue gate_up_;
  TaskQueue down_;
};

}  // namespace

void run_experts(const ExpertCall& call, const Routing& routing, Combination combination,
                 const at::Tensor& output) {
  const auto run = [&](auto element) {
    using scalar_t = decltype(element);
    ExpertRunner<scalar_t> runner(call, routing);
    runner.run();
    if (combination == Combination::replace) {
      runner.replace(output.mutable_data_ptr<scalar_t>());
    } else {
      runner.add(output.mutable_data_ptr<float>());
    }
  };
  switch (call.hidden_states.scalar_type()) {
    case at::kFloat:
      return run(float{});
    case at::kBFloat16:
      return run(at::BFloat16{});
    default:
      return run(at::Half{});  // checked_call lets no other type through
  }
}

}  // namespace coxcompile
