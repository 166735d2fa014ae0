// Products of a few rows with a weight, which is read once.

#define FEW_ROW_PARAMETERS(T)                                                                                      \
  const T *RESTRICT x, const T *RESTRICT w, const float *bias, const float *residual, float *wide, T *narrow, int rows, \
      int n, int k, int code

#define FEW_ROW_ARGUMENTS x, w, bias, residual, wide, narrow, rows, n, k, code

template <typename T>
DEVICE void store_product(float sum, int row, int column, const float* bias, const float* residual, float* wide,
                          T* narrow, int n, int code) {
  const long long at = (long long)row * n + column;
  float y = activation(bias ? sum + bias[column] : sum, code);
  if (residual) y += residual[at];
  if (wide) wide[at] = y;
  if (narrow) narrow[at] = Format<T>::round(y);
}

// With matrix instructions: 16 rows of the weight are the left operand, 8 rows of x the right one. A block has 16 columns
// of the result; its 8 warps take 32 values of k in turn, and their sums are added up in order.
//
// The instructions multiply k in the order in which both operands are given, whatever it is. So each thread reads 8
// consecutive values of k as one vector, and the two halves of it serve two instructions.
template <typename T, int TILES, bool VECTORS>
DEVICE void add_few_row_products(float (&sums)[TILES][4], const T* RESTRICT x, const T* RESTRICT w, int rows, int n,
                                 int k) {
  const int lane = THREAD % 32, group = lane / 4, column = BLOCK_X * 16 + group;
  const T* low_weights = w + (long long)column * k;
  const T* high_weights = w + (long long)(column + 8) * k;
  auto load = [](const T* from, int count, bool once) {
    if (!VECTORS) return load_words_by_value(from, count);
    if (count < 8) return no_words();
    return once ? load_words_once(from) : load_words(from);
  };
  // Several reads of weights must be under way together, also where k is short. With many tiles the registers suffice
  // for two. Values from k on are zeros.
  constexpr int READS = !VECTORS ? 1 : TILES < 8 ? 4 : 2;
  UNROLL_BY(1)
  for (int start = THREAD / 32 * 32; start < k; start += READS * 8 * 32) {
    Words low[READS], high[READS];
    UNROLL
    for (int i = 0; i < READS; i++) {
      const int at = start + i * 8 * 32 + lane % 4 * 8;
      low[i] = load(low_weights + at, column < n ? k - at : 0, true);
      high[i] = load(high_weights + at, column + 8 < n ? k - at : 0, true);
    }
    UNROLL
    for (int i = 0; i < READS; i++) {
      const int at = start + i * 8 * 32 + lane % 4 * 8;
      const unsigned first[4] = {low[i].x, high[i].x, low[i].y, high[i].y};
      const unsigned second[4] = {low[i].z, high[i].z, low[i].w, high[i].w};
      UNROLL
      for (int tile = 0; tile < TILES; tile++) {
        const int row = tile * 8 + group;
        const Words values = load(x + (long long)row * k + at, row < rows ? k - at : 0, false);
        const unsigned first_values[2] = {values.x, values.y}, second_values[2] = {values.z, values.w};
        Format<T>::mma(sums[tile], first, first_values);
        Format<T>::mma(sums[tile], second, second_values);
      }
    }
  }
}

template <typename T, int TILES>
DEVICE void few_row_product_by_matrices(FEW_ROW_PARAMETERS(T)) {
  struct Shared {
    float sums[8][TILES * 8][16];
  };
  SHARED(Shared, shared);
  const int warp = THREAD / 32, lane = THREAD % 32, group = lane / 4, first_column = BLOCK_X * 16;
  float sums[TILES][4];
  UNROLL
  for (int tile = 0; tile < TILES; tile++) {
    UNROLL
    for (int i = 0; i < 4; i++) sums[tile][i] = 0.0f;
  }
  if (k % 8 == 0 && is_aligned(x, 16) && is_aligned(w, 16)) {
    add_few_row_products<T, TILES, true>(sums, x, w, rows, n, k);
  } else {
    add_few_row_products<T, TILES, false>(sums, x, w, rows, n, k);
  }
  UNROLL
  for (int tile = 0; tile < TILES; tile++) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      shared.sums[warp][tile * 8 + lane % 4 * 2 + i % 2][group + i / 2 * 8] = sums[tile][i];
    }
  }
  block_barrier();
  const int column = first_column + THREAD % 16;
  if (column >= n) return;
  UNROLL_BY(2)
  for (int row = THREAD / 16; row < rows; row += 16) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < 8; i++) sum += shared.sums[i][row][THREAD % 16];
    store_product<T>(sum, row, column, bias, residual, wide, narrow, n, code);
  }
}

// In f32, with ordinary multiplications: each of the 8 warps has 2 columns, and its lanes split k. From the second group
// of 4 rows on, the weights come from the cache.
DEVICE void few_row_product_by_values(FEW_ROW_PARAMETERS(float)) {
  const int lane = THREAD % 32, first_column = BLOCK_X * 16 + THREAD / 32 * 2;
  if (first_column >= n) return;
  const bool vectors = k % 8 == 0 && is_aligned(x, 16) && is_aligned(w, 16);
  UNROLL_BY(1)
  for (int first_row = 0; first_row < rows; first_row += 4) {
    float sums[4][2];
    UNROLL
    for (int r = 0; r < 4; r++) sums[r][0] = 0.0f, sums[r][1] = 0.0f;
    const float* values = x + (long long)first_row * k;
    const float* weights = w + (long long)first_column * k;
    const bool second = first_column + 1 < n;
    if (vectors) {
      UNROLL_BY(1)
      for (int at = lane * 8; at < k; at += 256) {
        float low[8], high[8];
        load_8(low, weights + at);
        load_8(high, weights + (second ? k : 0) + at);
        UNROLL
        for (int r = 0; r < 4; r++) {
          if (first_row + r < rows) {
            float y[8];
            load_8(y, values + (long long)r * k + at);
            UNROLL
            for (int i = 0; i < 8; i++) sums[r][0] += low[i] * y[i], sums[r][1] += high[i] * y[i];
          }
        }
      }
    } else {
      for (int at = lane; at < k; at += 32) {
        const float low = weights[at], high = weights[(second ? k : 0) + at];
        UNROLL
        for (int r = 0; r < 4; r++) {
          if (first_row + r < rows) {
            const float y = values[(long long)r * k + at];
            sums[r][0] += low * y, sums[r][1] += high * y;
          }
        }
      }
    }
    float own = 0.0f;
    UNROLL
    for (int i = 0; i < 8; i++) {
      const float sum = warp_sum(sums[i / 2][i % 2]);
      if (lane == i) own = sum;
    }
    const int row = first_row + lane / 2, column = first_column + lane % 2;
    if (lane < 8 && row < rows && column < n) {
      store_product<float>(own, row, column, bias, residual, wide, narrow, n, code);
    }
  }
}

// One entry point for each number of tiles of 8 rows: with fewer tiles a thread needs fewer registers.
#define FEW_ROW_KERNELS(ROWS, TILES)                                                      \
  KERNEL(256, few_row_product_r##ROWS##_bf16, FEW_ROW_PARAMETERS(Bf16)) {                 \
    few_row_product_by_matrices<Bf16, TILES>(FEW_ROW_ARGUMENTS);                          \
  }                                                                                       \
  KERNEL(256, few_row_product_r##ROWS##_f16, FEW_ROW_PARAMETERS(F16)) {                   \
    few_row_product_by_matrices<F16, TILES>(FEW_ROW_ARGUMENTS);                           \
  }

FEW_ROW_KERNELS(8, 1)
FEW_ROW_KERNELS(16, 2)
FEW_ROW_KERNELS(32, 4)
FEW_ROW_KERNELS(64, 8)

KERNEL(256, few_row_product_f32, FEW_ROW_PARAMETERS(float)) { few_row_product_by_values(FEW_ROW_ARGUMENTS); }
