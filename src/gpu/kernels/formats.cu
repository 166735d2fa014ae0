// Number formats of narrow values, and functions that several kernels use.

struct Bf16 {
  unsigned short bits;
};

struct F16 {
  unsigned short bits;
};

template <typename T>
struct Format;

template <>
struct Format<float> {
  DEVICE float widen(float x) { return x; }
  DEVICE float round(float x) { return x; }
};

template <>
struct Format<Bf16> {
  DEVICE float widen(Bf16 x) { return float_of_bits((unsigned)x.bits << 16); }
  DEVICE float widen_low(unsigned pair) { return float_of_bits(pair << 16); }
  DEVICE float widen_high(unsigned pair) { return float_of_bits(pair & 0xffff0000u); }
  DEVICE Bf16 round(float x) { return Bf16{round_to_bf16(x)}; }
  DEVICE unsigned round_pair(float low, float high) { return round_to_bf16_pair(low, high); }
  DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_bf16(d, a, b); }
};

template <>
struct Format<F16> {
  DEVICE float widen(F16 x) { return widen_f16(x.bits); }
  DEVICE float widen_low(unsigned pair) { return widen_f16((unsigned short)(pair & 0xffffu)); }
  DEVICE float widen_high(unsigned pair) { return widen_f16((unsigned short)(pair >> 16)); }
  DEVICE F16 round(float x) { return F16{round_to_f16(x)}; }
  DEVICE unsigned round_pair(float low, float high) { return round_to_f16_pair(low, high); }
  DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_f16(d, a, b); }
};

DEVICE bool is_aligned(const void* pointer, unsigned bytes) { return (unsigned long long)pointer % bytes == 0; }

DEVICE int smaller(int a, int b) { return a < b ? a : b; }

DEVICE float minus_infinity() { return float_of_bits(0xff800000u); }

DEVICE void unpack(float (&to)[8], Words low, Words high) {
  to[0] = float_of_bits(low.x), to[1] = float_of_bits(low.y), to[2] = float_of_bits(low.z), to[3] = float_of_bits(low.w);
  to[4] = float_of_bits(high.x), to[5] = float_of_bits(high.y), to[6] = float_of_bits(high.z);
  to[7] = float_of_bits(high.w);
}

template <typename T>
DEVICE void unpack(float (&to)[8], Words words) {
  to[0] = Format<T>::widen_low(words.x), to[1] = Format<T>::widen_high(words.x);
  to[2] = Format<T>::widen_low(words.y), to[3] = Format<T>::widen_high(words.y);
  to[4] = Format<T>::widen_low(words.z), to[5] = Format<T>::widen_high(words.z);
  to[6] = Format<T>::widen_low(words.w), to[7] = Format<T>::widen_high(words.w);
}

// Reads 8 consecutive values at a multiple of 16 bytes.
template <typename T>
DEVICE void load_8(float (&to)[8], const T* from) {
  unpack<T>(to, load_words(from));
}

DEVICE void load_8(float (&to)[8], const float* from) { unpack(to, load_words(from), load_words(from + 4)); }

// Reads the first `count` of 8 consecutive values, and zeros for the rest. `vectors` says that the address is a multiple
// of 16 bytes.
template <typename T>
DEVICE void load_up_to_8(float (&to)[8], const T* from, int count, bool vectors) {
  if (count >= 8 && vectors) {
    load_8(to, from);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) to[i] = i < count ? Format<T>::widen(from[i]) : 0.0f;
  }
}

// Reads the first `count` of 8 consecutive 16-bit values as they are, and zeros for the rest.
template <typename T>
DEVICE_CALLED Words load_words_by_value(const T* from, int count) {
  unsigned words[4];
  UNROLL
  for (int i = 0; i < 4; i++) {
    const unsigned low = 2 * i < count ? from[2 * i].bits : 0u, high = 2 * i + 1 < count ? from[2 * i + 1].bits : 0u;
    words[i] = low | high << 16;
  }
  Words result;
  result.x = words[0], result.y = words[1], result.z = words[2], result.w = words[3];
  return result;
}

DEVICE Words no_words() {
  Words words;
  words.x = 0, words.y = 0, words.z = 0, words.w = 0;
  return words;
}

template <typename T>
DEVICE void store_up_to_8(T* to, const float (&values)[8], int count, bool vectors) {
  if (count >= 8 && vectors) {
    Words words;
    words.x = Format<T>::round_pair(values[0], values[1]), words.y = Format<T>::round_pair(values[2], values[3]);
    words.z = Format<T>::round_pair(values[4], values[5]), words.w = Format<T>::round_pair(values[6], values[7]);
    store_words(to, words);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) {
      if (i < count) to[i] = Format<T>::round(values[i]);
    }
  }
}

DEVICE void store_up_to_8(float* to, const float (&values)[8], int count, bool vectors) {
  if (count >= 8 && vectors) {
    Words low, high;
    low.x = bits_of_float(values[0]), low.y = bits_of_float(values[1]), low.z = bits_of_float(values[2]);
    low.w = bits_of_float(values[3]), high.x = bits_of_float(values[4]), high.y = bits_of_float(values[5]);
    high.z = bits_of_float(values[6]), high.w = bits_of_float(values[7]);
    store_words(to, low), store_words(to + 4, high);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) {
      if (i < count) to[i] = values[i];
    }
  }
}

DEVICE float warp_sum(float x) {
  UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

struct BlockSums {
  float of_warps[8];
};

// Adds up the values of the 256 threads of a block, always in the same order.
DEVICE float block_sum(float x, BlockSums& sums) {
  x = warp_sum(x);
  if (THREAD % 32 == 0) sums.of_warps[THREAD / 32] = x;
  block_barrier();
  float sum = 0.0f;
  UNROLL
  for (int warp = 0; warp < 8; warp++) sum += sums.of_warps[warp];
  // The caller may use `sums` again at once.
  block_barrier();
  return sum;
}

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// All activations but `gelu`, which BLIP has.
DEVICE_CALLED float rare_activation(float x, int code) {
  switch (code) {
    case 2:
    case 6: {
      const float y = tanhf(code == 6 ? x : 0.79788456080286536f * (x + 0.044715f * x * x * x));
      return code == 6 ? y : 0.5f * x * (1.0f + y);
    }
    case 3:
    case 5:
      return x / (1.0f + expf(code == 3 ? -1.702f * x : -x));
    case 4:
      return x < 0.0f ? 0.0f : x;
    default:
      return x;
  }
}

// The codes are those of `Activation` in rows.rs.
DEVICE float activation(float x, int code) {
  if (code == 0) return x;
  return code == 1 ? gelu(x) : rare_activation(x, code);
}
