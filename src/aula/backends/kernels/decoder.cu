// One step of a pre-norm transformer decoder, for a GPU: products, attention over caches, the likeliest token.
//
// A program (backends/kernel_program.py) says which of these it uses, and of what size, by the macros at the end: every
// size is known when this is compiled. Nothing is included, so that NVRTC needs no header.
//
// Words: a line is one token of one row; ROWS utterances with COUNT tokens each are ROWS * COUNT lines, line by line
// within a row. Activations between kernels are fp16, the residual and all sums fp32. Matrices are [out, in], as
// checkpoints have them, with the norm's scale and shift before them already multiplied in.
//
// Where few lines are read (up to four), a product is a walk through the matrix: each warp reads some of its rows, before
// it waits for the kernel before it (programmatic dependent launch, compute capability 9.0), and holds them in registers;
// it computes the norm by itself. Where there are more, products run on tensor cores (mma.sync), and the norm has a
// kernel of its own, which also sums the pieces of the product before it: no sum depends on an order of arrival.

typedef unsigned short half_t;  // the bits of an fp16 number
typedef unsigned int pair_t;    // two of them

struct Best {  // of a row's logits: the highest, the first that has it, and the sum of exp(logit - highest)
  float highest;
  int index;
  float sum;
};

#define DEVICE static __device__ __forceinline__
#define FULL 0xffffffffu
#define LOWEST (-3.0e38f)

DEVICE float low(pair_t two) {
  float value;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(value) : "r"(two));
  return value;
}

DEVICE float high(pair_t two) {
  float value;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(value) : "r"(two));
  return value;
}

DEVICE float widened(half_t one) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(one));
  return value;
}

DEVICE half_t narrowed(float value) {
  half_t one;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(one) : "f"(value));
  return one;
}

DEVICE pair_t paired(float first, float second) {
  return (pair_t)narrowed(first) | ((pair_t)narrowed(second) << 16);
}

// Gelu with the error function, as the models here are trained with.
DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// The kernel before is finished, and what it wrote is there.
DEVICE void wait_for_the_one_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may come to the processors that are free, and read what no kernel writes.
DEVICE void let_the_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

DEVICE float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(FULL, value, step);
  return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
  for (int step = 16; step; step >>= 1) value = fmaxf(value, __shfl_xor_sync(FULL, value, step));
  return value;
}

DEVICE Best better(Best a, Best b) {
  if (b.highest > a.highest || (b.highest == a.highest && b.index < a.index)) {
    Best swap = a;
    a = b;
    b = swap;
  }
  a.sum += b.sum * __expf(b.highest - a.highest);
  return a;
}

DEVICE Best from_lane(Best mine, int step) {
  Best other;
  other.highest = __shfl_xor_sync(FULL, mine.highest, step);
  other.index = __shfl_xor_sync(FULL, mine.index, step);
  other.sum = __shfl_xor_sync(FULL, mine.sum, step);
  return other;
}

// Where a new key or value goes: a row's cache of a layer is [2 * heads, slots, size], keys before values; the next row's
// lies APART such caches further: 1 where rows lie within layers, as many as there are layers where it is the other way.
template <int HEADS, int SIZE, int SLOTS, int COUNT, int APART>
DEVICE half_t* in_cache(half_t* cache, const int* position, int line, int column) {
  const int row = line / COUNT, slot = position[row] + line % COUNT;
  const long long head = (long long)row * APART * 2 * HEADS + column / SIZE;
  return slot < SLOTS ? cache + (head * SLOTS + slot) * SIZE + column % SIZE : nullptr;
}

// ------------------------------------------------------------------------------------------------ what comes first

// x, float [lines, hidden]: the token's vector and its place's.
template <int COUNT, int SLOTS, int HIDDEN>
DEVICE void embed(const int* text, const int* position, const half_t* tokens, const half_t* places, float* x) {
  wait_for_the_one_before();
  let_the_next_begin();
  const int line = blockIdx.x, row = line / COUNT;
  int slot = position[row] + line % COUNT;
  slot = slot < SLOTS ? slot : SLOTS - 1;
  const half_t* token = tokens + (long long)text[row * SLOTS + slot] * HIDDEN;
  const half_t* place = places + (long long)slot * HIDDEN;
  for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x) x[line * HIDDEN + i] = widened(token[i]) + widened(place[i]);
}

// ------------------------------------------------------------------------------------------- products of few lines

enum Then { TO_CACHE, ADD, GELU, KEEP, CHOOSE, ANSWER };

template <int VECTOR>
struct Vector;
template <>
struct Vector<8> {
  typedef uint4 type;
};
template <>
struct Vector<4> {
  typedef uint2 type;
};

struct Places {  // what only some products need
  half_t* cache;
  const int* position;
  const int* prompt;
  const float* rules;  // float [.., out]: what is added to logits; CHOOSE: at the start of a text, and within one
  Best* best;
  const int* rule;  // ANSWER: which of the rules, of each line
  float* logits;    // ANSWER: float [lines, out], with the first of the rules, which forbids nothing
};

// Each group of SPLIT warps makes COLUMNS outputs of every line. NORM: the lines are the float residual, else fp16.
template <int LINES, int OUT, int IN, int COLUMNS, int SPLIT, int WARPS, bool NORM, Then THEN, int HEADS, int SIZE,
          int SLOTS, int COUNT, int APART>
DEVICE void walk(const half_t* matrix, const float* bias, const void* given, void* made, Places places) {
  constexpr int SHARE = IN / SPLIT, VECTOR = SHARE % 256 == 0 ? 8 : 4, CHUNKS = SHARE / (32 * VECTOR);
  constexpr int GROUPS = WARPS / SPLIT, PAIRS = VECTOR / 2;
  static_assert(IN % SPLIT == 0 && SHARE % (32 * VECTOR) == 0 && WARPS % SPLIT == 0, "a warp reads whole chunks");
  static_assert(!NORM || SPLIT == 1, "a norm needs the whole line");
  typedef typename Vector<VECTOR>::type vector_t;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % SPLIT, group = warp / SPLIT;
  const int first = (blockIdx.x * GROUPS + group) * COLUMNS;
  // 1. Weights, which no kernel writes.
  vector_t weights[COLUMNS][CHUNKS];
  float shift[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    const int column = first + c < OUT ? first + c : OUT - 1;
    const half_t* from = matrix + (long long)column * IN + part * SHARE + lane * VECTOR;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) weights[c][k] = __ldg((const vector_t*)(from + k * 32 * VECTOR));
    shift[c] = bias ? __ldg(bias + column) : 0.0f;
  }
  let_the_next_begin();
  wait_for_the_one_before();
  __shared__ float pieces[SPLIT > 1 ? LINES : 1][SPLIT > 1 ? WARPS : 1][COLUMNS];
  constexpr bool HEAD = THEN == CHOOSE || THEN == ANSWER;
  __shared__ Best bests[HEAD ? LINES : 1][WARPS];
  // 2. Line by line.
#pragma unroll
  for (int line = 0; line < LINES; line++) {
    float x[CHUNKS * VECTOR];
    // Of a text only the last token's logits count.
    const int from = THEN == CHOOSE ? line * COUNT + COUNT - 1 : line;
    if (NORM) {
      const float* whole = (const float*)given + (long long)from * IN + lane * VECTOR;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++)
#pragma unroll
        for (int i = 0; i < VECTOR; i += 4) *(float4*)(x + k * VECTOR + i) = *(const float4*)(whole + k * 32 * VECTOR + i);
      float mean = 0.0f, spread = 0.0f;
#pragma unroll
      for (int i = 0; i < CHUNKS * VECTOR; i++) mean += x[i];
      mean = warp_sum(mean) / IN;
#pragma unroll
      for (int i = 0; i < CHUNKS * VECTOR; i++) {
        x[i] -= mean;
        spread += x[i] * x[i];
      }
      const float scale = rsqrtf(warp_sum(spread) / IN + 1e-5f);
#pragma unroll
      for (int i = 0; i < CHUNKS * VECTOR; i++) x[i] *= scale;
    } else {
      const half_t* whole = (const half_t*)given + (long long)from * IN + part * SHARE + lane * VECTOR;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++) {
        const vector_t packed = *(const vector_t*)(whole + k * 32 * VECTOR);
        const pair_t* two = (const pair_t*)&packed;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
          x[k * VECTOR + 2 * i] = low(two[i]);
          x[k * VECTOR + 2 * i + 1] = high(two[i]);
        }
      }
    }
    float sums[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < CHUNKS; k++) {
        const pair_t* two = (const pair_t*)&weights[c][k];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
          sum += low(two[i]) * x[k * VECTOR + 2 * i];
          sum += high(two[i]) * x[k * VECTOR + 2 * i + 1];
        }
      }
      sums[c] = warp_sum(sum);
    }
    // 3. What becomes of the sums.
    if (SPLIT > 1) {
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        if (lane == c) pieces[line][warp][c] = sums[c];
      continue;
    }
    if (THEN == CHOOSE) {
      const int row = line;
      const float* rules = places.rules + (places.position[row] + COUNT == places.prompt[row] ? 0 : OUT);
      Best best = {LOWEST, OUT, 0.0f};
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        if (first + c < OUT) best = better(best, Best{sums[c] + __ldg(rules + first + c), first + c, 1.0f});
      if (lane == 0) bests[line][warp] = best;
      continue;
    }
    if (THEN == ANSWER) {
      const float* rules = places.rules + (long long)places.rule[line] * OUT;
      float* logits = places.logits + (long long)line * OUT;
      Best best = {LOWEST, OUT, 0.0f};
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        if (first + c >= OUT) continue;
        best = better(best, Best{sums[c] + __ldg(rules + first + c), first + c, 1.0f});
        if (lane == c) logits[first + c] = sums[c] + __ldg(places.rules + first + c);
      }
      if (lane == 0) bests[line][warp] = best;
      continue;
    }
    float mine = 0.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
      if (lane == c) mine = sums[c] + shift[c];
    const int column = first + lane;
    if (lane >= COLUMNS || column >= OUT) continue;
    if (THEN == TO_CACHE) {
      constexpr int HIDDEN = HEADS * SIZE;
      half_t* to = column < HIDDEN
                       ? (half_t*)made + line * HIDDEN + column
                       : in_cache<HEADS, SIZE, SLOTS, COUNT, APART>(places.cache, places.position, line, column - HIDDEN);
      if (to) *to = narrowed(mine);
    }
    if (THEN == ADD) ((float*)made)[line * OUT + column] += mine;
    if (THEN == GELU) ((half_t*)made)[line * OUT + column] = narrowed(gelu(mine));
    if (THEN == KEEP) ((half_t*)made)[line * OUT + column] = narrowed(mine);
  }
  if (SPLIT > 1) {
    static_assert(SPLIT == 1 || THEN == ADD, "only sums are split");
    __syncthreads();
    for (int i = threadIdx.x; i < LINES * GROUPS * COLUMNS; i += 32 * WARPS) {
      const int line = i / (GROUPS * COLUMNS), group = i / COLUMNS % GROUPS, c = i % COLUMNS;
      const int column = (blockIdx.x * GROUPS + group) * COLUMNS + c;
      if (column >= OUT) continue;
      float sum = bias ? __ldg(bias + column) : 0.0f;
#pragma unroll
      for (int p = 0; p < SPLIT; p++) sum += pieces[line][group * SPLIT + p][c];
      ((float*)made)[line * OUT + column] += sum;
    }
  }
  if (HEAD) {
    __syncthreads();
    if (threadIdx.x < LINES) {
      Best best = bests[threadIdx.x][0];
#pragma unroll
      for (int w = 1; w < WARPS; w++) best = better(best, bests[threadIdx.x][w]);
      places.best[(long long)threadIdx.x * gridDim.x + blockIdx.x] = best;
    }
  }
}

// ---------------------------------------------------------------------------------------------------- attention

// One head of one row, all its COUNT lines at once. Keys and values are [keys, SIZE] in one piece each; a row's begin
// `row_stride` behind those of the row before. Eight lanes read one key; SEEN passes are read ahead.
template <int COUNT, int HEADS, int SIZE, int KEYS, int WARPS, bool CAUSAL>
DEVICE void attend(const half_t* queries, const half_t* keys, const half_t* values, const int* lengths,
                   long long row_stride, half_t* mixed) {
  constexpr int LANES = SIZE / 8, TOGETHER = 32 / LANES, STRIDE = WARPS * TOGETHER;
  constexpr int PASSES = (KEYS + STRIDE - 1) / STRIDE, SEEN = PASSES < 8 ? PASSES : 8;
  static_assert(SIZE == 64, "eight lanes of sixteen bytes read a head");
  const int head = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int mine = warp * TOGETHER + lane / LANES, offset = lane % LANES * 8;
  const half_t* k_head = keys + row * row_stride + (long long)head * KEYS * SIZE + offset;
  const half_t* v_head = values + row * row_stride + (long long)head * KEYS * SIZE + offset;
  __shared__ float scores[COUNT][KEYS];
  __shared__ float totals[COUNT];
  __shared__ float outputs[WARPS][COUNT][SIZE];
  uint4 k_seen[SEEN], v_seen[SEEN];
  // 1. What the encoder wrote was there before this step began; a cache's last slots were not.
  if (CAUSAL) {
    let_the_next_begin();
    wait_for_the_one_before();
  }
  const int first = CAUSAL ? lengths[row] : 0;
  int length = CAUSAL ? first + COUNT : lengths[row];
  length = length < KEYS ? length : KEYS;
#pragma unroll
  for (int p = 0; p < SEEN; p++) {
    const int key = mine + p * STRIDE;
    const uint4 nothing = {0, 0, 0, 0};
    k_seen[p] = key < length ? *(const uint4*)(k_head + (long long)key * SIZE) : nothing;
    v_seen[p] = key < length ? *(const uint4*)(v_head + (long long)key * SIZE) : nothing;
  }
  if (!CAUSAL) {
    let_the_next_begin();
    wait_for_the_one_before();
  }
  // 2. Scores.
  float query[COUNT][8];
#pragma unroll
  for (int c = 0; c < COUNT; c++) {
    const uint4 packed = *(const uint4*)(queries + ((long long)row * COUNT + c) * HEADS * SIZE + head * SIZE + offset);
    const pair_t* two = (const pair_t*)&packed;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      query[c][2 * i] = low(two[i]);
      query[c][2 * i + 1] = high(two[i]);
    }
  }
#pragma unroll
  for (int p = 0; p < PASSES; p++) {
    const int key = mine + p * STRIDE;
    const uint4 nothing = {0, 0, 0, 0};
    const uint4 packed =
        p < SEEN ? k_seen[p < SEEN ? p : 0] : key < length ? *(const uint4*)(k_head + (long long)key * SIZE) : nothing;
    const pair_t* two = (const pair_t*)&packed;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; i++) sum += low(two[i]) * query[c][2 * i] + high(two[i]) * query[c][2 * i + 1];
#pragma unroll
      for (int step = 1; step < LANES; step <<= 1) sum += __shfl_xor_sync(FULL, sum, step);
      if (lane % LANES == 0 && key < length) scores[c][key] = CAUSAL && key > first + c ? LOWEST : sum;
    }
  }
  __syncthreads();
  // 3. Shares.
  for (int c = warp; c < COUNT; c += WARPS) {
    float highest = LOWEST, total = 0.0f;
    for (int key = lane; key < length; key += 32) highest = fmaxf(highest, scores[c][key]);
    highest = warp_max(highest);
    for (int key = lane; key < length; key += 32) {
      const float share = __expf(scores[c][key] - highest);
      scores[c][key] = share;
      total += share;
    }
    total = warp_sum(total);
    if (lane == 0) totals[c] = total;
  }
  __syncthreads();
  // 4. Mixed values.
  float sums[COUNT][8] = {};
#pragma unroll
  for (int p = 0; p < PASSES; p++) {
    const int key = mine + p * STRIDE;
    if (p >= SEEN && key >= length) break;
    const uint4 packed = p < SEEN ? v_seen[p < SEEN ? p : 0] : *(const uint4*)(v_head + (long long)key * SIZE);
    const pair_t* two = (const pair_t*)&packed;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      const float share = key < length ? scores[c][key] : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[c][2 * i] += share * low(two[i]);
        sums[c][2 * i + 1] += share * high(two[i]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < COUNT; c++)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float sum = sums[c][i];
#pragma unroll
      for (int step = LANES; step < 32; step <<= 1) sum += __shfl_xor_sync(FULL, sum, step);
      if (lane < LANES) outputs[warp][c][offset + i] = sum;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < COUNT * SIZE; i += 32 * WARPS) {
    const int c = i / SIZE, d = i % SIZE;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += outputs[w][c][d];
    mixed[((long long)row * COUNT + c) * HEADS * SIZE + head * SIZE + d] = narrowed(sum / totals[c]);
  }
}

// ------------------------------------------------------------------------------------------ products of many lines

// x += the pieces of the product before and its bias; then normal, fp16 [lines, HIDDEN]. A warp a line.
template <int LINES, int HIDDEN, int PIECES, int WARPS>
DEVICE void add_and_norm(const float* pieces, const float* bias, float* x, half_t* normal) {
  constexpr int CHUNKS = HIDDEN / 128;
  static_assert(HIDDEN % 128 == 0, "a lane holds whole chunks of four");
  const int line = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  float4 shift[CHUNKS];
  if (PIECES)
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) shift[k] = __ldg((const float4*)(bias + k * 128 + lane * 4));
  let_the_next_begin();
  wait_for_the_one_before();
  if (line >= LINES) return;
  float4 values[CHUNKS];
  float mean = 0.0f, spread = 0.0f;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    const long long at = (long long)line * HIDDEN + k * 128 + lane * 4;
    float4 value = *(const float4*)(x + at);
    if (PIECES) {
      value.x += shift[k].x, value.y += shift[k].y, value.z += shift[k].z, value.w += shift[k].w;
#pragma unroll
      for (int p = 0; p < PIECES; p++) {
        const float4 piece = *(const float4*)(pieces + (long long)p * LINES * HIDDEN + at);
        value.x += piece.x, value.y += piece.y, value.z += piece.z, value.w += piece.w;
      }
      *(float4*)(x + at) = value;
    }
    values[k] = value;
    mean += value.x + value.y + value.z + value.w;
  }
  mean = warp_sum(mean) / HIDDEN;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    values[k].x -= mean, values[k].y -= mean, values[k].z -= mean, values[k].w -= mean;
    spread += values[k].x * values[k].x + values[k].y * values[k].y + values[k].z * values[k].z +
              values[k].w * values[k].w;
  }
  const float scale = rsqrtf(warp_sum(spread) / HIDDEN + 1e-5f);
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    uint2 packed;
    packed.x = paired(values[k].x * scale, values[k].y * scale);
    packed.y = paired(values[k].z * scale, values[k].w * scale);
    *(uint2*)(normal + (long long)line * HIDDEN + k * 128 + lane * 4) = packed;
  }
}

DEVICE unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// Sixteen bytes into shared memory, or zeros.
DEVICE void fetch(void* to, const void* from, bool there) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0));
#else
  const uint4 nothing = {0, 0, 0, 0};
  *(uint4*)to = there ? *(const uint4*)from : nothing;
#endif
}

DEVICE void end_of_fetches() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int LEFT>
DEVICE void wait_for_fetches() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

DEVICE void four_tiles(pair_t* tiles, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(shared_address(row)));
}

DEVICE void two_tiles(pair_t* tiles, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(tiles[0]), "=r"(tiles[1])
               : "r"(shared_address(row)));
}

// sums[16, 8] += a[16, 16] * b[16, 8]
DEVICE void multiply(float* sums, const pair_t* a, const pair_t* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; k++)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}

// made[lines, OUT] = given[lines, IN] * matrix[OUT, IN]; blocks: (lines, OUT, PIECES of IN). ADD leaves its pieces,
// float [PIECES, LINES, OUT], to the norm that follows.
template <int LINES, int OUT, int IN, int TALL, int WIDE, int DOWN, int ACROSS, int STAGES, int PIECES, Then THEN,
          int HEADS, int SIZE, int SLOTS, int COUNT, int APART>
DEVICE void tile(const half_t* matrix, const float* bias, const half_t* given, void* made, Places places) {
  constexpr int DEEP = 64, PITCH = DEEP + 8, THREADS = 32 * DOWN * ACROSS;
  constexpr int SHARE = IN / PIECES, STEPS = SHARE / DEEP, TILES = TALL / DOWN / 16, COLUMNS = WIDE / ACROSS / 8;
  static_assert(IN % PIECES == 0 && SHARE % DEEP == 0, "a piece is whole steps");
  static_assert(TALL % (16 * DOWN) == 0 && WIDE % (8 * ACROSS) == 0, "a warp computes whole tiles");
  extern __shared__ __align__(16) unsigned char memory[];
  half_t* of_lines = (half_t*)memory;                    // [STAGES][TALL][PITCH]
  half_t* of_matrix = of_lines + STAGES * TALL * PITCH;  // [STAGES][WIDE][PITCH]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, down = warp / ACROSS, across = warp % ACROSS;
  const int top = blockIdx.x * TALL, left = blockIdx.y * WIDE, begin = blockIdx.z * SHARE;

  auto fetch_matrix = [&](int step) {
    half_t* to = of_matrix + step % STAGES * WIDE * PITCH;
#pragma unroll
    for (int i = threadIdx.x; i < WIDE * DEEP / 8; i += THREADS) {
      const int row = i / (DEEP / 8), column = i % (DEEP / 8) * 8;
      const bool there = left + row < OUT;
      fetch(to + row * PITCH + column, matrix + (long long)(there ? left + row : 0) * IN + begin + step * DEEP + column,
            there);
    }
  };
  auto fetch_lines = [&](int step) {
    half_t* to = of_lines + step % STAGES * TALL * PITCH;
#pragma unroll
    for (int i = threadIdx.x; i < TALL * DEEP / 8; i += THREADS) {
      const int row = i / (DEEP / 8), column = i % (DEEP / 8) * 8;
      const bool there = top + row < LINES;
      // Of a text only the last token's logits count.
      const int line = THEN == CHOOSE ? (top + row) * COUNT + COUNT - 1 : top + row;
      fetch(to + row * PITCH + column, given + (long long)(there ? line : 0) * IN + begin + step * DEEP + column, there);
    }
  };
  // 1. The matrix first: no kernel writes it.
  constexpr int AHEAD = STAGES - 1 < STEPS ? STAGES - 1 : STEPS;
#pragma unroll
  for (int step = 0; step < AHEAD; step++) fetch_matrix(step);
  let_the_next_begin();
  wait_for_the_one_before();
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < AHEAD) fetch_lines(step);
    end_of_fetches();
  }
  // 2. Step by step along IN, STAGES - 1 steps ahead.
  float sums[TILES][COLUMNS][4] = {};
  for (int step = 0; step < STEPS; step++) {
    wait_for_fetches<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < STEPS) {
      fetch_matrix(step + STAGES - 1);
      fetch_lines(step + STAGES - 1);
    }
    end_of_fetches();
    const half_t* a_stage = of_lines + (step % STAGES * TALL + down * (TALL / DOWN)) * PITCH;
    const half_t* b_stage = of_matrix + (step % STAGES * WIDE + across * (WIDE / ACROSS)) * PITCH;
#pragma unroll
    for (int k = 0; k < DEEP; k += 16) {
      pair_t a[TILES][4], b[COLUMNS][2];
#pragma unroll
      for (int t = 0; t < TILES; t++) four_tiles(a[t], a_stage + (t * 16 + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) two_tiles(b[c], b_stage + (c * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) multiply(sums[t][c], a[t], b[c]);
    }
  }
  wait_for_fetches<0>();
  // 3. What becomes of the sums: a lane holds columns 2t and 2t + 1 of lines g and g + 8.
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int below = 0; below < 2; below++) {
      const int line = top + down * (TALL / DOWN) + t * 16 + below * 8 + lane / 4;
      Best best = {LOWEST, OUT, 0.0f};
      const float* rules = nullptr;
      if (THEN == CHOOSE && line < LINES)
        rules = places.rules + (places.position[line] + COUNT == places.prompt[line] ? 0 : OUT);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const int column = left + across * (WIDE / ACROSS) + c * 8 + lane % 4 * 2;
        float first = sums[t][c][2 * below], second = sums[t][c][2 * below + 1];
        if (THEN == CHOOSE) {
          if (line < LINES) {
            if (column < OUT) best = better(best, Best{first + __ldg(rules + column), column, 1.0f});
            if (column + 1 < OUT) best = better(best, Best{second + __ldg(rules + column + 1), column + 1, 1.0f});
          }
          continue;
        }
        if (line >= LINES || column >= OUT) continue;
        if (THEN == ADD) {
          float2 both = {first, second};
          *(float2*)((float*)made + ((long long)blockIdx.z * LINES + line) * OUT + column) = both;
          continue;
        }
        if (bias) first += __ldg(bias + column), second += __ldg(bias + column + 1);
        if (THEN == GELU) first = gelu(first), second = gelu(second);
        half_t* to = (half_t*)made + (long long)line * OUT + column;
        if (THEN == TO_CACHE) {
          constexpr int HIDDEN = HEADS * SIZE;
          to = column < HIDDEN
                   ? (half_t*)made + (long long)line * HIDDEN + column
                   : in_cache<HEADS, SIZE, SLOTS, COUNT, APART>(places.cache, places.position, line, column - HIDDEN);
        }
        if (to) *(pair_t*)to = paired(first, second);
      }
      if (THEN == CHOOSE) {
        best = better(best, from_lane(best, 1));
        best = better(best, from_lane(best, 2));
        Best* bests = (Best*)memory;  // [ACROSS][TALL]; the stages are done with
        if (t == 0 && below == 0) __syncthreads();
        if (lane % 4 == 0) bests[across * TALL + line - top] = best;
      }
    }
  if (THEN == CHOOSE) {
    __syncthreads();
    const Best* bests = (const Best*)memory;
    for (int i = threadIdx.x; i < TALL && top + i < LINES; i += THREADS) {
      Best best = bests[i];
#pragma unroll
      for (int w = 1; w < ACROSS; w++) best = better(best, bests[w * TALL + i]);
      places.best[(long long)(top + i) * gridDim.y + blockIdx.y] = best;
    }
  }
}

// --------------------------------------------------------------------------------------------------- what comes last

// The best of PARTS, in the first thread of the block.
template <int PARTS, int WARPS>
DEVICE Best best_of(const Best* parts) {
  __shared__ Best bests[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Best best = {LOWEST, 0x7fffffff, 0.0f};
  for (int i = threadIdx.x; i < PARTS; i += 32 * WARPS) best = better(best, parts[i]);
#pragma unroll
  for (int step = 16; step; step >>= 1) best = better(best, from_lane(best, step));
  if (lane == 0) bests[warp] = best;
  __syncthreads();
  if (threadIdx.x) return best;
#pragma unroll
  for (int w = 1; w < WARPS; w++) best = better(best, bests[w]);
  return best;
}

// A block a row: the best of all parts; written behind what was read unless the prompt stands there; and one on.
template <int COUNT, int SLOTS, int PARTS, int WARPS>
DEVICE void choose(const Best* parts, const int* prompt, int* text, int* position, float* likely) {
  wait_for_the_one_before();
  let_the_next_begin();
  const int row = blockIdx.x;
  const Best best = best_of<PARTS, WARPS>(parts + (long long)row * PARTS);
  if (threadIdx.x) return;
  const int behind = position[row] + COUNT;
  if (behind < SLOTS) {
    if (behind >= prompt[row]) text[row * SLOTS + behind] = best.index;
    likely[row * SLOTS + behind] = -logf(best.sum);
  }
  position[row] = behind < SLOTS ? behind : SLOTS - 1;
}

// A block a line: the best of all parts, and its share; behind a row's last line it is written, and the row goes on. Where
// nothing is likeliest, since logits are no numbers, a token is written all the same: the next run reads what lies there.
template <int COUNT, int SLOTS, int PARTS, int WARPS, int TOKENS>
DEVICE void answer(const Best* parts, int* text, int* position, float* likely, int* next, float* logprob) {
  wait_for_the_one_before();
  let_the_next_begin();
  const int line = blockIdx.x, row = line / COUNT;
  const Best best = best_of<PARTS, WARPS>(parts + (long long)line * PARTS);
  if (threadIdx.x) return;
  const float share = -logf(best.sum);
  const int token = best.index < TOKENS ? best.index : 0;
  next[line] = token;
  logprob[line] = share;
  if (line % COUNT < COUNT - 1) return;
  const int behind = position[row] + COUNT;
  if (behind < SLOTS) {
    text[row * SLOTS + behind] = token;
    likely[row * SLOTS + behind] = share;
  }
  position[row] = behind < SLOTS ? behind : SLOTS - 1;
}

// --------------------------------------------------------------------------------- kernels, by what a program asks for

#define EMBED(NAME, COUNT, SLOTS, HIDDEN)                                                                       \
  extern "C" __global__ void NAME(const int* text, const int* position, const half_t* tokens, const half_t* places, \
                                  float* x) {                                                                   \
    embed<COUNT, SLOTS, HIDDEN>(text, position, tokens, places, x);                                             \
  }

#define WALK(NAME, LINES, OUT, IN, COLUMNS, SPLIT, WARPS, NORM, THEN, HEADS, SIZE, SLOTS, COUNT, APART)           \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                        \
      NAME(const half_t* matrix, const float* bias, const void* given, void* made, half_t* cache,                 \
           const int* position, const int* prompt, const float* rules, Best* best, const int* rule,               \
           float* logits) {                                                                                       \
    walk<LINES, OUT, IN, COLUMNS, SPLIT, WARPS, NORM, THEN, HEADS, SIZE, SLOTS, COUNT, APART>(                    \
        matrix, bias, given, made, Places{cache, position, prompt, rules, best, rule, logits});                   \
  }

#define TILE(NAME, LINES, OUT, IN, TALL, WIDE, DOWN, ACROSS, STAGES, PIECES, THEN, HEADS, SIZE, SLOTS, COUNT,     \
             APART)                                                                                               \
  extern "C" __global__ void __launch_bounds__(32 * DOWN * ACROSS)                                                \
      NAME(const half_t* matrix, const float* bias, const half_t* given, void* made, half_t* cache,               \
           const int* position, const int* prompt, const float* rules, Best* best) {                              \
    tile<LINES, OUT, IN, TALL, WIDE, DOWN, ACROSS, STAGES, PIECES, THEN, HEADS, SIZE, SLOTS, COUNT, APART>(       \
        matrix, bias, given, made, Places{cache, position, prompt, rules, best, nullptr, nullptr});               \
  }

#define ATTEND(NAME, COUNT, HEADS, SIZE, KEYS, WARPS, CAUSAL)                                                     \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                        \
      NAME(const half_t* queries, const half_t* keys, const half_t* values, const int* lengths,                   \
           long long row_stride, half_t* mixed) {                                                                 \
    attend<COUNT, HEADS, SIZE, KEYS, WARPS, CAUSAL>(queries, keys, values, lengths, row_stride, mixed);           \
  }

#define NORM(NAME, LINES, HIDDEN, PIECES, WARPS)                                                                  \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                        \
      NAME(const float* pieces, const float* bias, float* x, half_t* normal) {                                    \
    add_and_norm<LINES, HIDDEN, PIECES, WARPS>(pieces, bias, x, normal);                                          \
  }

#define CHOICE(NAME, COUNT, SLOTS, PARTS, WARPS)                                                                  \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                        \
      NAME(const Best* parts, const int* prompt, int* text, int* position, float* likely) {                       \
    choose<COUNT, SLOTS, PARTS, WARPS>(parts, prompt, text, position, likely);                                    \
  }

#define REPLY(NAME, COUNT, SLOTS, PARTS, WARPS, TOKENS)                                                           \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                        \
      NAME(const Best* parts, int* text, int* position, float* likely, int* next, float* logprob) {               \
    answer<COUNT, SLOTS, PARTS, WARPS, TOKENS>(parts, text, position, likely, next, logprob);                     \
  }
