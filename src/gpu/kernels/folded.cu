// Cross-attention of a few rows over encoder states, without keys and values: see folded.rs.

// A block computes 128 columns of one head and 8 rows. A thread has 8 columns, and every 8th value of the head; so the
// weights come in few 16-byte reads that are under way together. The threads' sums are added up in order.
template <typename T>
DEVICE void fold_query(const float* query, const T* key, T* out, int rows, int heads, int head_width, int states_width,
                       float scale) {
  struct Shared {
    float queries[8][128];
    float sums[8][8][128];
  };
  SHARED(Shared, shared);
  const int group = THREAD / 16, own_column = THREAD % 16 * 8, first_row = BLOCK_Z * 8;
  const int columns = states_width - BLOCK_X * 128 - own_column;
  const bool vectors = columns >= 8 && states_width % 8 == 0 && is_aligned(key, 16);
  float sums[8][8];
  UNROLL
  for (int r = 0; r < 8; r++) {
    UNROLL
    for (int i = 0; i < 8; i++) sums[r][i] = 0.0f;
  }
  for (int start = 0; start < head_width; start += 128) {
    const int width = smaller(128, head_width - start);
    block_barrier();
    for (int i = THREAD; i < 8 * width; i += 128) {
      const int r = i / width, d = i % width;
      const long long at = (long long)(first_row + r) * heads * head_width + BLOCK_Y * head_width + start + d;
      shared.queries[r][d] = first_row + r < rows ? query[at] : 0.0f;
    }
    block_barrier();
    const T* keys = key + (long long)(BLOCK_Y * head_width + start) * states_width + BLOCK_X * 128 + own_column;
    auto add = [&](int d, const float (&weights)[8]) {
      UNROLL
      for (int r = 0; r < 8; r++) {
        const float value = shared.queries[r][d];
        UNROLL
        for (int i = 0; i < 8; i++) sums[r][i] += value * weights[i];
      }
    };
    if (vectors) {
      UNROLL_BY(4)
      for (int d = group; d < width; d += 8) {
        float weights[8];
        load_8(weights, keys + (long long)d * states_width);
        add(d, weights);
      }
    } else {
      UNROLL_BY(1)
      for (int d = group; d < width; d += 8) {
        float weights[8];
        load_up_to_8(weights, keys + (long long)d * states_width, columns, false);
        add(d, weights);
      }
    }
  }
  UNROLL
  for (int r = 0; r < 8; r++) {
    UNROLL
    for (int i = 0; i < 8; i++) shared.sums[group][r][own_column + i] = sums[r][i];
  }
  block_barrier();
  const int column = BLOCK_X * 128 + THREAD;
  if (column >= states_width) return;
  UNROLL
  for (int r = 0; r < 8; r++) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < 8; i++) sum += shared.sums[i][r][THREAD];
    const int row = first_row + r;
    if (row < rows) out[((long long)row * heads + BLOCK_Y) * states_width + column] = Format<T>::round(sum * scale);
  }
}

// A block computes 4 columns of the result and 8 rows. Its threads split the states' width. Rows and columns that do not
// exist repeat others, so that no read waits for a branch; their results are not stored.
template <typename T>
DEVICE void project_values(const T* context, const T* value, const float* bias, T* out, int rows, int heads,
                           int head_width, int states_width) {
  struct Shared {
    float sums[4][32];
  };
  SHARED(Shared, shared);
  const int blocks = (head_width + 3) / 4, head = BLOCK_X / blocks, first_d = BLOCK_X % blocks * 4;
  const int lane = THREAD % 32, first_row = BLOCK_Y * 8;
  const T* weights[4];
  const T* states[8];
  UNROLL
  for (int c = 0; c < 4; c++) {
    weights[c] = value + (long long)(head * head_width + smaller(first_d + c, head_width - 1)) * states_width;
  }
  UNROLL
  for (int r = 0; r < 8; r++) {
    states[r] = context + ((long long)smaller(first_row + r, rows - 1) * heads + head) * states_width;
  }
  // The sum of column c and row r is at c * 8 + r.
  float sums[32];
  UNROLL
  for (int i = 0; i < 32; i++) sums[i] = 0.0f;
  if (states_width % 8 == 0 && is_aligned(context, 16) && is_aligned(value, 16)) {
    UNROLL_BY(1)
    for (int at = THREAD * 8; at < states_width; at += 128 * 8) {
      float w[4][8];
      UNROLL
      for (int c = 0; c < 4; c++) load_8(w[c], weights[c] + at);
      UNROLL
      for (int r = 0; r < 8; r++) {
        float x[8];
        load_8(x, states[r] + at);
        UNROLL
        for (int c = 0; c < 4; c++) {
          UNROLL
          for (int i = 0; i < 8; i++) sums[c * 8 + r] += w[c][i] * x[i];
        }
      }
    }
  } else {
    UNROLL_BY(1)
    for (int at = THREAD; at < states_width; at += 128) {
      float w[4];
      UNROLL
      for (int c = 0; c < 4; c++) w[c] = Format<T>::widen(weights[c][at]);
      UNROLL
      for (int r = 0; r < 8; r++) {
        const float x = Format<T>::widen(states[r][at]);
        UNROLL
        for (int c = 0; c < 4; c++) sums[c * 8 + r] += w[c] * x;
      }
    }
  }
  // Two lanes exchange halves of their sums, and each adds up one half. After five steps lane i has sum i of the warp.
  UNROLL
  for (int half = 16; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
    UNROLL
    for (int i = 0; i < half; i++) {
      const float kept = upper ? sums[i + half] : sums[i], sent = upper ? sums[i] : sums[i + half];
      sums[i] = kept + shuffle_xor(sent, half);
    }
  }
  shared.sums[THREAD / 32][lane] = sums[0];
  block_barrier();
  const int d = first_d + lane / 8, row = first_row + lane % 8;
  if (THREAD >= 32 || d >= head_width || row >= rows) return;
  float sum = 0.0f;
  UNROLL
  for (int warp = 0; warp < 4; warp++) sum += shared.sums[warp][lane];
  const int column = head * head_width + d;
  out[(long long)row * heads * head_width + column] = Format<T>::round(sum + bias[column]);
}

// `folded_attention` splits the tokens of a row into 4 parts, so that a single row uses more than one multiprocessor,
// and `folded_merge` joins them in order. 64 groups of 16 heads run at once. These numbers are also in folded.rs.
#define FOLDED_PARTS 4
#define FOLDED_GROUPS 64
#define FOLDED_WIDTH 1024

// Sums of states [group, part, head, column], largest exponent and sum of powers of 2 [group, part, head, 2].
SCRATCH(float, folded_sums, FOLDED_GROUPS* FOLDED_PARTS * 16 * FOLDED_WIDTH);
SCRATCH(float, folded_totals, FOLDED_GROUPS* FOLDED_PARTS * 16 * 2);

// What one block of `folded_attention` computes: 16 heads of a row over a part of its tokens.
template <typename T>
struct FoldedPart {
  const T* states;
  const T* query;
  float* sums;
  float* totals;
  // Tokens from `first` to before `end`.
  int first, end;
  // At most 16.
  int heads;
};

// `step` is the number of tokens that a block handles together. Parts are multiples of it.
template <typename T>
DEVICE FoldedPart<T> folded_part(const T* query, const unsigned long long* states, int heads, int width, int step) {
  const int tokens = (int)states[BLOCK_X * 2 + 1];
  const int steps = (tokens + step - 1) / step;
  const long long slot = ((long long)BLOCK_X * ((heads + 15) / 16) + BLOCK_Y) * FOLDED_PARTS + BLOCK_Z;
  FoldedPart<T> part;
  part.states = (const T*)states[BLOCK_X * 2];
  part.query = query + ((long long)BLOCK_X * heads + BLOCK_Y * 16) * width;
  part.sums = folded_sums + slot * 16 * FOLDED_WIDTH;
  part.totals = folded_totals + slot * 16 * 2;
  part.first = steps * BLOCK_Z / FOLDED_PARTS * step;
  part.end = smaller(steps * (BLOCK_Z + 1) / FOLDED_PARTS * step, tokens);
  part.heads = smaller(heads - BLOCK_Y * 16, 16);
  return part;
}

DEVICE void store_empty_part(float* totals) {
  if (THREAD < 16) totals[THREAD * 2] = minus_infinity(), totals[THREAD * 2 + 1] = 0.0f;
}

// With matrix instructions: 8 warps, 16 tokens at a time. For the scores each warp has a part of the states' width, and
// the warps' results are added up in order. For the sum of the states each warp has the same part of the columns.
template <typename T>
DEVICE void folded_attention_by_matrices(const T* query, const unsigned long long* states, int heads, int width) {
  constexpr int STRIDE = FOLDED_WIDTH + 8;
  struct Shared {
    T states[16 * STRIDE];
    float products[8][16][16];
    float scores[16][16];
  };
  SHARED(Shared, shared);
  const FoldedPart<T> part = folded_part<T>(query, states, heads, width, 16);
  if (part.first >= part.end) {
    if (states[BLOCK_X * 2 + 1] != 0) store_empty_part(part.totals);
    return;
  }
  const int warp = THREAD / 32, lane = THREAD % 32, head = lane / 4;
  const bool vectors = width % 8 == 0 && is_aligned(part.states, 16);
  const int steps = (width + 15) / 16;

  // The warp's columns are those of the steps warp, warp + 8, ...
  unsigned queries[8][4];
  UNROLL
  for (int j = 0; j < 8; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      const int row = head + i % 2 * 8, column = (warp + 8 * j) * 16 + i / 2 * 8 + lane % 4 * 2;
      const T* from = part.query + (long long)row * width + column;
      const unsigned low = row < part.heads && column < width ? from[0].bits : 0u;
      const unsigned high = row < part.heads && column + 1 < width ? from[1].bits : 0u;
      queries[j][i] = low | high << 16;
    }
  }

  // Thread i copies to row i / 16 of the tile. The values pass through registers: they are read from memory while the
  // previous tile is used, and a second tile in shared memory would not fit into 48 KiB.
  const int tile_row = THREAD / 16, tile_column = THREAD % 16 * 8;
  Words next[8];
  auto fetch = [&](int token) {
    const T* from = part.states + (long long)(token + tile_row) * width;
    UNROLL
    for (int j = 0; j < 8; j++) {
      const int column = tile_column + j * 128;
      next[j] = column < width && token + tile_row < part.end ? load_words(from + column) : no_words();
    }
  };
  if (vectors) fetch(part.first);

  float sums[8][2][4];
  UNROLL
  for (int j = 0; j < 8; j++) {
    UNROLL
    for (int i = 0; i < 4; i++) sums[j][0][i] = 0.0f, sums[j][1][i] = 0.0f;
  }
  float largest[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.0f, 0.0f};
  for (int token = part.first; token < part.end; token += 16) {
    block_barrier();
    if (vectors) {
      UNROLL
      for (int j = 0; j < 8; j++) {
        const int column = tile_column + j * 128;
        if (column < steps * 16) store_words(shared.states + tile_row * STRIDE + column, next[j]);
      }
    } else {
      UNROLL_BY(1)
      for (int i = THREAD; i < 16 * steps * 16; i += 256) {
        const int row = i / (steps * 16), column = i % (steps * 16);
        const bool present = token + row < part.end && column < width;
        shared.states[row * STRIDE + column] = present ? part.states[(long long)(token + row) * width + column] : T{0};
      }
    }
    block_barrier();
    if (vectors && token + 16 < part.end) fetch(token + 16);

    float products[2][4];
    UNROLL
    for (int i = 0; i < 4; i++) products[0][i] = 0.0f, products[1][i] = 0.0f;
    UNROLL
    for (int j = 0; j < 8; j++) {
      const int step = warp + 8 * j;
      if (step < steps) {
        unsigned tokens[4];
        const int row = lane / 16 * 8 + lane % 8;
        load_matrices(tokens, shared.states + row * STRIDE + step * 16 + lane / 8 % 2 * 8);
        const unsigned low[2] = {tokens[0], tokens[1]}, high[2] = {tokens[2], tokens[3]};
        Format<T>::mma(products[0], queries[j], low);
        Format<T>::mma(products[1], queries[j], high);
      }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
      shared.products[warp][head + i / 2 * 8][lane % 4 * 2 + i % 2] = products[0][i];
      shared.products[warp][head + i / 2 * 8][8 + lane % 4 * 2 + i % 2] = products[1][i];
    }
    block_barrier();
    float score = 0.0f;
    UNROLL
    for (int w = 0; w < 8; w++) score += shared.products[w][THREAD / 16][THREAD % 16];
    // Exponents of 2 instead of e.
    shared.scores[THREAD / 16][THREAD % 16] =
        token + THREAD % 16 < part.end ? score * 1.4426950408889634f : minus_infinity();
    block_barrier();

    // Every warp computes the same probabilities.
    unsigned probabilities[4];
    UNROLL
    for (int half = 0; half < 2; half++) {
      const float* row = shared.scores[head + half * 8];
      float exponents[4] = {row[lane % 4 * 2], row[lane % 4 * 2 + 1], row[8 + lane % 4 * 2], row[9 + lane % 4 * 2]};
      float most = fmaxf(fmaxf(exponents[0], exponents[1]), fmaxf(exponents[2], exponents[3]));
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      most = fmaxf(most, largest[half]);
      const float correction = exp2_approximate(largest[half] - most);
      largest[half] = most;
      UNROLL
      for (int i = 0; i < 4; i++) exponents[i] = exp2_approximate(exponents[i] - most);
      total[half] = total[half] * correction + ((exponents[0] + exponents[1]) + (exponents[2] + exponents[3]));
      probabilities[half] = Format<T>::round_pair(exponents[0], exponents[1]);
      probabilities[half + 2] = Format<T>::round_pair(exponents[2], exponents[3]);
      UNROLL
      for (int j = 0; j < 8; j++) {
        UNROLL
        for (int i = half * 2; i < half * 2 + 2; i++) sums[j][0][i] *= correction, sums[j][1][i] *= correction;
      }
    }
    UNROLL
    for (int j = 0; j < 8; j++) {
      const int step = warp + 8 * j;
      if (step < steps) {
        unsigned values[4];
        load_matrices_transposed(values, shared.states + lane % 16 * STRIDE + step * 16 + lane / 16 * 8);
        const unsigned low[2] = {values[0], values[1]}, high[2] = {values[2], values[3]};
        Format<T>::mma(sums[j][0], probabilities, low);
        Format<T>::mma(sums[j][1], probabilities, high);
      }
    }
  }

  UNROLL
  for (int half = 0; half < 2; half++) {
    float sum = total[half];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const int row = head + half * 8;
    if (THREAD < 32 && lane % 4 == 0) part.totals[row * 2] = largest[half], part.totals[row * 2 + 1] = sum;
    UNROLL
    for (int j = 0; j < 8; j++) {
      const int step = warp + 8 * j;
      if (step < steps) {
        UNROLL
        for (int i = 0; i < 4; i++) {
          const int column = step * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2;
          part.sums[row * FOLDED_WIDTH + column] = sums[j][i / 2][half * 2 + i % 2];
        }
      }
    }
  }
}

// In f32, with ordinary multiplications: 8 tokens at a time. For the scores each warp has a token, for the probabilities
// each of 16 threads has a head, and for the sum of the states each thread has 4 columns.
DEVICE void folded_attention_by_values(const float* query, const unsigned long long* states, int heads, int width) {
  struct Shared {
    float states[8][FOLDED_WIDTH];
    float scores[16][8];
    float corrections[16];
  };
  SHARED(Shared, shared);
  const FoldedPart<float> part = folded_part<float>(query, states, heads, width, 8);
  if (part.first >= part.end) {
    if (states[BLOCK_X * 2 + 1] != 0) store_empty_part(part.totals);
    return;
  }
  const int warp = THREAD / 32, lane = THREAD % 32;
  float sums[16][4], largest = minus_infinity(), total = 0.0f;
  UNROLL
  for (int h = 0; h < 16; h++) {
    UNROLL
    for (int j = 0; j < 4; j++) sums[h][j] = 0.0f;
  }
  for (int token = part.first; token < part.end; token += 8) {
    const int tokens = smaller(8, part.end - token);
    block_barrier();
    for (int row = 0; row < 8; row++) {
      for (int i = THREAD; i < width; i += 256) {
        shared.states[row][i] = row < tokens ? part.states[(long long)(token + row) * width + i] : 0.0f;
      }
    }
    block_barrier();
    UNROLL_BY(1)
    for (int h = 0; h < part.heads; h++) {
      float product = 0.0f;
      for (int i = lane; i < width; i += 32) product += part.query[(long long)h * width + i] * shared.states[warp][i];
      product = warp_sum(product);
      if (lane == 0) shared.scores[h][warp] = warp < tokens ? product * 1.4426950408889634f : minus_infinity();
    }
    block_barrier();
    if (THREAD < part.heads) {
      float* row = shared.scores[THREAD];
      float most = largest;
      UNROLL
      for (int i = 0; i < 8; i++) most = fmaxf(most, row[i]);
      const float correction = exp2f(largest - most);
      largest = most;
      total *= correction;
      UNROLL
      for (int i = 0; i < 8; i++) {
        row[i] = exp2f(row[i] - most);
        total += row[i];
      }
      shared.corrections[THREAD] = correction;
    }
    block_barrier();
    UNROLL
    for (int h = 0; h < 16; h++) {
      const float correction = h < part.heads ? shared.corrections[h] : 0.0f;
      UNROLL
      for (int j = 0; j < 4; j++) sums[h][j] *= correction;
    }
    UNROLL_BY(1)
    for (int i = 0; i < 8; i++) {
      float values[4];
      UNROLL
      for (int j = 0; j < 4; j++) values[j] = THREAD + 256 * j < width ? shared.states[i][THREAD + 256 * j] : 0.0f;
      UNROLL
      for (int h = 0; h < 16; h++) {
        const float probability = h < part.heads ? shared.scores[h][i] : 0.0f;
        UNROLL
        for (int j = 0; j < 4; j++) sums[h][j] += probability * values[j];
      }
    }
  }
  if (THREAD < 16) part.totals[THREAD * 2] = largest, part.totals[THREAD * 2 + 1] = total;
  UNROLL
  for (int h = 0; h < 16; h++) {
    UNROLL
    for (int j = 0; j < 4; j++) {
      const int column = THREAD + 256 * j;
      if (column < width) part.sums[h * FOLDED_WIDTH + column] = sums[h][j];
    }
  }
}

template <typename T>
DEVICE void folded_merge(const unsigned long long* states, T* out, int heads, int width) {
  if (states[BLOCK_X * 2 + 1] == 0) return;
  const long long slot = ((long long)BLOCK_X * ((heads + 15) / 16) + BLOCK_Y / 16) * FOLDED_PARTS;
  const int head = BLOCK_Y % 16;
  float largest[FOLDED_PARTS], most = minus_infinity(), total = 0.0f;
  UNROLL
  for (int i = 0; i < FOLDED_PARTS; i++) {
    largest[i] = folded_totals[((slot + i) * 16 + head) * 2];
    most = fmaxf(most, largest[i]);
  }
  UNROLL
  for (int i = 0; i < FOLDED_PARTS; i++) {
    total += folded_totals[((slot + i) * 16 + head) * 2 + 1] * exp2f(largest[i] - most);
  }
  for (int column = THREAD; column < width; column += 256) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < FOLDED_PARTS; i++) {
      // A part without tokens has no sums.
      if (largest[i] != minus_infinity()) {
        sum += folded_sums[((slot + i) * 16 + head) * FOLDED_WIDTH + column] * exp2f(largest[i] - most);
      }
    }
    out[((long long)BLOCK_X * heads + BLOCK_Y) * width + column] = Format<T>::round(sum / total);
  }
}

#define FOLDED_KERNELS(SUFFIX, T)                                                                                  \
  KERNEL(128, fold_query_##SUFFIX, const float* query, const T* key, T* out, int rows, int heads, int head_width, \
         int states_width, float scale) {                                                                          \
    fold_query<T>(query, key, out, rows, heads, head_width, states_width, scale);                                  \
  }                                                                                                                \
  KERNEL(128, project_values_##SUFFIX, const T* context, const T* value, const float* bias, T* out, int rows,     \
         int heads, int head_width, int states_width) {                                                            \
    project_values<T>(context, value, bias, out, rows, heads, head_width, states_width);                           \
  }                                                                                                                \
  KERNEL(256, folded_merge_##SUFFIX, const unsigned long long* states, T* out, int heads, int states_width) {      \
    folded_merge<T>(states, out, heads, states_width);                                                             \
  }

FOLDED_KERNELS(f32, float)
FOLDED_KERNELS(bf16, Bf16)
FOLDED_KERNELS(f16, F16)

KERNEL(256, folded_attention_f32, const float* query, const unsigned long long* states, int heads, int states_width) {
  folded_attention_by_values(query, states, heads, states_width);
}

KERNEL(256, folded_attention_bf16, const Bf16* query, const unsigned long long* states, int heads, int states_width) {
  folded_attention_by_matrices<Bf16>(query, states, heads, states_width);
}

KERNEL(256, folded_attention_f16, const F16* query, const unsigned long long* states, int heads, int states_width) {
  folded_attention_by_matrices<F16>(query, states, heads, states_width);
}
