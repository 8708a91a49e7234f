// SPDX-License-Identifier: Apache-2.0
// CUDA edit_logits, sm_80 and newer. One block is 8192 tokens of one row: it copies them, masked, and then
// changes the few of them that are in the history, on the node's path, biased, each with a barrier between.
// What the mask bans is not penalised, and no bias makes anything else of -inf. Every block of a row reads
// the whole history: it is shorter than the part of a row that a block copies, and comes from L2.
//
// Planted bugs:
//   1           edits do not wait for the copy
//   2           a token of the path forgets how often it was in the history
//   3           a token that is twice on a path is edited twice
//   4           frequency counts once
//   5           the mask's bit of the token before
//   6           tokens beyond the row are written
//   7           biases do not wait for the penalties
#include "cuda/requests.cuh"
#include "cuda/row.cuh"
#include "pyspec/edit_logits.h"

namespace pyspec {
namespace {

using cuda::kWarp;

constexpr int kThreads = 512, kPart = 8192;  // tokens: 32 KB in, 32 KB out
constexpr unsigned kAllLanes = 0xffffffffu;

// Denormals count as 0.
__device__ inline double widened(float x) { return fabsf(x) < 0x1p-126f ? 0.0 : double(x); }
__device__ inline float rounded(double x) { return fabs(x) < 0x1p-126 ? 0.0f : float(x); }

__device__ inline float banned() { return __uint_as_float(0xff800000u); }

// The correctly rounded y / d by an inverse of d: Markstein's two steps. Neither overflows for y and d that
// were floats, and d's significand is not all ones, as his theorem asks. A division is a call, around which
// ptxas spills.
__device__ inline double divided(double y, double d, double inverse) {
  if (!(fabs(y) < double(__uint_as_float(0x7f800000u)))) return y;
  const double near = y * inverse, nearer = fma(fma(-near, d, y), inverse, near);
  return fma(fma(-nearer, d, y), inverse, nearer);
}

struct Penalties {
  double repetition, inverse, presence, frequency;

  __device__ bool any() const { return repetition != 1 || presence != 0 || frequency != 0; }

  // What the logit of a token that is n times in the output becomes.
  __device__ float operator()(float logit, int64_t n) const {
    double y = widened(logit);
    if (repetition != 1) y = y > 0 ? divided(y, repetition, inverse) : y * repetition;
    if (n > 0 && frequency != 0) y = y - frequency * double(PYSPEC_PLANTED(4) ? 1 : n);
    if (n > 0 && presence != 0) y = y - presence;
    return rounded(y);
  }
};

// Tokens [first, end) of a row; `mask` is null where everything is allowed.
struct Part {
  const float* logits;
  float* out;
  const uint32_t* mask;
  int64_t first, end;

  __device__ bool has(int64_t x) const { return x >= first && x < end; }
  __device__ void penalise(const Penalties& penalties, int64_t x, int64_t n) const {
    if (!mask || mask[x / 32] >> x % 32 & 1) out[x] = penalties(logits[x], n);
  }
};

template <bool kVector>
__device__ void copy(const Part& part) {
  for (int64_t i = part.first + 4 * threadIdx.x; i < part.end; i += 4 * kThreads) {
    const int64_t left = part.end - i;
    float4 z = cuda::load4<kVector>(part.logits + i, left);
    if (part.mask) {  // i is a multiple of 4: its four bits are in one word
      const uint32_t word = __ldg(part.mask + i / 32);
      const uint32_t bits = PYSPEC_PLANTED(5) ? word << 1 >> i % 32 : word >> i % 32;
      z = {bits & 1 ? z.x : banned(), bits & 2 ? z.y : banned(), bits & 4 ? z.z : banned(),
           bits & 8 ? z.w : banned()};
    }
    cuda::store4<kVector>(part.out + i, z, PYSPEC_PLANTED(6) ? 4 : left);
  }
}

// The history, then every token of the path from the node up to the root's child, whose count is the
// history's and the path's: one warp for each node of the path.
__device__ void penalise(const EditLogitsParams& p, int64_t b, int64_t node, const Part& part) {
  const double repetition = p.repetition[b];
  const Penalties penalties{repetition, 1.0 / repetition, widened(p.presence[b]), widened(p.frequency[b])};
  if (!penalties.any()) return;  // alike for all threads
  const int64_t first = p.cu_history[b], entries = p.cu_history[b + 1] - first;
  const int32_t *history = p.history + first, *count = p.history_count + first;
  for (int64_t i = threadIdx.x; i < entries; i += kThreads)
    if (part.has(history[i])) part.penalise(penalties, history[i], count[i]);
  __syncthreads();
  const int32_t *tokens = p.tokens + p.cu_t[b], *parents = p.parents + p.cu_t[b];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t step = 0;
  for (int64_t i = node; i > 0; i = parents[i], ++step) {
    const int32_t x = tokens[i];
    if (step % (kThreads / kWarp) != warp || !part.has(x)) continue;
    int64_t n = 0;
    bool first_of_path = true;
    for (int64_t j = node; j > 0; j = parents[j]) {
      if (tokens[j] != x) continue;
      ++n;
      if (j > i && !PYSPEC_PLANTED(3)) first_of_path = false;  // its turn was or will be another's
    }
    if (!first_of_path) continue;
    int32_t known = 0;
    for (int64_t j = lane; j < entries && !PYSPEC_PLANTED(2); j += kWarp)
      if (history[j] == x) known = count[j];
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      known = max(known, __shfl_xor_sync(kAllLanes, known, distance));
    if (lane == 0) part.penalise(penalties, x, n + known);
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) edit_parts(const EditLogitsParams p) {
  const int64_t t = blockIdx.x, first = int64_t(blockIdx.y) * kPart;
  const int32_t row = p.mask_row[t];
  const auto* masks = reinterpret_cast<const uint32_t*>(p.mask);
  const Part part{p.logits + t * p.logits_stride_t, p.out + t * p.V,
                  row < 0 ? nullptr : masks + row * ((p.V + 31) / 32), first, min(first + kPart, p.V)};
  copy<kVector>(part);
  const int64_t b = cuda::request_of(p.cu_t, p.B, t);
  if (b < 0) return;
  if (!PYSPEC_PLANTED(1)) __syncthreads();
  penalise(p, b, t - p.cu_t[b], part);
  if (!PYSPEC_PLANTED(7)) __syncthreads();
  for (int64_t j = p.cu_bias[b] + threadIdx.x; j < p.cu_bias[b + 1]; j += kThreads) {
    const int64_t x = p.bias_token[j];
    if (part.has(x)) part.out[x] = rounded(widened(part.out[x]) + widened(p.bias[j]));
  }
}

}  // namespace

void edit_logits_cuda(const EditLogitsParams& p, void* stream) {
  if (p.T == 0 || p.V == 0) return;
  const bool vector = p.V % 4 == 0 && cuda::aligned16(p.logits, p.logits_stride_t) && cuda::aligned16(p.out);
  const auto kernel = vector ? edit_parts<true> : edit_parts<false>;
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.T, p.V, kPart), kThreads, 0, stream, p);
}

}  // namespace pyspec
