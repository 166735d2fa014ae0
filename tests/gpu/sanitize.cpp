// Runs every GPU kernel over edge shapes on the CPU, for AddressSanitizer and UndefinedBehaviorSanitizer: see
// sanitize.sh, which puts the kernels in front of this file. All buffers are heap blocks of exactly the size that the
// kernels may use. Results are not compared here; src/gpu/tests does that.

#include <cstdio>
#include <deque>
#include <initializer_list>

namespace {

// The formats, with the codes that host.hpp knows them by.
enum FormatCode { F32, BF16, F16_BITS };
const char* const SUFFIXES[] = {"f32", "bf16", "f16"};
size_t size_of(FormatCode format) { return format == F32 ? 4 : 2; }

int launches = 0;
shim::Order order = shim::FORWARD;

// Blocks that live until the next case.
std::deque<std::vector<char>> blocks;

void* block(size_t bytes) {
  // Exact: the vector's capacity is its size. At least one byte, so that the pointer is none of another block.
  blocks.emplace_back(bytes ? bytes : 1);
  return blocks.back().data();
}

float next_value() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

void* values(FormatCode format, size_t count) {
  void* to = block(count * size_of(format));
  for (size_t i = 0; i < count; i++) {
    const float value = next_value();
    if (format == F32) {
      static_cast<float*>(to)[i] = value;
    } else {
      static_cast<uint16_t*>(to)[i] = format == BF16 ? shim::bf16_from_float(value) : shim::f16_from_float(value);
    }
  }
  return to;
}

void* integers(std::initializer_list<int> of) {
  void* to = block(of.size() * sizeof(int));
  memcpy(to, of.begin(), of.size() * sizeof(int));
  return to;
}

struct Parameter {
  uint64_t bits;
  char kind;
  Parameter(const void* pointer) : bits(reinterpret_cast<uintptr_t>(pointer)), kind('p') {}
  Parameter(int value) : bits(static_cast<uint32_t>(value)), kind('i') {}
  Parameter(float value) : bits(0), kind('f') { memcpy(&bits, &value, 4); }
};

void launch(const std::string& name, std::initializer_list<int> grid, unsigned threads,
            std::initializer_list<Parameter> parameters) {
  uint32_t sizes[3] = {1, 1, 1};
  size_t dimension = 0;
  for (const int size : grid) sizes[dimension++] = static_cast<uint32_t>(size);
  if (sizes[0] == 0 || sizes[1] == 0 || sizes[2] == 0) return;
  std::vector<uint64_t> arguments;
  std::string kinds;
  for (const Parameter& parameter : parameters) arguments.push_back(parameter.bits), kinds += parameter.kind;
  char message[512];
  launches++;
  if (blip_shim_launch(name.c_str(), sizes, threads, arguments.data(), kinds.c_str(), order, 3, message,
                       sizeof message) != 0) {
    fprintf(stderr, "%s\n", message);
    exit(1);
  }
}

std::string in_format(const char* name, FormatCode format) { return std::string(name) + "_" + SUFFIXES[format]; }

int up(int a, int b) { return (a + b - 1) / b; }

void rows(FormatCode format) {
  for (const int width : {1, 31, 256, 257}) {
    blocks.clear();
    const size_t count = static_cast<size_t>(width) * 2;
    launch(in_format("layer_norm", format), {2}, 256,
           {values(F32, count), values(F32, count / 2), values(F32, count / 2), values(F32, count),
            values(format, count), width, 1e-5f});
    launch("embed_patches", {6}, 256,
           {values(F32, count * 2), values(F32, count / 2), values(F32, count / 2 * 3), values(F32, count * 3), 3, width});
    launch("embed_tokens", {2}, 256,
           {values(F32, count * 2), values(F32, count), integers({3, 1, 0, 0}), values(F32, count), width});
    launch("gather", {2}, 256, {values(BF16, count), integers({1, 0}), values(BF16, count), width});
  }
  for (const int count : {1, 7, 8, 9, 2047, 2048, 2049}) {
    blocks.clear();
    const size_t size = static_cast<size_t>(count);
    for (int code = 0; code < 7; code++) {
      launch(in_format("activate", format), {up(count, 2048)}, 256, {values(format, size), count, code});
    }
    launch(in_format("narrow", format), {up(count, 2048)}, 256, {values(F32, size), values(format, size), count});
    launch(in_format("widen", format), {up(count, 2048)}, 256, {values(format, size), values(F32, size), count});
  }
  for (const int patch : {1, 3, 16}) {
    blocks.clear();
    const size_t pixels = static_cast<size_t>(patch * patch) * 6 * 3;
    launch(in_format("patchify", format), {6}, 256,
           {block(pixels), values(F32, 768), values(format, pixels), 2 * patch, 3 * patch, patch});
  }
}

void attention(FormatCode format) {
  for (const int head_width : {1, 8, 9, 16, 24, 64, 100, 128}) {
    for (const int length : {1, 16, 33, 63, 64, 65}) {
      for (const int causal : {0, 1}) {
        blocks.clear();
        int padded = 16;
        while (padded < head_width) padded *= 2;
        const int heads = 2, width = heads * head_width, queries = format == F32 && padded > 64 ? 32 : 64;
        const size_t count = static_cast<size_t>(length) * static_cast<size_t>(width);
        // The last sequence has more queries than keys, and the one before it no keys.
        void* sequences = integers({0, length, 0, length, 0, 1, 0, 0, 0, length, 0, up(length, 2)});
        launch(in_format(("attention_d" + std::to_string(padded)).c_str(), format), {up(length, queries), heads, 3}, 128,
               {values(format, count), values(format, count), values(format, count), values(format, count), width, width,
                sequences, heads, head_width, 0.3f, causal});
      }
    }
    blocks.clear();
    const size_t width = static_cast<size_t>(head_width) * 2;
    launch(in_format("attention_weights", format), {2}, 256,
           {values(F32, 2 * width), values(format, 300 * width), values(F32, 600), 2 * head_width, 300, 2, head_width,
            0.3f});
  }
}

void paged(FormatCode format) {
  for (const int head_width : {1, 8, 9, 16, 64, 100, 128}) {
    for (const int cached : {0, 15, 16, 40}) {
      blocks.clear();
      // Two layers; a padding sequence, two new rows, and one row whose table follows.
      const int heads = 2, width = heads * head_width, entries = up(cached + 2, 16);
      const size_t page = static_cast<size_t>(width) * 16 * 2 * 2;
      const size_t elements = page * static_cast<size_t>(entries + 1);
      char* pages = static_cast<char*>(values(format, elements)) + page / 2 * size_of(format);
      void* sequences = integers({0, 0, 0, 0, 0, 2, cached, 0, 2, 1, 0, entries});
      std::vector<int> numbers;
      for (int i = entries; i >= 0; i--) numbers.push_back(i);
      void* tables = block(numbers.size() * sizeof(int));
      memcpy(tables, numbers.data(), numbers.size() * sizeof(int));
      const size_t row = static_cast<size_t>(width);
      void* qkv = values(F32, 9 * row);
      launch(in_format("append_kv", format), {2, 3}, 256, {qkv, pages, 4 * width, sequences, tables, width});
      launch(in_format("paged_attention", format), {heads, 2, 3}, 128,
             {qkv, values(format, 3 * row), pages, 4 * width, sequences, tables, heads, head_width, 0.3f});
    }
  }
}

void folded(FormatCode format) {
  for (const int width : {1, 8, 15, 127, 128, 136, 1023, 1024}) {
    for (const int heads : {1, 17}) {
      blocks.clear();
      const int head_width = 3, rows = 4;
      const size_t column = static_cast<size_t>(width), all = static_cast<size_t>(heads * rows);
      void* query = values(format, all * column);
      launch(in_format("fold_query", format), {up(width, 128), heads, 1}, 128,
             {values(F32, all * 3), values(format, all / 4 * 3 * column), query, rows, heads, head_width, width, 0.5f});
      uint64_t slots[8];
      size_t at = 0;
      for (const size_t tokens : {size_t{0}, size_t{1}, size_t{17}, size_t{70}}) {
        slots[at++] = reinterpret_cast<uintptr_t>(values(format, tokens * column));
        slots[at++] = tokens;
      }
      void* states = block(sizeof slots);
      memcpy(states, slots, sizeof slots);
      void* context = values(format, all * column);
      launch(in_format("folded_attention", format), {rows, up(heads, 16), 4}, 256, {query, states, heads, width});
      launch(in_format("folded_merge", format), {rows, heads}, 256, {states, context, heads, width});
      launch(in_format("project_values", format), {heads * up(head_width, 4), 1}, 128,
             {context, values(format, all / 4 * 3 * column), values(F32, all / 4 * 3), values(format, all * 3), rows,
              heads, head_width, width});
    }
  }
}

void products(FormatCode format) {
  for (const int rows : {1, 8, 9, 16, 17, 32, 33, 64}) {
    for (const int k : {1, 7, 8, 31, 32, 264, 300}) {
      for (const int n : {1, 15, 16, 17}) {
        blocks.clear();
        const char* name = format == F32 ? "few_row_product"
                           : rows <= 8   ? "few_row_product_r8"
                           : rows <= 16  ? "few_row_product_r16"
                           : rows <= 32  ? "few_row_product_r32"
                                         : "few_row_product_r64";
        const size_t m = static_cast<size_t>(rows), columns = static_cast<size_t>(n), length = static_cast<size_t>(k);
        launch(in_format(name, format), {up(n, 16)}, 256,
               {values(format, m * length), values(format, columns * length), values(F32, columns),
                values(F32, m * columns), values(F32, m * columns), values(format, m * columns), rows, n, k, 1});
        blip_shim_product(format, format, m, columns, length, values(format, m * length),
                          values(format, columns * length), nullptr, nullptr, values(format, m * columns));
      }
    }
  }
}

void scores() {
  for (const int n : {1, 255, 256, 257, 3000}) {
    blocks.clear();
    const size_t count = static_cast<size_t>(n) * 2;
    launch("greedy", {2}, 256, {values(F32, count), block(32), n});
    launch("top_k", {2}, 256, {values(F32, count), block(24), block(24), n, 3});
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "overrun") == 0) {
    launch("defect_overrun", {1}, 32, {block(32), 8});
  } else if (argc > 1 && strcmp(argv[1], "shared") == 0) {
    launch("defect_shared_overrun", {1}, 32, {block(128)});
  } else {
    for (const shim::Order each : {shim::FORWARD, shim::BACKWARD, shim::SHUFFLED}) {
      order = each;
      for (const FormatCode format : {F32, BF16, F16_BITS}) {
        rows(format);
        attention(format);
        paged(format);
        folded(format);
        products(format);
      }
      scores();
    }
  }
  printf("%d launches\n", launches);
}
