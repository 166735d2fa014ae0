// Kernels that read and write rows: patches, embeddings, layer norm, activations, copies and conversions.

template <typename T>
DEVICE void patchify(const unsigned char* pixels, const float* table, T* out, int height, int width, int patch) {
  const int across = width / patch, down = height / patch;
  const int column = BLOCK_X % across, line = BLOCK_X / across % down;
  const long long image = BLOCK_X / across / down;
  const unsigned char* corner = pixels + ((image * height + line * patch) * width + column * patch) * 3;
  const int area = patch * patch;
  for (int i = THREAD; i < 3 * area; i += 256) {
    const int channel = i / area, y = i % area / patch, x = i % patch;
    const int pixel = corner[((long long)y * width + x) * 3 + channel];
    out[(long long)BLOCK_X * 3 * area + i] = Format<T>::round(table[channel * 256 + pixel]);
  }
}

// `wide` may be `x`: each thread writes only the columns that it alone reads.
template <typename T>
DEVICE void layer_norm(const float* x, const float* weight, const float* bias, float* wide, T* narrow, int width,
                       float eps) {
  SHARED(BlockSums, sums);
  const long long start = (long long)BLOCK_X * width;
  float sum = 0.0f;
  for (int i = THREAD; i < width; i += 256) sum += x[start + i];
  const float mean = block_sum(sum, sums) / (float)width;
  float squares = 0.0f;
  for (int i = THREAD; i < width; i += 256) {
    const float difference = x[start + i] - mean;
    squares += difference * difference;
  }
  const float deviation = sqrtf(block_sum(squares, sums) / (float)width + eps);
  for (int i = THREAD; i < width; i += 256) {
    const float y = (x[start + i] - mean) / deviation * weight[i] + bias[i];
    if (wide) wide[start + i] = y;
    if (narrow) narrow[start + i] = Format<T>::round(y);
  }
}

// Eight consecutive values for each thread: 16-byte accesses reach the bandwidth of the memory, 2-byte accesses do not.
template <typename T>
DEVICE void activate(T* values, int count, int code) {
  const int start = (BLOCK_X * 256 + THREAD) * 8;
  if (start >= count) return;
  const bool vectors = is_aligned(values, 16);
  float x[8];
  load_up_to_8(x, values + start, count - start, vectors);
  UNROLL
  for (int i = 0; i < 8; i++) x[i] = code == 1 ? gelu(x[i]) : rare_activation(x[i], code);
  store_up_to_8(values + start, x, count - start, vectors);
}

template <typename From, typename To>
DEVICE void convert(const From* from, To* to, int count) {
  const int start = (BLOCK_X * 256 + THREAD) * 8;
  if (start >= count) return;
  float x[8];
  load_up_to_8(x, from + start, count - start, is_aligned(from, 16));
  store_up_to_8(to + start, x, count - start, is_aligned(to, 16));
}

#define ROW_KERNELS(SUFFIX, T)                                                                                       \
  KERNEL(256, patchify_##SUFFIX, const unsigned char* pixels, const float* table, T* out, int height, int width,    \
         int patch) {                                                                                                \
    patchify<T>(pixels, table, out, height, width, patch);                                                           \
  }                                                                                                                  \
  KERNEL(256, layer_norm_##SUFFIX, const float* x, const float* weight, const float* bias, float* wide, T* narrow,  \
         int width, float eps) {                                                                                     \
    layer_norm<T>(x, weight, bias, wide, narrow, width, eps);                                                        \
  }                                                                                                                  \
  KERNEL(256, activate_##SUFFIX, T* values, int count, int code) { activate<T>(values, count, code); }               \
  KERNEL(256, narrow_##SUFFIX, const float* from, T* to, int count) { convert<float, T>(from, to, count); }          \
  KERNEL(256, widen_##SUFFIX, const T* from, float* to, int count) { convert<T, float>(from, to, count); }

ROW_KERNELS(f32, float)
ROW_KERNELS(bf16, Bf16)
ROW_KERNELS(f16, F16)

KERNEL(256, embed_patches, const float* patches, const float* class_token, const float* positions, float* out,
       int tokens, int width) {
  const int token = BLOCK_X % tokens;
  const long long image = BLOCK_X / tokens;
  const float* row = token == 0 ? class_token : patches + (image * (tokens - 1) + token - 1) * width;
  for (int i = THREAD; i < width; i += 256) {
    out[(long long)BLOCK_X * width + i] = row[i] + positions[(long long)token * width + i];
  }
}

KERNEL(256, embed_tokens, const float* words, const float* positions, const int* tokens, float* out, int width) {
  const float* word = words + (long long)tokens[BLOCK_X * 2] * width;
  const float* position = positions + (long long)tokens[BLOCK_X * 2 + 1] * width;
  for (int i = THREAD; i < width; i += 256) out[(long long)BLOCK_X * width + i] = word[i] + position[i];
}

// `length` is the number of 16-bit units of a row.
KERNEL(256, gather, const unsigned short* from, const int* indices, unsigned short* to, int length) {
  const unsigned short* source = from + (long long)indices[BLOCK_X] * length;
  unsigned short* target = to + (long long)BLOCK_X * length;
  if (length % 8 == 0 && is_aligned(from, 16) && is_aligned(to, 16)) {
    for (int i = THREAD * 8; i < length; i += 256 * 8) store_words(target + i, load_words(source + i));
  } else {
    for (int i = THREAD; i < length; i += 256) target[i] = source[i];
  }
}
