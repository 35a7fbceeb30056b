// Products of rows of weights in nn.Linear's layout: row by row for the fewest tokens, else some
// rows at a time. What bounds them is mostly the reading of weights, so the order of reads decides.
// Included in an anonymous namespace after product_tiles.h; no include guard on purpose.

// What tokens may take of a first-level cache (32 KiB or more). Tokens that are read from the
// second level again and again leave the processor no buffer for a prefetch, which it then drops.
constexpr int64_t kTokenBytes = 24 * 1024;
constexpr int64_t kTokenBytesOfBlock = 16 * 1024;
// Shorter pieces of rows are too short for the processor to fetch ahead by itself.
constexpr int64_t kLeastBlockBytes = 1024;

// So much of the depth is walked at once that these tokens stay in the first-level cache: all of it
// or blocks of equal size.
template <typename Lanes>
int64_t depth_of_block(int64_t token_count, int64_t depth) {
  const int64_t token_bytes = token_count * sizeof(typename Lanes::element);
  if (depth * token_bytes <= kTokenBytes) {
    return depth;
  }
  int64_t most = kLeastBlockBytes / sizeof(typename Lanes::element);
  while (2 * most * token_bytes <= kTokenBytesOfBlock) {
    most *= 2;
  }
  const int64_t steps = (depth + Lanes::step - 1) / Lanes::step;
  const int64_t blocks = (depth + most - 1) / most;
  return (steps + blocks - 1) / blocks * Lanes::step;
}

// ROWS x TOKENS accumulators, TOKENS token operands and one row operand fill 31 of the 32 vector
// registers at most. The more rows, the less often the tokens are read; several tiles share
// their rows, four at a time.
constexpr int rows_of_tile(int64_t tokens) { return tokens > 4 ? 4 : tokens == 4 ? 6 : 8; }

// sums[token * kStripRows + row] (+)= ROWS rows with TOKENS <= 6 tokens; of fewer `rows` the last
// one stands for the others. Meanwhile as many rows from `next` on are fetched, one after the
// other, as the processor's own prefetchers like it; nullptr for none. A prefetch may be dropped,
// so every tile that meets these rows asks again. Inlined, because blocks are short: calls took 5%.
template <typename Lanes, int ROWS, int TOKENS>
[[gnu::always_inline]] inline void row_major_tile(const typename Lanes::element* weight,
                                                  int64_t row_stride, int64_t rows,
                                                  const typename Lanes::element* tokens,
                                                  int64_t depth, bool add,
                                                  const typename Lanes::element* next,
                                                  float* sums) {
  const typename Lanes::element* row[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    row[r] = weight + std::min<int64_t>(r, rows - 1) * row_stride;
  }
  FloatLanes accumulators[ROWS][TOKENS] = {};
  const auto add_step = [&](const auto& load_row, int64_t k) {
    typename Lanes::operand token_operands[TOKENS];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      token_operands[t] = Lanes::load(tokens + k * TOKENS + t * Lanes::step);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const auto row_operand = load_row(row[r] + k);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) {
        accumulators[r][t] =
            Lanes::multiply_add(accumulators[r][t], row_operand, token_operands[t]);
      }
    }
  };
  const auto load = [](const auto* source) { return Lanes::load(source); };
  constexpr int64_t kBytesPerStep = ROWS * Lanes::step * sizeof(typename Lanes::element);
  const int64_t steps = depth / Lanes::step;
  int64_t step = 0;
  for (int r = 0; r < ROWS && next != nullptr; ++r) {
    const char* ahead = reinterpret_cast<const char*>(next + r * row_stride);
    for (; step < steps * (r + 1) / ROWS; ++step, ahead += kBytesPerStep) {
#pragma GCC unroll 8
      for (int64_t line = 0; line < kBytesPerStep; line += 64) {
        __builtin_prefetch(ahead + line);
      }
      add_step(load, step * Lanes::step);
    }
  }
  for (; step < steps; ++step) {
    add_step(load, step * Lanes::step);
  }
  if (const int64_t k = steps * Lanes::step; k < depth) {
    add_step([&](const auto* source) { return Lanes::load_partial(source, depth - k); }, k);
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r += 4) {
      const int last = std::min(r + 4, ROWS) - 1;
      FourSums of_rows =
          sum_lanes(accumulators[r][t], accumulators[std::min(r + 1, last)][t],
                    accumulators[std::min(r + 2, last)][t], accumulators[std::min(r + 3, last)][t]);
      float* of_token = sums + t * kStripRows + r;
      const size_t bytes = (last + 1 - r) * sizeof(float);
      if (add) {
        FourSums before = {};
        std::memcpy(&before, of_token, bytes);
        of_rows += before;
      }
      std::memcpy(of_token, &of_rows, bytes);
    }
  }
}

// result[token * result_stride + row] = each row by itself, with TOKENS <= 6 tokens: memory is read
// in the order of addresses, which the processor fetches ahead best.
template <typename Lanes, int TOKENS>
[[gnu::noinline]] void row_by_row(const typename Lanes::element* weight, int64_t row_stride,
                                  int64_t rows, const typename Lanes::element* following,
                                  const typename Lanes::element* tokens, int64_t depth,
                                  float* result, int64_t result_stride) {
  constexpr int kSteps = TOKENS == 1 ? 4 : TOKENS == 2 ? 2 : 1;
  constexpr int64_t kPrefetchBytes = 8 * 1024;
  const int64_t row_bytes = std::max<int64_t>(depth * sizeof(*weight), 1);
  const int64_t ahead = (kPrefetchBytes + row_bytes - 1) / row_bytes;
  for (int64_t r = 0; r < rows; ++r) {
    const typename Lanes::element* row = weight + r * row_stride;
    const auto* next =
        row_to_fetch(weight, row_stride, rows, r + ahead, 0, depth, depth, following);
    FloatLanes accumulators[kSteps][TOKENS] = {};
    const auto add_step = [&](const auto& row_operand, int64_t k, int step) {
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) {
        accumulators[step][t] = Lanes::multiply_add(
            accumulators[step][t], row_operand, Lanes::load(tokens + k * TOKENS + t * Lanes::step));
      }
    };
    int64_t k = 0;
    for (; k + kSteps * Lanes::step <= depth; k += kSteps * Lanes::step) {
#pragma GCC unroll 4
      for (int step = 0; step < kSteps; ++step) {
        const int64_t first = k + step * Lanes::step;
        if (TOKENS > 1) {  // one token computes too little to get in the way of the processor's own
          __builtin_prefetch(next + first);
        }
        add_step(Lanes::load(row + first), first, step);
      }
    }
    for (; k < depth; k += Lanes::step) {
      add_step(
          k + Lanes::step <= depth ? Lanes::load(row + k) : Lanes::load_partial(row + k, depth - k),
          k, 0);
    }
    FloatLanes of_tokens[8] = {};
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      of_tokens[t] = accumulators[0][t];
#pragma GCC unroll 4
      for (int step = 1; step < kSteps; ++step) {
        of_tokens[t] += accumulators[step][t];
      }
    }
    const FourSums reduced[2] = {
        sum_lanes(of_tokens[0], of_tokens[1], of_tokens[2], of_tokens[3]),
        TOKENS <= 4 ? FourSums{}
                    : sum_lanes(of_tokens[4], of_tokens[5], of_tokens[6], of_tokens[7])};
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      result[t * result_stride + r] = reduced[t / 4][t % 4];
    }
  }
}

constexpr int64_t kFewTokens = 6;
constexpr int64_t kTokensAtOnce = 24;
constexpr int64_t kMostTokens = kTokensAtOnce + 5;  // the last tile begins before kTokensAtOnce

// Up to kStripRows rows, ROWS at a time, with the tiles that begin at the tokens `first` to `last`.
template <typename Lanes, int ROWS>
[[gnu::always_inline]] inline void multiply_tiles(
    const typename Lanes::element* weight, int64_t row_stride, int64_t rows,
    const typename Lanes::element* following, const PackedTokens<typename Lanes::element>& tokens,
    int64_t first, int64_t last, int64_t depth, float* sums) {
  // Rows of more than this are fetched while the ones before them are multiplied, others one turn
  // earlier.
  constexpr int64_t kLongRowsBytes = 8 * 1024;
  // To read whole rows of few tokens is worth more than that the tokens stay in the first level.
  const int64_t most = tokens.count <= kFewTokens
                           ? depth
                           : depth_of_block<Lanes>(std::min(tokens.count, last) - first, depth);
  int64_t k = 0;
  do {  // without any depth the sums are zeros all the same
    const int64_t block = std::min(most, depth - k);
    const int64_t ahead = ROWS * (ROWS * block * int64_t{sizeof(*weight)} > kLongRowsBytes ? 1 : 2);
    for (int64_t row = 0; row < rows; row += ROWS) {
      const auto* next = following == nullptr ? nullptr
                                              : row_to_fetch(weight, row_stride, rows, row + ahead,
                                                             k, most, depth, following);
      for_tiles(tokens, first, last, [&](auto width, int64_t token, const auto* tile) {
        constexpr int kTokens = decltype(width)::value;
        if constexpr (ROWS == 4 || rows_of_tile(kTokens) == ROWS) {
          row_major_tile<Lanes, ROWS, kTokens>(weight + row * row_stride + k, row_stride,
                                               rows - row, tile + k * kTokens, block, k > 0, next,
                                               sums + (token - first) * kStripRows + row);
        }
      });
    }
    k += most;
  } while (k < depth);
}

template <typename Lanes>
void row_major_products(const typename Lanes::element* weight, int64_t row_stride, int64_t rows,
                        const typename Lanes::element* following,
                        const PackedTokens<typename Lanes::element>& tokens, int64_t depth,
                        float* result, int64_t result_stride) {
  const int64_t token_bytes = tokens.count * depth * sizeof(*weight);
  if (following != nullptr &&
      (tokens.count == 1 || (tokens.count <= kFewTokens && token_bytes <= kTokenBytes))) {
    for_tiles(tokens, 0, tokens.count, [&](auto width, int64_t, const auto* tile) {
      row_by_row<Lanes, decltype(width)::value>(weight, row_stride, rows, following, tile, depth,
                                                result, result_stride);
    });
    return;
  }
  // Results of many tokens may all fall into the same set of the first-level cache; these do not.
  alignas(64) float sums[kMostTokens * kStripRows];
  for (int64_t row = 0; row < rows; row += kStripRows) {
    const int64_t strip_rows = std::min(kStripRows, rows - row);
    const auto* strip = weight + row * row_stride;
    const auto* after_strip = row + strip_rows < rows && following != nullptr
                                  ? strip + strip_rows * row_stride
                                  : following;
    for (int64_t first = 0; first < tokens.count;) {
      const int64_t last = first + kTokensAtOnce;
      const auto multiply = [&](auto rows_at_once) {
        multiply_tiles<Lanes, decltype(rows_at_once)::value>(strip, row_stride, strip_rows,
                                                             first > 0 ? nullptr : after_strip,
                                                             tokens, first, last, depth, sums);
      };
      switch (rows_of_tile(tokens.count)) {
        case 4:
          multiply(std::integral_constant<int, 4>{});
          break;
        case 6:
          multiply(std::integral_constant<int, 6>{});
          break;
        default:
          multiply(std::integral_constant<int, 8>{});
          break;
      }
      const float* source = sums;
      float* destination = result + first * result_stride + row;
      first = for_tiles(tokens, first, last, [&](auto width, int64_t, const auto*) {
        for (int t = 0; t < width; ++t, source += kStripRows, destination += result_stride) {
          if (strip_rows == kStripRows) {
            std::memcpy(destination, source, kStripRows * sizeof(float));  // no call
          } else {
            std::memcpy(destination, source, strip_rows * sizeof(float));
          }
        }
      });
    }
  }
}
