// What is computed from logits.

// A value and its index. The default comes after every finite value.
struct Candidate {
  float value;
  int index;
};

struct Candidates {
  Candidate of_warps[8];
};

DEVICE Candidate no_candidate() { return Candidate{minus_infinity(), 0x7fffffff}; }

// Whether `a` comes before `b`: the larger value, the lower index among equals.
DEVICE bool comes_before(Candidate a, Candidate b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Returns the first candidate of the 256 threads of a block.
DEVICE Candidate block_first(Candidate own, Candidates& candidates) {
  UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const Candidate other = {shuffle_xor(own.value, mask), shuffle_xor(own.index, mask)};
    if (comes_before(other, own)) own = other;
  }
  if (THREAD % 32 == 0) candidates.of_warps[THREAD / 32] = own;
  block_barrier();
  own = candidates.of_warps[0];
  UNROLL
  for (int warp = 1; warp < 8; warp++) {
    if (comes_before(candidates.of_warps[warp], own)) own = candidates.of_warps[warp];
  }
  block_barrier();
  return own;
}

// Finds the thread's first candidate that comes after `previous`, among every 256th value. Sets `bad` if a value is NaN
// or infinite.
DEVICE Candidate thread_first(const float* row, int n, Candidate previous, bool& bad) {
  Candidate first = no_candidate();
  UNROLL_BY(4)
  for (int i = THREAD; i < n; i += 256) {
    const Candidate candidate = {row[i], i};
    // Subtracting a finite value from itself gives 0, anything else gives NaN.
    bad = bad || candidate.value - candidate.value != 0.0f;
    if (comes_before(previous, candidate) && comes_before(candidate, first)) first = candidate;
  }
  return first;
}

DEVICE Candidate before_all() { return Candidate{float_of_bits(0x7f800000u), -1}; }

KERNEL(256, greedy, const float* logits, unsigned* out, int n) {
  SHARED(Candidates, candidates);
  SHARED(BlockSums, sums);
  const float* row = logits + (long long)BLOCK_X * n;
  bool bad = false;
  const Candidate first = block_first(thread_first(row, n, before_all(), bad), candidates);
  float sum = 0.0f;
  UNROLL_BY(4)
  for (int i = THREAD; i < n; i += 256) sum += expf(row[i] - first.value);
  sum = block_sum(sum, sums);
  const bool any_bad = block_sum(bad ? 1.0f : 0.0f, sums) != 0.0f || n == 0;
  if (THREAD == 0) {
    unsigned* result = out + (long long)BLOCK_X * 4;
    result[0] = any_bad ? 0u : bits_of_float(first.value);
    result[1] = any_bad ? 0xffffffffu : (unsigned)first.index;
    result[2] = any_bad ? 0u : bits_of_float(first.value + logf(sum));
    result[3] = 0;
  }
}

// Each thread keeps the first of its values that is not yet in the result. Only the thread whose value was taken looks
// for its next one.
KERNEL(256, top_k, const float* logits, float* values, int* indices, int n, int k) {
  SHARED(Candidates, candidates);
  SHARED(BlockSums, sums);
  const float* row = logits + (long long)BLOCK_X * n;
  bool bad = false;
  Candidate own = thread_first(row, n, before_all(), bad);
  const bool any_bad = block_sum(bad ? 1.0f : 0.0f, sums) != 0.0f;
  for (int i = 0; i < k; i++) {
    const Candidate first = block_first(own, candidates);
    const bool found = !any_bad && i < n;
    if (THREAD == 0) {
      values[(long long)BLOCK_X * k + i] = found ? first.value : 0.0f;
      indices[(long long)BLOCK_X * k + i] = found ? first.index : -1;
    }
    if (own.index == first.index) own = thread_first(row, n, first, bad);
  }
}
