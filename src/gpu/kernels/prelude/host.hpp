// What the kernels use of the GPU, for the CPU: tests compile the kernels with this file in front of them.
//
// The threads of a block are fibers on one thread of the CPU. A fiber runs until an operation that needs other threads
// (a barrier, a shuffle, a matrix instruction), where it waits until all threads of its warp or block have arrived. The
// caller selects the order in which fibers run: results that depend on it miss a barrier.
//
// One file of more than 500 lines, because it stands in front of the kernels as one text, as `cuda.cuh` does.
//
// Vector accesses check their alignment. What this does not show: races between warps that run at the same time, speed.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN 1
#endif
#endif
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define SHIM_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

namespace shim {

// Order in which the fibers of a block, and the blocks of a grid, run.
enum Order : uint32_t { FORWARD = 0, BACKWARD = 1, SHUFFLED = 2 };

enum Operation : int { BLOCK_BARRIER, SHUFFLE, MMA_BF16, MMA_F16, LOAD_MATRICES, LOAD_MATRICES_TRANSPOSED };

inline const char* name_of(Operation operation) {
  static const char* const names[] = {"a block barrier",  "a shuffle",    "a bf16 matrix instruction",
                                      "an f16 matrix instruction", "ldmatrix", "ldmatrix.trans"};
  return names[operation];
}

constexpr size_t SHARED_LIMIT = 48 * 1024;
// Gap between two objects in shared memory, so that AddressSanitizer sees overruns.
constexpr size_t SHARED_GAP = 64;
constexpr size_t SHARED_ARENA = SHARED_LIMIT + 64 * SHARED_GAP;
#ifdef SHIM_ASAN
constexpr size_t STACK_BYTES = 256 * 1024;
#else
constexpr size_t STACK_BYTES = 64 * 1024;
#endif

#ifdef SHIM_ASSEMBLY
// Saves the callee-saved registers on the stack and its address in `*from`, and goes on with the stack `to`.
extern "C" void blip_shim_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl blip_shim_switch
.hidden blip_shim_switch
.type blip_shim_switch, @function
blip_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size blip_shim_switch, .-blip_shim_switch
)");
#else
asm(R"(
.text
.globl blip_shim_switch
.hidden blip_shim_switch
.type blip_shim_switch, %function
blip_shim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size blip_shim_switch, .-blip_shim_switch
)");
#endif
#endif

// The state of a suspended flow of control.
struct Context {
#ifdef SHIM_ASSEMBLY
  void* stack = nullptr;
#else
  ucontext_t context;
#endif
#ifdef SHIM_ASAN
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#endif
};

// Suspends `from` and resumes `to`. `last` says that `from` is never resumed.
inline void switch_context(Context& from, Context& to, bool last) {
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#else
  (void)last;
#endif
#ifdef SHIM_ASSEMBLY
  blip_shim_switch(&from.stack, to.stack);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef SHIM_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// A copy that `copy_async` has started. A source of null stands for zeros.
struct Copy {
  void* to;
  const void* from;
};

// What a lane brings to an operation of its warp, and what it gets.
struct Slot {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
  const void* row;
};

struct Warp {
  uint32_t generation = 0;
  uint32_t arrived = 0;
  Operation operation = SHUFFLE;
  // Operations alternate between two sets: a lane may bring its values to the next operation while others still read
  // the results of this one.
  Slot slots[2][32];
};

struct Fiber {
  Context context;
  bool finished = false;
  // The fiber can run once this counter differs from `seen`.
  const uint32_t* waits_for = nullptr;
  uint32_t seen = 0;
  Operation operation = BLOCK_BARRIER;
  std::vector<Copy> copies;
  size_t shared_bytes = 0;
};

struct Kernel {
  const char* name;
  unsigned threads;
  // For each parameter: 'p' for a pointer, 'i' for an int, 'f' for a float.
  std::string parameters;
  void (*call)(void (*)(), const uint64_t*);
  void (*function)();
};

inline std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

// One launch. `current` and `block` are those of the running fiber.
struct Launch {
  const Kernel* kernel = nullptr;
  const uint64_t* arguments = nullptr;
  Order order = FORWARD;
  uint64_t random = 0;
  int threads = 0;
  int current = 0;
  int block[3] = {0, 0, 0};
  uint32_t barrier_generation = 0;
  uint32_t barrier_arrived = 0;
  std::string error;
  Context scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> sequence;
  std::unique_ptr<char[]> stacks;
  size_t stack_count = 0;
  alignas(256) char shared[SHARED_ARENA];

  uint64_t next_random() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return random;
  }
};

// Fibers never move to another thread, so each thread of the CPU runs its own launch.
#if defined(__ELF__)
// Faster than the default model of a shared library, which calls a function for each access.
#define SHIM_THREAD_LOCAL thread_local __attribute__((tls_model("initial-exec")))
#else
#define SHIM_THREAD_LOCAL thread_local
#endif
static SHIM_THREAD_LOCAL Launch* running_launch = nullptr;

inline Launch* running() { return running_launch; }

inline Fiber& this_fiber() { return running()->fibers[static_cast<size_t>(running()->current)]; }
inline Warp& this_warp() { return running()->warps[static_cast<size_t>(running()->current / 32)]; }

inline void suspend() {
  Launch& launch = *running();
  switch_context(this_fiber().context, launch.scheduler, false);
}

// Ends the launch with an error. The fiber is never resumed.
inline void fail(std::string message) {
  Launch& launch = *running();
  if (launch.error.empty()) launch.error = std::move(message);
  for (;;) suspend();
}

inline void wait_for(const uint32_t& counter, Operation operation) {
  Fiber& fiber = this_fiber();
  fiber.waits_for = &counter;
  fiber.seen = counter;
  fiber.operation = operation;
  suspend();
}

// Waits for all lanes of the warp. The last one to arrive calls `compute` with the slots of all.
template <typename Compute>
Slot& warp_operation(Operation operation, Slot& own, Compute compute) {
  Warp& warp = this_warp();
  if (warp.arrived == 0) {
    warp.operation = operation;
  } else if (warp.operation != operation) {
    fail(std::string("the lanes of a warp wait at different operations: ") + name_of(warp.operation) + " and " +
         name_of(operation));
  }
  if (++warp.arrived == 32) {
    compute(warp.slots[warp.generation % 2]);
    warp.arrived = 0;
    warp.generation++;
  } else {
    wait_for(warp.generation, operation);
  }
  return own;
}

inline Slot& own_slot() {
  Warp& warp = this_warp();
  return warp.slots[warp.generation % 2][running()->current % 32];
}

inline uint32_t shuffle_bits(uint32_t bits, int mask) {
  Slot& own = own_slot();
  own.a[0] = bits;
  warp_operation(SHUFFLE, own, [](Slot*) {});
  const int lane = running()->current % 32;
  return (&own - lane)[lane ^ mask].a[0];
}

// Shared memory is handed out in the order in which the kernel declares its objects, the same in each thread.
inline void* shared_object(size_t bytes) {
  Launch& launch = *running();
  Fiber& fiber = this_fiber();
  const size_t at = fiber.shared_bytes;
  fiber.shared_bytes += (bytes + 15) / 16 * 16 + SHARED_GAP;
  if (fiber.shared_bytes > SHARED_ARENA || bytes > SHARED_LIMIT) fail("more than 48 KiB of shared memory");
#ifdef SHIM_ASAN
  __asan_unpoison_memory_region(launch.shared + at, bytes);
#endif
  return launch.shared + at;
}

// Ends the launch with an error unless a vector access is aligned as the GPU needs it.
inline void require_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes is not aligned");
  }
}

inline void complete(const Copy& copy) {
  if (copy.from) {
    memcpy(copy.to, copy.from, 16);
  } else {
    memset(copy.to, 0, 16);
  }
}

inline void run_fiber() {
#ifdef SHIM_ASAN
  Launch& entered = *running();
  __sanitizer_finish_switch_fiber(nullptr, &entered.scheduler.bottom, &entered.scheduler.size);
#endif
  Launch& launch = *running();
  launch.kernel->call(launch.kernel->function, launch.arguments);
  Fiber& fiber = this_fiber();
  fiber.finished = true;
  switch_context(fiber.context, launch.scheduler, true);
  abort();
}

inline void prepare(Launch& launch, int index) {
  Fiber& fiber = launch.fibers[static_cast<size_t>(index)];
  fiber.finished = false;
  fiber.waits_for = nullptr;
  fiber.copies.clear();
  fiber.shared_bytes = 0;
  char* bottom = launch.stacks.get() + static_cast<size_t>(index) * STACK_BYTES;
#ifdef SHIM_ASAN
  fiber.context.fake_stack = nullptr;
  fiber.context.bottom = bottom;
  fiber.context.size = STACK_BYTES;
  __asan_unpoison_memory_region(bottom, STACK_BYTES);
#endif
#ifdef SHIM_ASSEMBLY
  // Different offsets: the stacks would otherwise compete for the same lines of the L1 cache.
  const uintptr_t end = reinterpret_cast<uintptr_t>(bottom) + STACK_BYTES - static_cast<size_t>(index % 16) * 1088;
  uintptr_t* top = reinterpret_cast<uintptr_t*>(end / 64 * 64 - 256);
  memset(top, 0, 256);
#if defined(__x86_64__)
  // Six registers, the address of the function, and a stack that is aligned as after a call.
  top[6] = reinterpret_cast<uintptr_t>(&run_fiber);
#else
  top[11] = reinterpret_cast<uintptr_t>(&run_fiber);
#endif
  fiber.context.stack = top;
#else
  getcontext(&fiber.context.context);
  fiber.context.context.uc_stack.ss_sp = bottom;
  fiber.context.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.context.uc_link = nullptr;
  makecontext(&fiber.context.context, run_fiber, 0);
#endif
}

inline std::string describe_deadlock(const Launch& launch) {
  size_t finished = 0, at_barrier = 0, in_warp = 0;
  for (int i = 0; i < launch.threads; i++) {
    const Fiber& fiber = launch.fibers[static_cast<size_t>(i)];
    if (fiber.finished) {
      finished++;
    } else if (fiber.operation == BLOCK_BARRIER) {
      at_barrier++;
    } else {
      in_warp++;
    }
  }
  return "deadlock: " + std::to_string(finished) + " threads have finished, " + std::to_string(at_barrier) +
         " wait at a block barrier, " + std::to_string(in_warp) + " at an operation of their warp";
}

// Runs each fiber of a part of the sequence once, if it can run. Returns whether one could. Counts `left` down for each
// fiber that finishes.
inline bool run_turn(Launch& launch, size_t first, size_t end, int& left) {
  bool progress = false;
  for (size_t i = first; i < end; i++) {
    Fiber& fiber = launch.fibers[static_cast<size_t>(launch.sequence[i])];
    if (fiber.finished || (fiber.waits_for && *fiber.waits_for == fiber.seen)) continue;
    progress = true;
    launch.current = launch.sequence[i];
    switch_context(launch.scheduler, fiber.context, false);
    if (!launch.error.empty()) return false;
    if (fiber.finished) left--;
  }
  return progress;
}

// Runs one block. Returns whether it came to its end.
inline bool run_block(Launch& launch) {
#ifdef SHIM_ASAN
  __asan_unpoison_memory_region(launch.shared, SHARED_ARENA);
#endif
  // NaN in each format.
  memset(launch.shared, 0xff, SHARED_ARENA);
#ifdef SHIM_ASAN
  __asan_poison_memory_region(launch.shared, SHARED_ARENA);
#endif
  launch.barrier_arrived = 0;
  for (Warp& warp : launch.warps) warp.arrived = 0;
  for (int i = 0; i < launch.threads; i++) prepare(launch, i);
  launch.sequence.resize(static_cast<size_t>(launch.threads));
  for (int i = 0; i < launch.threads; i++) {
    launch.sequence[static_cast<size_t>(i)] = launch.order == BACKWARD ? launch.threads - 1 - i : i;
  }
  if (launch.order == SHUFFLED) {
    for (size_t i = launch.sequence.size(); i > 1; i--) {
      std::swap(launch.sequence[i - 1], launch.sequence[launch.next_random() % i]);
    }
  }
  // A warp runs until all its threads wait for others, so that it is far ahead of the other warps where a barrier is
  // missing. In the shuffled order all threads take turns.
  const size_t together = launch.order == SHUFFLED ? launch.sequence.size() : 32;
  int left = launch.threads;
  while (left > 0) {
    bool progress = false;
    for (size_t first = 0; first < launch.sequence.size(); first += together) {
      while (run_turn(launch, first, first + together, left)) progress = true;
      if (!launch.error.empty()) return false;
    }
    if (!progress) {
      launch.error = describe_deadlock(launch);
      return false;
    }
  }
  return true;
}

inline void run_grid(Launch& launch, const uint32_t* grid) {
  const uint64_t blocks = uint64_t{grid[0]} * grid[1] * grid[2];
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t block = launch.order == BACKWARD ? blocks - 1 - i : i;
    launch.block[0] = static_cast<int>(block % grid[0]);
    launch.block[1] = static_cast<int>(block / grid[0] % grid[1]);
    launch.block[2] = static_cast<int>(block / grid[0] / grid[1]);
    if (!run_block(launch)) return;
  }
}

template <typename P>
P argument(uint64_t bits) {
  if constexpr (std::is_pointer_v<P>) {
    return reinterpret_cast<P>(static_cast<uintptr_t>(bits));
  } else if constexpr (std::is_same_v<P, float>) {
    const uint32_t low = static_cast<uint32_t>(bits);
    float value;
    memcpy(&value, &low, 4);
    return value;
  } else {
    static_assert(std::is_same_v<P, int>, "kernels have parameters of these types only");
    return static_cast<int>(static_cast<uint32_t>(bits));
  }
}

template <typename P>
constexpr char kind() {
  return std::is_pointer_v<P> ? 'p' : std::is_same_v<P, float> ? 'f' : 'i';
}

template <typename... P, size_t... I>
void call_with(void (*function)(P...), const uint64_t* arguments, std::index_sequence<I...>) {
  function(argument<P>(arguments[I])...);
}

template <typename... P>
bool enlist(const char* name, unsigned threads, void (*function)(P...)) {
  const auto call = [](void (*erased)(), const uint64_t* arguments) {
    call_with(reinterpret_cast<void (*)(P...)>(erased), arguments, std::index_sequence_for<P...>());
  };
  kernels().push_back(
      Kernel{name, threads, std::string{kind<P>()...}, call, reinterpret_cast<void (*)()>(function)});
  return true;
}

// Returns an error message, empty if the launch succeeded.
inline std::string launch_kernel(const char* name, const uint32_t* grid, uint32_t threads, const uint64_t* arguments,
                                 const char* kinds, Order order, uint64_t seed) {
  const Kernel* kernel = nullptr;
  for (const Kernel& candidate : kernels()) {
    if (strcmp(candidate.name, name) == 0) kernel = &candidate;
  }
  if (!kernel) return std::string("no kernel has the name ") + name;
  if (kernel->parameters != kinds) {
    return std::string(name) + " has parameters of the kinds " + kernel->parameters + ", not " + kinds;
  }
  if (kernel->threads != threads) {
    return std::string(name) + " is compiled for " + std::to_string(kernel->threads) + " threads a block, not " +
           std::to_string(threads);
  }
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) {
    return std::string(name) + ": the grid is empty, or larger than 65535 along y or z";
  }
  // Kept, because allocating and touching the stacks takes longer than a small launch.
  static thread_local std::unique_ptr<Launch> kept;
  if (!kept) kept = std::make_unique<Launch>();
  Launch& launch = *kept;
  launch.kernel = kernel;
  launch.arguments = arguments;
  launch.order = order;
  launch.random = seed * 2 + 0x9e3779b97f4a7c15u;
  launch.threads = static_cast<int>(threads);
  launch.error.clear();
  if (launch.stack_count < threads) {
    launch.stacks.reset(new char[threads * STACK_BYTES]);
    launch.stack_count = threads;
    launch.fibers.resize(threads);
    launch.warps.resize(threads / 32);
  }
  running_launch = &launch;
  run_grid(launch, grid);
  running_launch = nullptr;
  return launch.error.empty() ? std::string() : std::string(name) + ": " + launch.error;
}

// Memory of the module, one copy for each thread of the CPU. It is allocated when a kernel first uses it.
template <typename T, size_t COUNT, typename Tag>
struct Scratch {
  operator T*() const {
    static thread_local std::unique_ptr<T, void (*)(void*)> memory(static_cast<T*>(calloc(COUNT, sizeof(T))), free);
    return memory.get();
  }
};

inline uint16_t f16_from_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  // From 65520 on, values round to infinity.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  uint32_t result;
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded to the nearest, ties to even.
    float scaled;
    memcpy(&scaled, &magnitude, 4);
    scaled += 0.5f;
    memcpy(&result, &scaled, 4);
    result -= 0x3f000000;
  } else {
    const uint32_t odd = magnitude >> 13 & 1;
    result = (magnitude - 0x38000000 + 0xfff + odd) >> 13;
  }
  return static_cast<uint16_t>(sign | result);
}

inline float f16_to_float(uint16_t bits) {
  const uint32_t shifted = (bits & 0x7fffu) << 13;
  float value;
  memcpy(&value, &shifted, 4);
  // The exponents of the two formats differ by 112.
  value *= 0x1p112f;
  uint32_t result;
  memcpy(&result, &value, 4);
  if (value >= 65536.0f) result |= 0x7f800000;
  result |= (bits & 0x8000u) << 16;
  memcpy(&value, &result, 4);
  return value;
}

inline uint16_t bf16_from_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float bf16_to_float(uint16_t bits) {
  const uint32_t shifted = uint32_t{bits} << 16;
  float value;
  memcpy(&value, &shifted, 4);
  return value;
}

// The products of one matrix instruction, added up with k ascending.
template <float (*TO_FLOAT)(uint16_t)>
void multiply(Slot* slots) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const Slot& slot = slots[lane];
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 2; i++) {
      const int shift = i * 16;
      for (int j = 0; j < 4; j++) {
        a[group + j % 2 * 8][pair + j / 2 * 8 + i] = TO_FLOAT(static_cast<uint16_t>(slot.a[j] >> shift));
      }
      for (int j = 0; j < 2; j++) b[pair + j * 8 + i][group] = TO_FLOAT(static_cast<uint16_t>(slot.b[j] >> shift));
    }
    for (int j = 0; j < 4; j++) d[group + j / 2 * 8][pair + j % 2] = slot.d[j];
  }
  for (int row = 0; row < 16; row++) {
    for (int k = 0; k < 16; k++) {
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    for (int j = 0; j < 4; j++) slots[lane].d[j] = d[lane / 4 + j / 2 * 8][lane % 4 * 2 + j % 2];
  }
}

inline void matrix_instruction(Operation operation, void (*compute)(Slot*), float (&d)[4], const unsigned (&a)[4],
                               const unsigned (&b)[2]) {
  Slot& own = own_slot();
  memcpy(own.a, a, sizeof a);
  memcpy(own.b, b, sizeof b);
  memcpy(own.d, d, sizeof d);
  warp_operation(operation, own, compute);
  memcpy(d, own.d, sizeof d);
}

inline void read_matrices(Operation operation, unsigned (&matrices)[4], const void* row, bool transposed) {
  require_alignment(row, 16);
  Slot& own = own_slot();
  own.row = row;
  warp_operation(operation, own, [](Slot*) {});
  const int lane = running()->current % 32;
  const Slot* all = &own - lane;
  for (int i = 0; i < 4; i++) {
    uint16_t values[2];
    for (int j = 0; j < 2; j++) {
      const int line = transposed ? lane % 4 * 2 + j : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + j;
      memcpy(&values[j], static_cast<const char*>(all[i * 8 + line].row) + column * 2, 2);
    }
    matrices[i] = values[0] | unsigned{values[1]} << 16;
  }
}

}  // namespace shim

#define DEVICE static inline
#define DEVICE_CALLED static
#define KERNEL(threads, name, ...)                                            \
  static void name(__VA_ARGS__);                                              \
  static const bool enlisted_##name = shim::enlist(#name, threads, &name);    \
  static void name(__VA_ARGS__)
#define KERNEL_WITH_ROOM KERNEL
#define SHARED(type, name) type& name = *static_cast<type*>(shim::shared_object(sizeof(type)))
#define SCRATCH(type, name, count) \
  struct Tag_##name {};            \
  static const shim::Scratch<type, (count), Tag_##name> name
#define RESTRICT __restrict__
#define UNROLL
#define UNROLL_BY(count)

#define THREAD (shim::running()->current)
#define BLOCK_X (shim::running()->block[0])
#define BLOCK_Y (shim::running()->block[1])
#define BLOCK_Z (shim::running()->block[2])

struct alignas(16) Words {
  unsigned x, y, z, w;
};

DEVICE void block_barrier() {
  shim::Launch& launch = *shim::running();
  if (++launch.barrier_arrived == static_cast<uint32_t>(launch.threads)) {
    launch.barrier_arrived = 0;
    launch.barrier_generation++;
  } else {
    shim::wait_for(launch.barrier_generation, shim::BLOCK_BARRIER);
  }
}

DEVICE float float_of_bits(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

DEVICE unsigned bits_of_float(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

DEVICE float shuffle_xor(float x, int mask) { return float_of_bits(shim::shuffle_bits(bits_of_float(x), mask)); }
DEVICE int shuffle_xor(int x, int mask) {
  return static_cast<int>(shim::shuffle_bits(static_cast<unsigned>(x), mask));
}

DEVICE unsigned short round_to_bf16(float x) { return shim::bf16_from_float(x); }
DEVICE unsigned short round_to_f16(float x) { return shim::f16_from_float(x); }
DEVICE float widen_f16(unsigned short bits) { return shim::f16_to_float(bits); }
DEVICE unsigned round_to_bf16_pair(float low, float high) {
  return shim::bf16_from_float(low) | unsigned{shim::bf16_from_float(high)} << 16;
}
DEVICE unsigned round_to_f16_pair(float low, float high) {
  return shim::f16_from_float(low) | unsigned{shim::f16_from_float(high)} << 16;
}
DEVICE float exp2_approximate(float x) { return exp2f(x); }

DEVICE Words load_words(const void* from) {
  shim::require_alignment(from, 16);
  Words words;
  memcpy(&words, from, 16);
  return words;
}
DEVICE Words load_words_once(const void* from) { return load_words(from); }
DEVICE void store_words(void* to, Words words) {
  shim::require_alignment(to, 16);
  memcpy(to, &words, 16);
}
DEVICE void store_word(void* to, unsigned word) {
  shim::require_alignment(to, 4);
  memcpy(to, &word, 4);
}

DEVICE void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  shim::matrix_instruction(shim::MMA_BF16, shim::multiply<shim::bf16_to_float>, d, a, b);
}
DEVICE void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  shim::matrix_instruction(shim::MMA_F16, shim::multiply<shim::f16_to_float>, d, a, b);
}
DEVICE void load_matrices(unsigned (&matrices)[4], const void* row) {
  shim::read_matrices(shim::LOAD_MATRICES, matrices, row, false);
}
DEVICE void load_matrices_transposed(unsigned (&matrices)[4], const void* row) {
  shim::read_matrices(shim::LOAD_MATRICES_TRANSPOSED, matrices, row, true);
}

// In one order the bytes arrive at once, in the others when the thread waits: a kernel must be right with both.
DEVICE void copy_async(void* to, const void* from, bool present) {
  shim::require_alignment(to, 16);
  shim::require_alignment(from, 16);
  const shim::Copy copy = {to, present ? from : nullptr};
  if (shim::running()->order == shim::BACKWARD) {
    shim::complete(copy);
  } else {
    memset(to, 0xff, 16);
    shim::this_fiber().copies.push_back(copy);
  }
}
DEVICE void wait_for_copies() {
  for (const shim::Copy& copy : shim::this_fiber().copies) shim::complete(copy);
  shim::this_fiber().copies.clear();
}

// The functions below are those that tests call. Everything else is hidden, because a process may load two libraries of
// the same sources.
#define EXPORT extern "C" __attribute__((visibility("default")))

static void copy_message(const std::string& message, char* to, size_t bytes) {
  const size_t length = message.size() < bytes ? message.size() : bytes - 1;
  memcpy(to, message.data(), length);
  to[length] = 0;
}

// Returns 0, or 1 with a message. `kinds` is described at `shim::Kernel::parameters`.
EXPORT int blip_shim_launch(const char* name, const uint32_t* grid, uint32_t threads, const uint64_t* arguments,
                                const char* kinds, uint32_t order, uint64_t seed, char* message,
                                size_t message_bytes) {
  const std::string error =
      shim::launch_kernel(name, grid, threads, arguments, kinds, static_cast<shim::Order>(order), seed);
  copy_message(error, message, message_bytes);
  return error.empty() ? 0 : 1;
}

// Returns the names of all kernels, one per line.
EXPORT void blip_shim_kernels(char* names, size_t bytes) {
  std::string all;
  for (const shim::Kernel& kernel : shim::kernels()) all += std::string(kernel.name) + "\n";
  copy_message(all, names, bytes);
}

static float read_value(const void* values, size_t index, uint32_t format) {
  if (format == 0) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return format == 1 ? shim::bf16_to_float(bits) : shim::f16_to_float(bits);
}

// Computes a matrix product as `Product` in device.rs describes it, with k ascending. Formats: 0 f32, 1 bf16, 2 f16.
EXPORT void blip_shim_product(uint32_t format, uint32_t out_format, size_t m, size_t n, size_t k, const void* x,
                                  const void* w, const void* bias, const void* residual, void* out) {
  // The columns of one k lie side by side, so that the compiler can use vectors.
  std::vector<float> weights(n * k), sums(n);
  for (size_t j = 0; j < n; j++) {
    for (size_t i = 0; i < k; i++) weights[i * n + j] = read_value(w, j * k + i, format);
  }
  for (size_t row = 0; row < m; row++) {
    for (float& sum : sums) sum = 0.0f;
    for (size_t i = 0; i < k; i++) {
      const float value = read_value(x, row * k + i, format);
      const float* line = weights.data() + i * n;
      for (size_t j = 0; j < n; j++) sums[j] += value * line[j];
    }
    for (size_t j = 0; j < n; j++) {
      float sum = sums[j];
      if (bias) sum += read_value(bias, j, out_format);
      if (residual) sum += read_value(residual, row * n + j, out_format);
      if (out_format == 0) {
        static_cast<float*>(out)[row * n + j] = sum;
      } else {
        const uint16_t rounded = out_format == 1 ? shim::bf16_from_float(sum) : shim::f16_from_float(sum);
        static_cast<uint16_t*>(out)[row * n + j] = rounded;
      }
    }
  }
}
