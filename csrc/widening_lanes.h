// Policies that widen every element to float32, for instruction sets without a bfloat16 product.
// Written with the compiler's vector extensions, which it lowers to whatever the target has.
// float16 alone it would convert one by one, so the including file defines widen_halves, for 16 of
// them. Included inside an anonymous namespace after product_tiles.h; no include guard on purpose.

template <typename scalar_t>
struct WideningLanes {
  using element = scalar_t;
  using operand = FloatLanes;
  static constexpr int64_t step = 16;

  static operand load(const element* source) {
    operand wide;
    if constexpr (std::is_same_v<element, float>) {
      std::memcpy(&wide, source, sizeof(wide));
    } else if constexpr (std::is_same_v<element, at::BFloat16>) {
      using ShortLanes = uint16_t __attribute__((vector_size(32)));
      ShortLanes narrow;
      std::memcpy(&narrow, source, sizeof(narrow));
      using UnsignedLanes = uint32_t __attribute__((vector_size(64)));
      wide = (operand)(__builtin_convertvector(narrow, UnsignedLanes) << 16);
    } else {
      wide = widen_halves(source);
    }
    return wide;
  }

  static operand load_partial(const element* source, int64_t count) {
    element padded[step] = {};
    std::memcpy(padded, source, count * sizeof(element));
    return load(padded);
  }

  static FloatLanes multiply_add(FloatLanes sum, operand a, operand b) { return sum + a * b; }

  struct ColumnPair {
    operand first[2];
    operand second[2];
  };

  static ColumnPair load_columns(const element* first, const element* second, int64_t columns) {
    if (columns == 32 && second != nullptr) {
      return {{load(first), load(first + step)}, {load(second), load(second + step)}};
    }
    element padded[2][32] = {};
    std::memcpy(padded[0], first, columns * sizeof(element));
    if (second != nullptr) {
      std::memcpy(padded[1], second, columns * sizeof(element));
    }
    return {{load(padded[0]), load(padded[0] + step)}, {load(padded[1]), load(padded[1] + step)}};
  }

  static void multiply_add_columns(FloatLanes& low, FloatLanes& high, const ColumnPair& pair,
                                   const element* token) {
    const float first = static_cast<float>(token[0]);
    const float second = static_cast<float>(token[1]);
    low += pair.first[0] * first + pair.second[0] * second;
    high += pair.first[1] * first + pair.second[1] * second;
  }

  static void store_columns(FloatLanes low, FloatLanes high, float* values) {
    std::memcpy(values, &low, sizeof(low));
    std::memcpy(values + step, &high, sizeof(high));
  }
};
