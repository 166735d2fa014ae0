// Kernels with the defects that the host device must find. Tests compile them beside the real kernels.

struct DefectValues {
  int values[64];
};

// Reads what the other warp has written, without a barrier.
KERNEL(64, defect_missing_barrier, int* out) {
  SHARED(DefectValues, shared);
  shared.values[THREAD] = THREAD;
  out[THREAD] = shared.values[63 - THREAD];
}

// Writes again what the other warp may not have read yet.
KERNEL(64, defect_early_reuse, int* out) {
  SHARED(DefectValues, shared);
  shared.values[THREAD] = THREAD;
  block_barrier();
  const int read = shared.values[63 - THREAD];
  const int sum = shuffle_xor(shuffle_xor(read, 1) + read, 2);
  shared.values[THREAD] = sum;
  out[THREAD] = read;
}

// Reads the target of an asynchronous copy before it waits for it.
KERNEL(64, defect_missing_wait, const int* from, int* out) {
  SHARED(DefectValues, shared);
  if (THREAD < 16) copy_async(shared.values + THREAD * 4, from + THREAD * 4, true);
  block_barrier();
  out[THREAD] = shared.values[THREAD];
}

// One half of the threads ends before the barrier.
KERNEL(64, defect_deadlock, int* out) {
  if (THREAD < 32) return;
  block_barrier();
  out[THREAD] = 1;
}

// The lanes of one warp wait at a barrier and at a shuffle.
KERNEL(32, defect_split_warp, int* out) {
  if (THREAD < 16) {
    block_barrier();
  } else {
    out[THREAD] = shuffle_xor(THREAD, 1);
  }
}

// The lanes of one warp wait at different operations of the warp.
KERNEL(32, defect_mixed_operations, float* out) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
  if (THREAD < 16) {
    mma_bf16(d, a, b);
  } else {
    d[0] = shuffle_xor(d[0], 1);
  }
  out[THREAD] = d[0];
}

// Writes one value more than there is.
KERNEL(32, defect_overrun, float* out, int count) {
  if (THREAD <= count) out[THREAD] = 0.0f;
}

// Reads shared memory that was never written.
KERNEL(32, defect_undefined_shared, float* out) {
  SHARED(DefectValues, shared);
  out[THREAD] = float_of_bits((unsigned)shared.values[THREAD]);
}

// Reads 16 bytes at an address that is no multiple of 16.
KERNEL(32, defect_misaligned, const float* from, unsigned* out) { out[THREAD] = load_words(from + 1).x; }

// Writes beside an object in shared memory.
KERNEL(32, defect_shared_overrun, int* out) {
  SHARED(DefectValues, shared);
  shared.values[THREAD + (THREAD == 31 ? 33 : 0)] = THREAD;
  out[THREAD] = THREAD;
}
