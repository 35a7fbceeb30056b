// Products of weights in GPT-OSS's layout, [depth, outputs]. Included in an anonymous namespace
// after product_tiles.h; no include guard on purpose.

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

template <typename Lanes>
void transposed_products(const typename Lanes::element* weight, int64_t depth_stride,
                         int64_t columns, const PackedTokens<typename Lanes::element>& tokens,
                         int64_t depth, float* result, int64_t result_stride) {
  for (int64_t column = 0; column < columns; column += 32) {
    for_tiles(tokens, 0, tokens.count, [&](auto width, int64_t token, const auto* tile) {
      transposed_tile<Lanes, decltype(width)::value>(
          weight + column, depth_stride, std::min<int64_t>(32, columns - column), tile, depth,
          result + token * result_stride + column, result_stride);
    });
  }
}
