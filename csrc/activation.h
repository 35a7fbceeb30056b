// The nonlinearity between an expert's gate/up and down projections.
#pragma once

#include <cstdint>
#include <string_view>

namespace coxcompile {

enum class ActivationKind { silu, gelu, gelu_tanh, relu, swigluoai };

struct Activation {
  ActivationKind kind;
  float alpha;  // swigluoai: scale inside the sigmoid
  float limit;  // swigluoai: clamp of gate (above) and up (both sides); infinity for none
};

// Throws, in the name of `op`, for a name that is not one of silu, gelu, gelu_tanh, relu,
// swigluoai.
ActivationKind activation_kind(const char* op, std::string_view name);

// activated[i] = act(gate[i * stride]) * up[i * stride]; stride is 2 where the two are interleaved.
void activate(const Activation& activation, const float* gate, const float* up, int64_t stride,
              int64_t count, float* activated);

}  // namespace coxcompile
