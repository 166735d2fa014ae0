// Attention over projected keys and values.
//
// A block computes 64 queries of one head, 16 in each of its 4 warps. It runs over the keys in tiles, and keeps the
// largest score and the sum of exponentials of each query (online softmax), so scores and probabilities exist only in
// registers. The next tile is copied while the current one is used.
//
// The bits of a query's result depend on its own sequence only: the tiles start at the sequence's first key, and a tile
// without a visible key changes nothing.

#define ATTENTION_PARAMETERS(T)                                                                                \
  const T *query, const T *key, const T *value, T *out, int query_stride, int kv_stride, const int *sequences, \
      int heads, int head_width, float scale, int causal

#define ATTENTION_ARGUMENTS \
  query, key, value, out, query_stride, kv_stride, sequences, heads, head_width, scale, causal

// The queries of one block and their keys, of one head.
template <typename T>
struct AttentionTile {
  const T* query;
  const T* key;
  const T* value;
  T* out;
  int queries, keys;
  // Query i sees the keys below `visible + i`, and never more than `keys`.
  int visible;
  bool causal;

  DEVICE int visible_keys(const AttentionTile& tile, int query) {
    return tile.causal ? smaller(tile.keys, tile.visible + query) : tile.keys;
  }
};

template <typename T>
DEVICE AttentionTile<T> attention_tile(int size, ATTENTION_PARAMETERS(T)) {
  const int first_query = sequences[BLOCK_Z * 4], queries = sequences[BLOCK_Z * 4 + 1];
  const int first_key = sequences[BLOCK_Z * 4 + 2], keys = sequences[BLOCK_Z * 4 + 3];
  const int skipped = BLOCK_X * size, column = BLOCK_Y * head_width;
  AttentionTile<T> tile;
  tile.query = query + (long long)(first_query + skipped) * query_stride + column;
  tile.key = key + (long long)first_key * kv_stride + column;
  tile.value = value + (long long)first_key * kv_stride + column;
  tile.out = out + (long long)(first_query + skipped) * heads * head_width + column;
  tile.queries = smaller(queries - skipped, size);
  tile.keys = keys;
  tile.visible = skipped + 1 + keys - queries;
  tile.causal = causal != 0;
  return tile;
}

// Copies rows to a tile in shared memory. Rows and columns that do not exist become zeros. The rows of the tile are 16
// bytes longer than their values, so that the 8 rows of a matrix lie in different banks.
template <typename T, int ROWS, int WIDTH>
DEVICE void load_rows(T* tile, const T* from, int stride, int rows, int width, bool vectors) {
  if (vectors) {
    // Each thread has 8 columns of every STEP-th row.
    constexpr int STEP = 128 / (WIDTH / 8);
    [[maybe_unused]] constexpr int UNROLLED = ROWS / STEP < 4 ? 1 : 4;
    const int column = THREAD % (WIDTH / 8) * 8;
    UNROLL_BY(UNROLLED)
    for (int row = THREAD / (WIDTH / 8); row < ROWS; row += STEP) {
      const bool present = row < rows && column < width;
      const T* source = present ? from + (long long)row * stride + column : from;
      copy_async(tile + row * (WIDTH + 8) + column, source, present);
    }
  } else {
    UNROLL_BY(1)
    for (int i = THREAD; i < ROWS * WIDTH; i += 128) {
      const int row = i / WIDTH, column = i % WIDTH;
      const bool present = row < rows && column < width;
      tile[row * (WIDTH + 8) + column] = present ? from[(long long)row * stride + column] : T{0};
    }
  }
}

// Attention with matrix instructions. `D` is the head width, rounded up; `KEYS` is the number of keys of a tile.
template <typename T, int D, int KEYS>
DEVICE void attention_by_matrices(ATTENTION_PARAMETERS(T)) {
  struct Stage {
    T keys[KEYS * (D + 8)];
    T values[KEYS * (D + 8)];
  };
  struct Stages {
    Stage stages[2];
  };
  SHARED(Stages, shared);
  const AttentionTile<T> tile = attention_tile<T>(64, ATTENTION_ARGUMENTS);
  if (tile.queries <= 0) return;
  const int lane = THREAD % 32, first_row = THREAD / 32 * 16;
  const bool vectors = head_width % 8 == 0 && query_stride % 8 == 0 && kv_stride % 8 == 0 && is_aligned(query, 16) &&
                       is_aligned(key, 16) && is_aligned(value, 16);
  const int most_keys = AttentionTile<T>::visible_keys(tile, tile.queries - 1);
  const int tiles = most_keys <= 0 ? 0 : (most_keys + KEYS - 1) / KEYS;

  // The queries pass through the second stage, which the first tile of keys does not use.
  T* staged_queries = shared.stages[1].keys;
  static_assert(2 * KEYS >= 64, "the queries must fit into a stage");
  load_rows<T, 64, D>(staged_queries, tile.query, query_stride, tile.queries, head_width, vectors);
  load_rows<T, KEYS, D>(shared.stages[0].keys, tile.key, kv_stride, tile.keys, head_width, vectors);
  load_rows<T, KEYS, D>(shared.stages[0].values, tile.value, kv_stride, tile.keys, head_width, vectors);
  wait_for_copies();
  block_barrier();
  unsigned queries[D / 16][4];
  UNROLL
  for (int k = 0; k < D / 16; k++) {
    load_matrices(queries[k], staged_queries + (first_row + lane % 16) * (D + 8) + k * 16 + lane / 16 * 8);
  }

  // Each thread has two rows: lane / 4 of the first and of the last 8 rows of its warp.
  float sums[D / 8][4];
  UNROLL
  for (int n = 0; n < D / 8; n++) {
    UNROLL
    for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
  }
  float largest[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.0f, 0.0f};
  const int row = first_row + lane / 4;
  const int visible[2] = {AttentionTile<T>::visible_keys(tile, row), AttentionTile<T>::visible_keys(tile, row + 8)};
  const int seen_by_all = AttentionTile<T>::visible_keys(tile, 0);
  // exp(scale s) = 2^(log2(e) scale s)
  const float exponent = scale * 1.4426950408889634f;

  for (int number = 0; number < tiles; number++) {
    const Stage& stage = shared.stages[number % 2];
    const int first_key = number * KEYS;
    wait_for_copies();
    // After the barrier the tile is complete, and every warp is done with the other stage.
    block_barrier();
    if (number + 1 < tiles) {
      Stage& next = shared.stages[(number + 1) % 2];
      const long long skipped = (long long)(first_key + KEYS) * kv_stride;
      const int rows = tile.keys - first_key - KEYS;
      load_rows<T, KEYS, D>(next.keys, tile.key + skipped, kv_stride, rows, head_width, vectors);
      load_rows<T, KEYS, D>(next.values, tile.value + skipped, kv_stride, rows, head_width, vectors);
    }

    float scores[KEYS / 8][4];
    UNROLL
    for (int n = 0; n < KEYS / 8; n += 2) {
      UNROLL
      for (int i = 0; i < 4; i++) scores[n][i] = 0.0f, scores[n + 1][i] = 0.0f;
      UNROLL
      for (int k = 0; k < D / 16; k++) {
        unsigned keys[4];
        load_matrices(keys, stage.keys + (n * 8 + lane / 16 * 8 + lane % 8) * (D + 8) + k * 16 + lane / 8 % 2 * 8);
        const unsigned low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]};
        Format<T>::mma(scores[n], queries[k], low);
        Format<T>::mma(scores[n + 1], queries[k], high);
      }
    }
    if (first_key + KEYS > seen_by_all) {
      UNROLL
      for (int n = 0; n < KEYS / 8; n++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
          if (first_key + n * 8 + lane % 4 * 2 + i % 2 >= visible[i / 2]) scores[n][i] = minus_infinity();
        }
      }
    }

    UNROLL
    for (int half = 0; half < 2; half++) {
      float most = largest[half];
      UNROLL
      for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      // Without a visible key so far, all scores are minus infinity. 0 avoids their difference, which is NaN.
      const float reference = most == minus_infinity() ? 0.0f : most;
      const float base = reference * exponent;
      // Exactly 1 if the largest score stays the same: tiles that a query does not see must not change its result.
      // `largest * exponent - base` would be off by the rounding of `base`, with fused multiply and add.
      const float correction = exp2_approximate((largest[half] - reference) * exponent);
      largest[half] = most;
      float sum = 0.0f;
      UNROLL
      for (int n = 0; n < KEYS / 8; n++) {
        UNROLL
        for (int i = half * 2; i < half * 2 + 2; i++) {
          scores[n][i] = exp2_approximate(scores[n][i] * exponent - base);
          sum += scores[n][i];
        }
      }
      total[half] = total[half] * correction + sum;
      UNROLL
      for (int n = 0; n < D / 8; n++) sums[n][half * 2] *= correction, sums[n][half * 2 + 1] *= correction;
    }

    UNROLL
    for (int k = 0; k < KEYS / 16; k++) {
      // The layout of two results of a product is that of one left operand of the next.
      const unsigned probabilities[4] = {
          Format<T>::round_pair(scores[2 * k][0], scores[2 * k][1]),
          Format<T>::round_pair(scores[2 * k][2], scores[2 * k][3]),
          Format<T>::round_pair(scores[2 * k + 1][0], scores[2 * k + 1][1]),
          Format<T>::round_pair(scores[2 * k + 1][2], scores[2 * k + 1][3]),
      };
      UNROLL
      for (int n = 0; n < D / 8; n += 2) {
        unsigned values[4];
        load_matrices_transposed(values, stage.values + (k * 16 + lane % 16) * (D + 8) + n * 8 + lane / 16 * 8);
        const unsigned low[2] = {values[0], values[1]}, high[2] = {values[2], values[3]};
        Format<T>::mma(sums[n], probabilities, low);
        Format<T>::mma(sums[n + 1], probabilities, high);
      }
    }
  }

  const bool pairs = head_width % 2 == 0 && is_aligned(out, 4);
  UNROLL
  for (int half = 0; half < 2; half++) {
    float sum = total[half];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    const int query_row = row + half * 8;
    if (query_row >= tile.queries) continue;
    T* to = tile.out + (long long)query_row * heads * head_width;
    UNROLL
    for (int n = 0; n < D / 8; n++) {
      const int column = n * 8 + lane % 4 * 2;
      const unsigned pair = Format<T>::round_pair(sums[n][half * 2] * factor, sums[n][half * 2 + 1] * factor);
      if (pairs && column < head_width) {
        store_word(to + column, pair);
      } else {
        if (column < head_width) to[column].bits = (unsigned short)pair;
        if (column + 1 < head_width) to[column + 1].bits = (unsigned short)(pair >> 16);
      }
    }
  }
}

// Attention in f32, with ordinary multiplications. `PARTS` threads share a query: each has every PARTS-th group of 4
// columns. A block has 128 / PARTS queries.
template <int D, int PARTS>
DEVICE void attention_by_values(ATTENTION_PARAMETERS(float)) {
  constexpr int KEYS = 32;
  constexpr int GROUPS = D / (4 * PARTS);
  struct Keys {
    float keys[KEYS][D];
    float values[KEYS][D];
  };
  SHARED(Keys, shared);
  const AttentionTile<float> tile = attention_tile<float>(128 / PARTS, ATTENTION_ARGUMENTS);
  if (tile.queries <= 0) return;
  const int row = THREAD / PARTS, part = THREAD % PARTS * 4;
  const bool present = row < tile.queries;
  float own[GROUPS][4], sums[GROUPS][4];
  UNROLL
  for (int n = 0; n < GROUPS; n++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const int column = n * (4 * PARTS) + part + i;
      own[n][i] = present && column < head_width ? tile.query[(long long)row * query_stride + column] : 0.0f;
      sums[n][i] = 0.0f;
    }
  }
  const int visible = present ? AttentionTile<float>::visible_keys(tile, row) : 0;
  const int most_keys = AttentionTile<float>::visible_keys(tile, tile.queries - 1);
  const float exponent = scale * 1.4426950408889634f;
  float largest = minus_infinity(), total = 0.0f;
  for (int first_key = 0; first_key < most_keys; first_key += KEYS) {
    block_barrier();
    for (int i = THREAD; i < KEYS * D; i += 128) {
      const int key_row = i / D, column = i % D;
      const bool exists = first_key + key_row < tile.keys && column < head_width;
      const long long at = (long long)(first_key + key_row) * kv_stride + column;
      shared.keys[key_row][column] = exists ? tile.key[at] : 0.0f;
      shared.values[key_row][column] = exists ? tile.value[at] : 0.0f;
    }
    block_barrier();
    // The sums are scaled once for 8 keys.
    UNROLL_BY(1)
    for (int group = 0; group < KEYS; group += 8) {
      float scores[8];
      float most = largest;
      UNROLL
      for (int j = 0; j < 8; j++) {
        float product = 0.0f;
        UNROLL
        for (int n = 0; n < GROUPS; n++) {
          UNROLL
          for (int i = 0; i < 4; i++) product += own[n][i] * shared.keys[group + j][n * (4 * PARTS) + part + i];
        }
        UNROLL
        for (int mask = 1; mask < PARTS; mask *= 2) product += shuffle_xor(product, mask);
        scores[j] = first_key + group + j < visible ? product : minus_infinity();
        most = fmaxf(most, scores[j]);
      }
      const float reference = most == minus_infinity() ? 0.0f : most;
      const float base = reference * exponent;
      const float correction = exp2f((largest - reference) * exponent);
      largest = most;
      total *= correction;
      UNROLL
      for (int n = 0; n < GROUPS; n++) {
        UNROLL
        for (int i = 0; i < 4; i++) sums[n][i] *= correction;
      }
      UNROLL
      for (int j = 0; j < 8; j++) {
        const float probability = exp2f(scores[j] * exponent - base);
        total += probability;
        UNROLL
        for (int n = 0; n < GROUPS; n++) {
          UNROLL
          for (int i = 0; i < 4; i++) sums[n][i] += probability * shared.values[group + j][n * (4 * PARTS) + part + i];
        }
      }
    }
  }
  if (!present) return;
  UNROLL
  for (int n = 0; n < GROUPS; n++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const int column = n * (4 * PARTS) + part + i;
      if (column < head_width) {
        tile.out[(long long)row * heads * head_width + column] = total == 0.0f ? 0.0f : sums[n][i] / total;
      }
    }
  }
}

// With 128 columns, two stages of 64 keys would not fit into 48 KiB, and half of a query not into registers.
#define ATTENTION_KERNELS(D, KEYS, PARTS)                                                                              \
  KERNEL_WITH_ROOM(128, attention_d##D##_f32, ATTENTION_PARAMETERS(float)) {                                          \
    attention_by_values<D, PARTS>(ATTENTION_ARGUMENTS);                                                         \
  }                                                                                                             \
  KERNEL(128, attention_d##D##_bf16, ATTENTION_PARAMETERS(Bf16)) {                                              \
    attention_by_matrices<Bf16, D, KEYS>(ATTENTION_ARGUMENTS);                                                  \
  }                                                                                                             \
  KERNEL(128, attention_d##D##_f16, ATTENTION_PARAMETERS(F16)) {                                                \
    attention_by_matrices<F16, D, KEYS>(ATTENTION_ARGUMENTS);                                                   \
  }

ATTENTION_KERNELS(16, 64, 2)
ATTENTION_KERNELS(32, 64, 2)
ATTENTION_KERNELS(64, 64, 2)
ATTENTION_KERNELS(128, 32, 4)

// Adds the softmax of one head after another to the result. Each thread owns every 256th token, and computes its scores
// twice instead of storing them.
template <typename T>
DEVICE void attention_weights(const float* query, const T* key, float* out, int key_stride, int tokens, int heads,
                              int head_width, float scale) {
  struct Extremes {
    float of_warps[8];
  };
  SHARED(BlockSums, sums);
  SHARED(Extremes, largest);
  const float* row = query + (long long)BLOCK_X * heads * head_width;
  float* weights = out + (long long)BLOCK_X * tokens;
  auto score = [&](int head, int token) {
    const T* keys = key + (long long)token * key_stride + head * head_width;
    float product = 0.0f;
    UNROLL_BY(1)
    for (int i = 0; i < head_width; i++) product += row[head * head_width + i] * Format<T>::widen(keys[i]);
    return product * scale;
  };
  for (int head = 0; head < heads; head++) {
    float most = minus_infinity();
    UNROLL_BY(1)
    for (int token = THREAD; token < tokens; token += 256) most = fmaxf(most, score(head, token));
    UNROLL
    for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
    if (THREAD % 32 == 0) largest.of_warps[THREAD / 32] = most;
    block_barrier();
    UNROLL
    for (int warp = 0; warp < 8; warp++) most = fmaxf(most, largest.of_warps[warp]);
    float sum = 0.0f;
    UNROLL_BY(1)
    for (int token = THREAD; token < tokens; token += 256) sum += expf(score(head, token) - most);
    // Its barriers also separate this head's use of `largest` from the next head's.
    sum = block_sum(sum, sums);
    UNROLL_BY(1)
    for (int token = THREAD; token < tokens; token += 256) {
      const float weight = expf(score(head, token) - most) / sum / (float)heads;
      weights[token] = head == 0 ? weight : weights[token] + weight;
    }
  }
}

#define ATTENTION_WEIGHTS_KERNEL(SUFFIX, T)                                                                       \
  KERNEL(256, attention_weights_##SUFFIX, const float* query, const T* key, float* out, int key_stride, int tokens, \
         int heads, int head_width, float scale) {                                                                \
    attention_weights<T>(query, key, out, key_stride, tokens, heads, head_width, scale);                          \
  }

ATTENTION_WEIGHTS_KERNEL(f32, float)
ATTENTION_WEIGHTS_KERNEL(bf16, Bf16)
ATTENTION_WEIGHTS_KERNEL(f16, F16)
