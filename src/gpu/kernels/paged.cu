// The paged KV cache: writing new tokens, and attention over a sequence's tokens.
//
// A page holds the keys, then the values, of 16 tokens. The pages of a sequence are in a table.

template <typename T>
struct PagedKv {
  T* pages;
  int page_stride;
  const int* table;
  int width;

  // The key row of a token; its value row is 16 rows further.
  DEVICE T* key_row(const PagedKv& kv, int token) {
    return kv.pages + (long long)kv.table[token / 16] * kv.page_stride * 16 + token % 16 * kv.width;
  }
};

template <typename T>
DEVICE void append_kv(const float* qkv, T* pages, int page_stride, const int* sequences, const int* tables, int width) {
  const int first = sequences[BLOCK_Y * 4], rows = sequences[BLOCK_Y * 4 + 1], cached = sequences[BLOCK_Y * 4 + 2];
  if (BLOCK_X >= rows) return;
  const PagedKv<T> kv = {pages, page_stride, tables + sequences[BLOCK_Y * 4 + 3], width};
  T* key = PagedKv<T>::key_row(kv, cached + BLOCK_X);
  T* value = key + 16 * width;
  const float* from = qkv + (long long)(first + BLOCK_X) * 3 * width;
  for (int i = THREAD; i < width; i += 256) {
    key[i] = Format<T>::round(from[width + i]);
    value[i] = Format<T>::round(from[2 * width + i]);
  }
}

// One block computes one head of one row. Groups of lanes take the tokens in turn, each lane 8 columns of them. Each
// group has an online softmax of its own; at the end the groups are added up in order.
template <typename T>
DEVICE void paged_attention(const float* qkv, T* out, T* pages, int page_stride, const int* sequences,
                            const int* tables, int heads, int head_width, float scale) {
  struct Groups {
    float sums[128][8];
    float largest[128];
    float total[128];
  };
  SHARED(Groups, shared);
  const int first = sequences[BLOCK_Z * 4], rows = sequences[BLOCK_Z * 4 + 1], cached = sequences[BLOCK_Z * 4 + 2];
  if (BLOCK_Y >= rows) return;
  const int width = heads * head_width;
  const PagedKv<T> kv = {pages, page_stride, tables + sequences[BLOCK_Z * 4 + 3], width};
  int lanes = 1;
  while (lanes * 8 < head_width) lanes *= 2;
  const int groups = 128 / lanes, group = THREAD / lanes, column = THREAD % lanes * 8;
  const int columns = head_width - column;
  const bool vectors = head_width % 8 == 0 && is_aligned(pages, 16);
  const long long row = first + BLOCK_Y;
  const int tokens = cached + BLOCK_Y + 1;
  // 2^x instead of e^x.
  const float exponent = scale * 1.4426950408889634f;
  float query[8], sums[8];
  UNROLL
  for (int i = 0; i < 8; i++) {
    query[i] = i < columns ? qkv[row * 3 * width + BLOCK_X * head_width + column + i] * exponent : 0.0f;
    sums[i] = 0.0f;
  }
  float largest = minus_infinity(), total = 0.0f;
  // All groups of a warp take the same number of turns, because they shuffle together.
  for (int turn = 0; turn < tokens; turn += groups) {
    const int token = turn + group;
    const bool present = token < tokens;
    float score = 0.0f, values[8];
    UNROLL
    for (int i = 0; i < 8; i++) values[i] = 0.0f;
    if (present) {
      const T* keys = PagedKv<T>::key_row(kv, token) + BLOCK_X * head_width + column;
      float key[8];
      load_up_to_8(key, keys, columns, vectors);
      load_up_to_8(values, keys + 16 * width, columns, vectors);
      UNROLL
      for (int i = 0; i < 8; i++) score += query[i] * key[i];
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
    if (present) {
      const float most = fmaxf(largest, score);
      const float correction = exp2f(largest - most), probability = exp2f(score - most);
      largest = most;
      total = total * correction + probability;
      UNROLL
      for (int i = 0; i < 8; i++) sums[i] = sums[i] * correction + probability * values[i];
    }
  }
  UNROLL
  for (int i = 0; i < 8; i++) shared.sums[THREAD][i] = sums[i];
  if (column == 0) shared.largest[group] = largest, shared.total[group] = total;
  block_barrier();
  const int used = smaller(groups, tokens);
  float most = minus_infinity();
  for (int i = 0; i < used; i++) most = fmaxf(most, shared.largest[i]);
  for (int i = THREAD; i < head_width; i += 128) {
    float sum = 0.0f, all = 0.0f;
    for (int j = 0; j < used; j++) {
      const float factor = exp2f(shared.largest[j] - most);
      all += shared.total[j] * factor;
      sum += shared.sums[j * lanes + i / 8][i % 8] * factor;
    }
    out[row * width + BLOCK_X * head_width + i] = Format<T>::round(sum / all);
  }
}

#define PAGED_KERNELS(SUFFIX, T)                                                                                      \
  KERNEL(256, append_kv_##SUFFIX, const float* qkv, T* pages, int page_stride, const int* sequences,                 \
         const int* tables, int width) {                                                                              \
    append_kv<T>(qkv, pages, page_stride, sequences, tables, width);                                                  \
  }                                                                                                                   \
  KERNEL(128, paged_attention_##SUFFIX, const float* qkv, T* out, T* pages, int page_stride, const int* sequences,   \
         const int* tables, int heads, int head_width, float scale) {                                                 \
    paged_attention<T>(qkv, out, pages, page_stride, sequences, tables, heads, head_width, scale);                    \
  }

PAGED_KERNELS(f32, float)
PAGED_KERNELS(bf16, Bf16)
PAGED_KERNELS(f16, F16)
