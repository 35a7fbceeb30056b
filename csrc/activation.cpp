#include "activation.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "vector_clones.h"

namespace coxcompile {
namespace {

// Branch-free so that the loops below vectorise; relative error under 2e-7 (Cephes' polynomial).
inline __attribute__((always_inline)) float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23
  const float shifted = x * 1.44269504088896341f + round_to_integer;
  const float power = shifted - round_to_integer;
  const float r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  float polynomial = 1.9875691500e-4f;
  polynomial = polynomial * r + 1.3981999507e-3f;
  polynomial = polynomial * r + 8.3334519073e-3f;
  polynomial = polynomial * r + 4.1665795894e-2f;
  polynomial = polynomial * r + 1.6666665459e-1f;
  polynomial = polynomial * r + 5.0000001201e-1f;
  polynomial = polynomial * r * r + r + 1.0f;
  const int32_t exponent_bits = (static_cast<int32_t>(power) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent_bits, sizeof(scale));
  return polynomial * scale;
}

inline __attribute__((always_inline)) float sigmoid(float x) {
  return 1.0f / (1.0f + exponential(-x));
}

// The stride is a constant in each instantiation: only then does the compiler vectorise.
#define COXCOMPILE_GATED_LOOP(EXPRESSION) \
  if (stride == 1) {                      \
    for (int64_t i = 0; i < count; ++i) { \
      const float g = gate[i];            \
      const float u = up[i];              \
      activated[i] = (EXPRESSION);        \
    }                                     \
  } else {                                \
    for (int64_t i = 0; i < count; ++i) { \
      const float g = gate[i * 2];        \
      const float u = up[i * 2];          \
      activated[i] = (EXPRESSION);        \
    }                                     \
  }

COXCOMPILE_VECTOR_CLONES
void gated_silu(const float* gate, const float* up, int64_t stride, int64_t count,
                float* activated){COXCOMPILE_GATED_LOOP(g * sigmoid(g) * u)}

COXCOMPILE_VECTOR_CLONES void gated_gelu_tanh(const float* gate, const float* up, int64_t stride,
                                              int64_t count, float* activated){
    // 0.5 (1 + tanh(z)) is sigmoid(2 z).
    COXCOMPILE_GATED_LOOP(g * sigmoid(1.5957691216057308f * (g + 0.044715f * g * g * g)) * u)}

COXCOMPILE_VECTOR_CLONES void gated_relu(const float* gate, const float* up, int64_t stride,
                                         int64_t count, float* activated) {
  COXCOMPILE_GATED_LOOP(std::max(g, 0.0f) * u)
}

void gated_gelu(const float* gate, const float* up, int64_t stride, int64_t count,
                float* activated){
    COXCOMPILE_GATED_LOOP(0.5f * g * (1.0f + std::erf(g * 0.70710678118654752f)) * u)}

COXCOMPILE_VECTOR_CLONES
    void gated_swigluoai(const float* gate, const float* up, int64_t stride, int64_t count,
                         float alpha, float limit, float* activated) {
  COXCOMPILE_GATED_LOOP((std::min(std::max(u, -limit), limit) + 1.0f) * std::min(g, limit) *
                        sigmoid(alpha * std::min(g, limit)))
}

#undef COXCOMPILE_GATED_LOOP
#undef COXCOMPILE_VECTOR_CLONES

}  // namespace

ActivationKind activation_kind(const char* op, std::string_view name) {
  if (name == "silu") return ActivationKind::silu;
  if (name == "gelu") return ActivationKind::gelu;
  if (name == "gelu_tanh") return ActivationKind::gelu_tanh;
  if (name == "relu") return ActivationKind::relu;
  if (name == "swigluoai") return ActivationKind::swigluoai;
  TORCH_CHECK_VALUE(false, op, ": activation is '", std::string(name),
                    "', but must be one of silu, gelu, gelu_tanh, relu, swigluoai");
}

void activate(const Activation& activation, const float* gate, const float* up, int64_t stride,
              int64_t count, float* activated) {
  switch (activation.kind) {
    case ActivationKind::silu:
      return gated_silu(gate, up, stride, count, activated);
    case ActivationKind::gelu:
      return gated_gelu(gate, up, stride, count, activated);
    case ActivationKind::gelu_tanh:
      return gated_gelu_tanh(gate, up, stride, count, activated);
    case ActivationKind::relu:
      return gated_relu(gate, up, stride, count, activated);
    case ActivationKind::swigluoai:
      return gated_swigluoai(gate, up, stride, count, activation.alpha, activation.limit,
                             activated);
  }
}

}  // namespace coxcompile
