// Register-tiled products, compiled once per instruction set: each products_<isa>.cpp sets its
// target and includes this file, with a `Lanes` policy per element type, in an anonymous namespace.
// No include guard on purpose.
//
// A policy has: `element`, `operand` (the register form of one step along the depth), `step`
// (elements per operand), `load`, `load_partial` (zeros past `count`) and `multiply_add`, which
// adds the products of two operands into 16 float32 lanes; and the same for pairs of rows of a
// transposed weight.

using FloatLanes = float __attribute__((vector_size(64)));
using IntLanes = int32_t __attribute__((vector_size(64)));
using HalfLanes = float __attribute__((vector_size(32)));
using FourSums = float __attribute__((vector_size(16)));

// {sum(a), sum(b), sum(c), sum(d)} over the lanes of each accumulator. Two rounds of
// interleave-and-add cost half of four separate reductions, which shows where the depth is short
// (an expert's down).
[[gnu::always_inline]] inline FourSums sum_lanes(FloatLanes a, FloatLanes b, FloatLanes c,
                                                 FloatLanes d) {
  constexpr IntLanes low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
  constexpr IntLanes high = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
  constexpr IntLanes low_pair = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  constexpr IntLanes high_pair = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  const FloatLanes ab = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
  const FloatLanes cd = __builtin_shuffle(c, d, low) + __builtin_shuffle(c, d, high);
  const FloatLanes abcd =
      __builtin_shuffle(ab, cd, low_pair) + __builtin_shuffle(ab, cd, high_pair);
  const HalfLanes half = __builtin_shufflevector(abcd, abcd, 0, 1, 2, 3, 4, 5, 6, 7) +
                         __builtin_shufflevector(abcd, abcd, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
         __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

// Rows lie one after the other, so what is needed this many bytes later is fetched in the order of
// addresses: of one page at a time, where rows side by side would be of as many as there are rows.
constexpr int64_t kPrefetchBytes = 16 * 1024;

// Four rows with TOKENS <= 6 tokens: 24 accumulators, six token operands and one row operand fill
// 31 of the 32 vector registers.
template <typename Lanes, int TOKENS>
void row_major_tile(const typename Lanes::element* weight, int64_t row_stride, int64_t rows,
                    const typename Lanes::element* tokens, int64_t depth, float* result,
                    int64_t result_stride) {
  const typename Lanes::element* row[4];
  for (int r = 0; r < 4; ++r) {
    row[r] = weight + std::min<int64_t>(r, rows - 1) * row_stride;
  }
  FloatLanes accumulators[4][TOKENS] = {};
  const auto add_step = [&](const auto& load_row, int64_t k) {
    typename Lanes::operand token_operands[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      token_operands[t] = Lanes::load(tokens + k * TOKENS + t * Lanes::step);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 4; ++r) {
      const auto row_operand = load_row(row[r] + k);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) {
        accumulators[r][t] =
            Lanes::multiply_add(accumulators[r][t], row_operand, token_operands[t]);
      }
    }
  };
  constexpr int64_t bytes_per_step = 4 * Lanes::step * sizeof(typename Lanes::element);
  const char* ahead = reinterpret_cast<const char*>(weight) + kPrefetchBytes;
  int64_t k = 0;
  for (; k + Lanes::step <= depth; k += Lanes::step, ahead += bytes_per_step) {
#pragma GCC unroll 4
    for (int64_t line = 0; line < bytes_per_step; line += 64) {
      __builtin_prefetch(ahead + line, 0, 2);
    }
    add_step([](const auto* source) { return Lanes::load(source); }, k);
  }
  if (k < depth) {
    add_step([&](const auto* source) { return Lanes::load_partial(source, depth - k); }, k);
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) {
    const FourSums sums =
        sum_lanes(accumulators[0][t], accumulators[1][t], accumulators[2][t], accumulators[3][t]);
    std::memcpy(result + t * result_stride, &sums, std::min<int64_t>(4, rows) * sizeof(float));
  }
}

// Up to four tokens: each row by itself, so that memory is read in the order of addresses, which
// the processor fetches ahead best. One token needs no other prefetch.
template <typename Lanes, int TOKENS>
void row_by_row(const typename Lanes::element* weight, int64_t row_stride, int64_t rows,
                const typename Lanes::element* tokens, int64_t depth, float* result,
                int64_t result_stride) {
  constexpr int kSteps = TOKENS == 1 ? 4 : TOKENS == 2 ? 2 : 1;
  constexpr int64_t kPrefetchBytes = 8 * 1024;
  for (int64_t r = 0; r < rows; ++r) {
    const typename Lanes::element* row = weight + r * row_stride;
    FloatLanes accumulators[kSteps][TOKENS] = {};
    const auto add_step = [&](const auto& row_operand, int64_t k, int step) {
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; ++t) {
        accumulators[step][t] = Lanes::multiply_add(
            accumulators[step][t], row_operand, Lanes::load(tokens + k * TOKENS + t * Lanes::step));
      }
    };
    int64_t k = 0;
    for (; k + kSteps * Lanes::step <= depth; k += kSteps * Lanes::step) {
#pragma GCC unroll 4
      for (int step = 0; step < kSteps; ++step) {
        const auto* source = row + k + step * Lanes::step;
        if (TOKENS > 1) {
          __builtin_prefetch(reinterpret_cast<const char*>(source) + kPrefetchBytes, 0, 2);
        }
        add_step(Lanes::load(source), k + step * Lanes::step, step);
      }
    }
    for (; k < depth; k += Lanes::step) {
      add_step(
          k + Lanes::step <= depth ? Lanes::load(row + k) : Lanes::load_partial(row + k, depth - k),
          k, 0);
    }
    FloatLanes sums[4] = {};
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) {
      sums[t] = accumulators[0][t];
#pragma GCC unroll 4
      for (int step = 1; step < kSteps; ++step) {
        sums[t] += accumulators[step][t];
      }
    }
    const FourSums of_tokens = sum_lanes(sums[0], sums[1], sums[2], sums[3]);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) {
      result[t * result_stride + r] = of_tokens[t];
    }
  }
}

// 32 columns as two accumulators a token. The depth is walked two rows at a time, because one
// bfloat16 product takes pairs along the depth.
template <typename Lanes, int TOKENS>
void transposed_tile(const typename Lanes::element* weight, int64_t depth_stride, int64_t columns,
                     const typename Lanes::element* tokens, int64_t depth, float* result,
                     int64_t result_stride) {
  constexpr int64_t prefetch_depth = 16;
  FloatLanes low[TOKENS] = {};
  FloatLanes high[TOKENS] = {};
  for (int64_t k = 0; k < depth; k += 2) {
    const auto* first = weight + k * depth_stride;
    const auto* second = k + 1 < depth ? first + depth_stride : nullptr;
    const auto pair = Lanes::load_columns(first, second, columns);
    __builtin_prefetch(first + prefetch_depth * depth_stride);
    __builtin_prefetch(first + (prefetch_depth + 1) * depth_stride);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      Lanes::multiply_add_columns(low[t], high[t], pair, tokens + k * TOKENS + t * 2);
    }
  }
  for (int t = 0; t < TOKENS; ++t) {
    float values[32];
    Lanes::store_columns(low[t], high[t], values);
    std::memcpy(result + t * result_stride, values, columns * sizeof(float));
  }
}

// Calls body(integral_constant<int, width>, first token, the tile's packed elements) for each tile.
template <typename scalar_t, typename Body>
void for_tiles(const PackedTokens<scalar_t>& tokens, const Body& body) {
  for (int64_t token = 0; token < tokens.count;) {
    const int64_t width = tile_width(tokens.count - token);
    const scalar_t* tile = tokens.data.data() + token * tokens.padded_depth;
    switch (width) {
      case 1:
        body(std::integral_constant<int, 1>{}, token, tile);
        break;
      case 2:
        body(std::integral_constant<int, 2>{}, token, tile);
        break;
      case 3:
        body(std::integral_constant<int, 3>{}, token, tile);
        break;
      case 4:
        body(std::integral_constant<int, 4>{}, token, tile);
        break;
      case 5:
        body(std::integral_constant<int, 5>{}, token, tile);
        break;
      default:
        body(std::integral_constant<int, 6>{}, token, tile);
        break;
    }
    token += width;
  }
}

template <typename Lanes>
void row_major_products(const typename Lanes::element* weight, int64_t row_stride, int64_t rows,
                        bool cached, const PackedTokens<typename Lanes::element>& tokens,
                        int64_t depth, float* result, int64_t result_stride) {
  if (tokens.count <= 4 && !cached) {
    for_tiles(tokens, [&](auto width, int64_t, const auto* tile) {
      constexpr int kTokens = decltype(width)::value;
      if constexpr (kTokens <= 4) {
        row_by_row<Lanes, kTokens>(weight, row_stride, rows, tile, depth, result, result_stride);
      }
    });
    return;
  }
  for (int64_t row = 0; row < rows; row += 4) {
    for_tiles(tokens, [&](auto width, int64_t token, const auto* tile) {
      row_major_tile<Lanes, decltype(width)::value>(
          weight + row * row_stride, row_stride, rows - row, tile, depth,
          result + token * result_stride + row, result_stride);
    });
  }
}

template <typename Lanes>
void transposed_products(const typename Lanes::element* weight, int64_t depth_stride,
                         int64_t columns, const PackedTokens<typename Lanes::element>& tokens,
                         int64_t depth, float* result, int64_t result_stride) {
  for (int64_t column = 0; column < columns; column += 32) {
    for_tiles(tokens, [&](auto width, int64_t token, const auto* tile) {
      transposed_tile<Lanes, decltype(width)::value>(
          weight + column, depth_stride, std::min<int64_t>(32, columns - column), tile, depth,
          result + token * result_stride + column, result_stride);
    });
  }
}
