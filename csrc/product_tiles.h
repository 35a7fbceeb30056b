// What register-tiled products share, compiled once per instruction set: each products_<isa>.cpp
// sets its target and includes this file, row_major_products.h and transposed_products.h, with a
// `Lanes` policy per element type, in an anonymous namespace. No include guard on purpose.
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

// Calls body(integral_constant<int, width>, first token, the tile's packed elements) for each tile
// that begins at one of the tokens first..last; returns the token after these tiles.
template <typename scalar_t, typename Body>
int64_t for_tiles(const PackedTokens<scalar_t>& tokens, int64_t first, int64_t last,
                  const Body& body) {
  int64_t token = first;
  while (token < std::min(last, tokens.count)) {
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
  return token;
}
