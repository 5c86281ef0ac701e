// A block of CUDA threads on one thread of a processor: what decoder.cu needs of CUDA, and who runs when.
//
// Each thread of a block is a fibre that runs until it meets others: its warp in a shuffle, its block in a barrier. In
// which order they run, and blocks after one another, is drawn anew each time, so that what depends on it is seen.
// Threads that do not meet where they should end the process with a word on it.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <immintrin.h>
#include <ucontext.h>
#include <vector>

struct float4 { float x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct dim3 { unsigned x, y, z; };

enum Waits { READY, FOR_WARP, FOR_BLOCK, ENDED };
struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  unsigned shuffles;
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;
static std::vector<Fibre> fibres;
static std::vector<unsigned long long> slots[2];  // by turn, of each thread
static ucontext_t home;
static unsigned current, drawn = 1;
static std::function<void()> body;

static unsigned draw() { return drawn = drawn * 1664525u + 1013904223u, drawn >> 8; }

static void wait(Waits what) {
  fibres[current].waits = what;
  swapcontext(&fibres[current].context, &home);
}

static void __syncthreads() { wait(FOR_BLOCK); }

template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int step) {
  if (mask != 0xffffffffu) abort();
  const unsigned mine = current, turn = fibres[mine].shuffles++ % 2;
  memcpy(&slots[turn][mine], &value, sizeof value);
  wait(FOR_WARP);
  T other;
  memcpy(&other, &slots[turn][mine ^ step], sizeof other);
  return other;
}

static void enter() {
  body();
  fibres[current].waits = ENDED;
}

static void refuse(const char* what) {
  fprintf(stderr, "block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
  fflush(stderr);
  abort();
}

static void run_block(unsigned threads) {
  fibres.resize(threads);
  for (auto& one : slots) one.resize(threads);
  for (unsigned t = 0; t < threads; t++) {
    Fibre& one = fibres[t];
    one.stack.resize(1 << 16);
    one.waits = READY;
    one.shuffles = 0;
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = one.stack.data();
    one.context.uc_stack.ss_size = one.stack.size();
    one.context.uc_link = &home;
    makecontext(&one.context, enter, 0);
  }
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; t++) order[t] = t;
  for (unsigned t = threads; t > 1; t--) std::swap(order[t - 1], order[draw() % t]);
  for (;;) {
    bool ran = false;
    for (unsigned t : order) {
      if (fibres[t].waits != READY) continue;
      current = t;
      threadIdx = {t, 0, 0};
      swapcontext(&home, &fibres[t].context);
      ran = true;
    }
    unsigned ended = 0, at_barrier = 0;
    for (auto& one : fibres) ended += one.waits == ENDED, at_barrier += one.waits == FOR_BLOCK;
    if (ended == threads) return;
    bool met = false;
    for (unsigned warp = 0; warp < threads; warp += 32) {
      bool all = true;
      for (unsigned t = warp; t < warp + 32; t++)
        all &= fibres[t].waits == FOR_WARP && fibres[t].shuffles == fibres[warp].shuffles;
      for (unsigned t = warp; all && t < warp + 32; t++) fibres[t].waits = READY;
      met |= all;
    }
    if (!met && at_barrier == threads) {
      for (auto& one : fibres) one.waits = READY;
      met = true;
    }
    if (!ran && !met) refuse("threads wait for others that do not come");
    if (!met && at_barrier && at_barrier + ended == threads) refuse("threads ended before a barrier");
  }
}

static void run_grid(dim3 grid, unsigned threads, std::function<void()> each) {
  body = each;
  gridDim = grid;
  blockDim = {threads, 1, 1};
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) blocks.push_back({x, y, z});
  for (unsigned n = blocks.size(); n > 1; n--) std::swap(blocks[n - 1], blocks[draw() % n]);
  for (auto& block : blocks) {
    blockIdx = block;
    run_block(threads);
  }
}

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

template <class T>
static T __ldg(const T* from) { return *from; }
#define __expf expf
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
