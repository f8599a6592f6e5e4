/*
 * Copyright 2026 spotvlm maintainers
 *
 * Licensed under the Apache License, Version 2.0 (the "License");
 * you may not use this file except in compliance with the License.
 * You may obtain a copy of the License at
 *
 *     http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 *
 * SPDX-License-Identifier: Apache-2.0
 */

/*
 * One forward pass of few tokens through a decoder like that of Llama, without anything between
 * its products; and for many tokens what is between products of 8 bits, which are oneDNN's.
 * `library.py` compiles this file for the processor it runs on. `Product` has its twin in
 * `linear.py`; `Layer`, `Cache`, `Decoder` and `Row` have theirs in `decoder.py`.
 *
 * Loops are plain: the compiler makes dot products of 8 bits of them where the processor has some.
 * Products go by four rows of the weight at a time, and ask for the next four in advance: a single
 * stream of one row does not keep the memory busy.
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

/* Kinds of numbers: 8 bits alone, and with inputs that are quantize to 8 bits, too; 4 bits. */
enum { F32, BF16, I8, I8_I8, I4 };
enum { BLOCK = 4 };       /* rows of a weight at a time */
enum { GROUP = 32, MIDDLE = 8 };   /* of 4 bits: numbers that share a scale; what stands for 0 */
enum { LINE = 64 };       /* bytes of a cache line */

/* Inputs of 8 bits are stored as 1 to 255, as x86 multiplies them by weights; ARM has signs. */
#ifdef __aarch64__
typedef int8_t Number;
enum { SHIFT = 0 };
#else
typedef uint8_t Number;
enum { SHIFT = 128 };
#endif

typedef struct {
  const void * weight;    /* n_out x n_in, of `kind` */
  const void * scales;    /* 8 bits: of each row, F32; 4 bits: of each group, of `scale_kind` */
  const int32_t * sums;   /* I8_I8: the sum of each row of the weight */
  const float * bias;     /* of each output, or NULL */
  int64_t n_out, n_in, kind, scale_kind;
} Product;

typedef struct {
  const float * before, * after;   /* weights of the norms */
  Product qkv, out, gate_up, down;
} Layer;

typedef struct {
  void * keys, * values;   /* kv_heads x capacity x dim, of the decoder's cache_kind */
} Cache;

typedef struct {
  int64_t n_layers, width, heads, kv_heads, dim, inner, cache_kind;
  double scaling, epsilon;
  const Layer * layers;
  const float * norm;   /* weight of the last norm */
} Decoder;

typedef struct {
  const Cache * caches;     /* of each layer, of the prefix of this token */
  const float * mask;       /* added to the attention to each slot, or NULL */
  int64_t capacity;         /* slots of the caches */
  int64_t slot, n_slots;    /* where this token goes, and how many it may attend to */
} Row;

static inline float widened(uint16_t number)
{
  union { uint32_t bits; float number; } as = {(uint32_t)number << 16};
  return as.number;
}

static inline uint16_t narrowed(float number)   /* to the nearest, ties to even */
{
  union { float number; uint32_t bits; } as = {number};
  return (uint16_t)((as.bits + 0x7fff + ((as.bits >> 16) & 1)) >> 16);
}

/* e^x up to 2e-7 of it, 0 below -87; a loop over it can be made of vectors. */
static inline float exponential(float x)
{
  float whole, part;
  union { uint32_t bits; float number; } power;
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  whole = rintf(x * 1.44269504f);
  part = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  power.bits = (uint32_t)((int32_t)whole + 127) << 23;
  return power.number * (1.0f + part * (1.0f + part * (0.5f + part * (
    1.66666655e-1f + part * (4.16657962e-2f + part * (8.33345205e-3f + part * 1.3981999e-3f))))));
}

/* Round one row to 8 bits; return its scale. */
static float quantize(const float * restrict x, int64_t n, Number * restrict numbers)
{
  union { uint32_t bits; float number; } most = {0};   /* their order is that of numbers */
  for (int64_t j = 0; j < n; j++) {
    const union { float number; uint32_t bits; } as = {fabsf(x[j])};
    most.bits = as.bits > most.bits ? as.bits : most.bits;
  }
  const float scale = most.number / 127.0f > 1e-12f ? most.number / 127.0f : 1e-12f;
  for (int64_t j = 0; j < n; j++) {
    numbers[j] = (Number)((int32_t)rintf(x[j] / scale) + SHIFT);
  }
  return scale;
}

static void rms_norm(
  const float * x, const float * restrict weight, int64_t n, double epsilon, float * y)
{
  float sum = 0.0f;
  for (int64_t j = 0; j < n; j++) {
    sum += x[j] * x[j];
  }
  const float scale = 1.0f / sqrtf(sum / (float)n + (float)epsilon);
  for (int64_t j = 0; j < n; j++) {
    y[j] = x[j] * scale * weight[j];
  }
}

/* Four rows of a weight times one row of inputs; the next four are asked for. */
#define DEFINE_FOUR(NAME, WEIGHT, INPUT, SUM, TERM) \
  static inline void NAME( \
    const WEIGHT * restrict w, const INPUT * restrict x, int64_t n, SUM * restrict y) \
  { \
    const WEIGHT * restrict w1 = w + n, * restrict w2 = w1 + n, * restrict w3 = w2 + n; \
    SUM a = 0, b = 0, c = 0, d = 0; \
    for (int64_t k = 0; k < BLOCK * n * (int64_t)sizeof(WEIGHT); k += LINE) { \
      __builtin_prefetch((const char *)(w + BLOCK * n) + k); \
    } \
    for (int64_t j = 0; j < n; j++) { \
      a += TERM(x[j], w[j]); b += TERM(x[j], w1[j]); \
      c += TERM(x[j], w2[j]); d += TERM(x[j], w3[j]); \
    } \
    y[0] = a; y[1] = b; y[2] = c; y[3] = d; \
  }
#define BOTH_OF_8_BITS(x, w) ((int32_t)(x) * (int32_t)(w))
#define OF_8_BITS(x, w) ((x) * (float)(w))
#define OF_16_BITS(x, w) ((x) * widened(w))
#define OF_32_BITS(x, w) ((x) * (w))
DEFINE_FOUR(four_by_8, int8_t, Number, int32_t, BOTH_OF_8_BITS)
DEFINE_FOUR(four_of_8, int8_t, float, float, OF_8_BITS)
DEFINE_FOUR(four_of_16, uint16_t, float, float, OF_16_BITS)
DEFINE_FOUR(four_of_32, float, float, float, OF_32_BITS)

/*
 * Numbers of 4 bits. Of the 16 bytes of a group the low halves are its numbers 0 to 3, 8 to 11, 16
 * to 19 and 24 to 27, and the high halves those between (`quantised.Weight`).
 */
typedef uint8_t Bytes __attribute__((vector_size(GROUP / 2)));
typedef int32_t Ints __attribute__((vector_size(2 * GROUP)));
typedef float Floats __attribute__((vector_size(2 * GROUP)));

static inline Floats numbers_of(Bytes halves)
{
  return __builtin_convertvector(__builtin_convertvector(halves, Ints) - MIDDLE, Floats);
}

static inline float group_scale(const Product * by, int64_t group)
{
  return by->scale_kind == BF16 ? widened(((const uint16_t *)by->scales)[group]) :
         ((const float *)by->scales)[group];
}

/* Inputs in the order of the halves: 16 for the low ones of a group, 16 for the high ones. */
static void sorted(const float * restrict x, int64_t n, float * restrict y)
{
  for (int64_t j = 0; j < n; j += 8) {
    float * low = y + j / GROUP * GROUP + j % GROUP / 2;
    memcpy(low, x + j, 4 * sizeof(float));
    memcpy(low + GROUP / 2, x + j + 4, 4 * sizeof(float));
  }
}

/* Four rows of a weight of 4 bits, from `first` on, times one row of sorted inputs. */
static inline void four_of_4(const Product * by, int64_t first, const float * x, float * y)
{
  const int64_t groups = by->n_in / GROUP, bytes = by->n_in / 2;
  const uint8_t * w = (const uint8_t *)by->weight + first * bytes;
  Floats sums[BLOCK] = {{0}};
  for (int64_t k = 0; k < BLOCK * bytes; k += LINE) {
    __builtin_prefetch(w + BLOCK * bytes + k);
  }
  for (int64_t g = 0; g < groups; g++) {
    Floats low, high;
    memcpy(&low, x + g * GROUP, sizeof(low));
    memcpy(&high, x + g * GROUP + GROUP / 2, sizeof(high));
    for (int k = 0; k < BLOCK; k++) {
      Bytes both;
      memcpy(&both, w + k * bytes + g * sizeof(both), sizeof(both));
      sums[k] += (low * numbers_of(both & 15) + high * numbers_of(both >> 4))
        * group_scale(by, (first + k) * groups + g);
    }
  }
  for (int k = 0; k < BLOCK; k++) {
    y[k] = 0.0f;
    for (int i = 0; i < GROUP / 2; i++) {
      y[k] += sums[k][i];
    }
  }
}

/* Inputs of a product: plain, and as its weight wants them. */
typedef struct {
  const float * plain;       /* rows x n_in */
  void * numbers;            /* rows x n_in: bytes, or sorted floats */
  float * scales;            /* rows */
} Inputs;

static void prepare(const Product * by, Inputs * inputs, int64_t rows)
{
  const int64_t n = by->n_in;
  for (int64_t r = 0; by->kind == I8_I8 && r < rows; r++) {
    inputs->scales[r] = quantize(inputs->plain + r * n, n, (Number *)inputs->numbers + r * n);
  }
  for (int64_t r = 0; by->kind == I4 && r < rows; r++) {
    sorted(inputs->plain + r * n, n, (float *)inputs->numbers + r * n);
  }
}

/* Outputs `first` to `first` + 3 of one row. */
static inline void block(
  const Product * by, const Inputs * inputs, int64_t row, int64_t first, float * y)
{
  const int64_t n = by->n_in;
  const float * scales = by->scales;
  switch (by->kind) {
    case I8_I8: {
      int32_t sums[BLOCK];
      four_by_8((const int8_t *)by->weight + first * n,
                (const Number *)inputs->numbers + row * n, n, sums);
      for (int k = 0; k < BLOCK; k++) {
        y[k] = (float)(sums[k] - SHIFT * by->sums[first + k]) * inputs->scales[row]
          * scales[first + k];
      }
      break;
    }
    case I8:
      four_of_8((const int8_t *)by->weight + first * n, inputs->plain + row * n, n, y);
      for (int k = 0; k < BLOCK; k++) {
        y[k] *= scales[first + k];
      }
      break;
    case I4:
      four_of_4(by, first, (const float *)inputs->numbers + row * n, y);
      break;
    case BF16:
      four_of_16((const uint16_t *)by->weight + first * n, inputs->plain + row * n, n, y);
      break;
    default:
      four_of_32((const float *)by->weight + first * n, inputs->plain + row * n, n, y);
  }
  for (int k = 0; by->bias && k < BLOCK; k++) {
    y[k] += by->bias[first + k];
  }
}

/* The first output of a thread's share, in blocks. */
static int64_t share(int64_t n, int64_t thread, int64_t threads)
{
  return n / BLOCK * thread / threads * BLOCK;
}

/*
 * A thread's share of the outputs of a product, rows x n_out: written to `y`, or with `add` added
 * to what is there.
 */
static void linear_share(
  const Product * by, const Inputs * inputs, int64_t rows, int64_t thread, int64_t threads,
  int add, float * y)
{
  const int64_t end = share(by->n_out, thread + 1, threads);
  for (int64_t i = share(by->n_out, thread, threads); i < end; i += BLOCK) {
    for (int64_t r = 0; r < rows; r++) {
      float found[BLOCK], * to = y + r * by->n_out + i;
      block(by, inputs, r, i, found);
      for (int k = 0; k < BLOCK; k++) {
        to[k] = add ? to[k] + found[k] : found[k];
      }
    }
  }
}

/* y, rows x n_out, of x, rows x n_in; `numbers` (rows x n_in floats) and `scales`: room. */
void linear(
  const Product * by, int64_t rows, const float * x, float * y, float * numbers, float * scales,
  int64_t n_threads)
{
  Inputs inputs = {x, numbers, scales};
  prepare(by, &inputs, rows);
  #pragma omp parallel num_threads(n_threads)
  linear_share(by, &inputs, rows, omp_get_thread_num(), omp_get_num_threads(), 0, y);
}

/*
 * Rotate one head by its position (RoPE). `sin` has the sign that its number takes: the first half
 * is negative.
 */
static void rope(float * x, int64_t dim, const float * cos, const float * sin)
{
  float rotated[dim];
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i++) {
    rotated[i] = x[i] * cos[i] + x[i + half] * sin[i];
    rotated[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
  memcpy(x, rotated, sizeof(rotated));
}

/* Rotate a query or key of a token; write its keys and values to the cache. */
static void rope_and_store(
  const Decoder * d, const Row * row, int64_t layer, int64_t head, float * qkv, const float * cos,
  const float * sin)
{
  float * x = qkv + head * d->dim;
  const int64_t kv_head = (head - d->heads) % d->kv_heads;
  const Cache * cache = row->caches + layer;
  if (head < d->heads + d->kv_heads) {
    rope(x, d->dim, cos, sin);
  }
  if (head < d->heads) {
    return;
  }
  void * into = head < d->heads + d->kv_heads ? cache->keys : cache->values;
  const int64_t at = (kv_head * row->capacity + row->slot) * d->dim;
  for (int64_t i = 0; i < d->dim; i++) {
    if (d->cache_kind == BF16) {
      ((uint16_t *)into)[at + i] = narrowed(x[i]);
    } else {
      ((float *)into)[at + i] = x[i];
    }
  }
}

/* What one head of a token sees; `scores`: room for a number of each slot. */
#define DEFINE_ATTEND(NAME, NUMBER, WIDE) \
  static void NAME( \
    const Decoder * d, const Row * row, int64_t layer, int64_t head, \
    const float * restrict query, float * restrict scores, float * restrict seen) \
  { \
    const int64_t from = head / (d->heads / d->kv_heads) * row->capacity * d->dim, dim = d->dim; \
    const NUMBER * restrict keys = (const NUMBER *)row->caches[layer].keys + from; \
    const NUMBER * restrict values = (const NUMBER *)row->caches[layer].values + from; \
    float most = -INFINITY, total = 0.0f; \
    for (int64_t s = 0; s < row->n_slots; s++) { \
      float sum = 0.0f; \
      for (int64_t i = 0; i < dim; i++) { \
        sum += query[i] * WIDE(keys[s * dim + i]); \
      } \
      scores[s] = sum * (float)d->scaling + (row->mask ? row->mask[s] : 0.0f); \
    } \
    for (int64_t s = 0; s < row->n_slots; s++) { \
      most = scores[s] > most ? scores[s] : most; \
    } \
    for (int64_t s = 0; s < row->n_slots; s++) { \
      scores[s] = exponential(scores[s] - most); \
      total += scores[s]; \
    } \
    memset(seen, 0, dim * sizeof(float)); \
    for (int64_t s = 0; s < row->n_slots; s++) { \
      const float part = scores[s] / total; \
      for (int64_t i = 0; i < dim; i++) { \
        seen[i] += part * WIDE(values[s * dim + i]); \
      } \
    } \
  }
#define AS_IT_IS(x) (x)
DEFINE_ATTEND(attend_16, uint16_t, widened)
DEFINE_ATTEND(attend_32, float, AS_IT_IS)

/*
 * Replace x, rows x width, the embeddings of some tokens, by their last hidden states.
 *
 * `cos`, `sin` (as in `rope`): rows x dim. `shared` has room for rows x (qkv + heads x dim +
 * inner) numbers, `own` for each thread twice rows x widest numbers, a scale of each row, and the
 * most slots; `widest` is the most of width, heads x dim and inner.
 */
void decode(
  const Decoder * d, int64_t rows, const Row * row, float * x, const float * cos,
  const float * sin, float * shared, float * own, int64_t own_size, int64_t widest,
  int64_t n_threads)
{
  const int64_t all = d->heads + 2 * d->kv_heads, attended = d->heads * d->dim;
  float * qkv = shared, * seen = qkv + rows * all * d->dim, * inner = seen + rows * attended;
  #pragma omp parallel num_threads(n_threads)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float * normal = own + thread * own_size, up[BLOCK], gate[BLOCK];
    Inputs plain = {normal, normal + rows * widest, NULL}, given = plain;
    plain.scales = given.scales = (float *)(normal + 2 * rows * widest);
    float * scores = plain.scales + rows;
    for (int64_t l = 0; l < d->n_layers; l++) {
      const Layer * layer = d->layers + l;
      for (int64_t r = 0; r < rows; r++) {
        rms_norm(x + r * d->width, layer->before, d->width, d->epsilon, normal + r * d->width);
      }
      prepare(&layer->qkv, &plain, rows);
      linear_share(&layer->qkv, &plain, rows, thread, threads, 0, qkv);
      #pragma omp barrier
      #pragma omp for schedule(static)
      for (int64_t k = 0; k < rows * all; k++) {
        rope_and_store(d, row + k / all, l, k % all, qkv + k / all * all * d->dim,
          cos + k / all * d->dim, sin + k / all * d->dim);
      }
      #pragma omp for schedule(static)
      for (int64_t k = 0; k < rows * d->heads; k++) {
        const int64_t r = k / d->heads, head = k % d->heads;
        (d->cache_kind == BF16 ? attend_16 : attend_32)(
          d, row + r, l, head, qkv + (r * all + head) * d->dim, scores, seen + k * d->dim);
      }
      given.plain = seen;
      prepare(&layer->out, &given, rows);
      linear_share(&layer->out, &given, rows, thread, threads, 1, x);
      #pragma omp barrier
      for (int64_t r = 0; r < rows; r++) {
        rms_norm(x + r * d->width, layer->after, d->width, d->epsilon, normal + r * d->width);
      }
      prepare(&layer->gate_up, &plain, rows);
      for (int64_t i = share(d->inner, thread, threads),
        end = share(d->inner, thread + 1, threads); i < end; i += BLOCK)
      {
        for (int64_t r = 0; r < rows; r++) {
          block(&layer->gate_up, &plain, r, i, gate);
          block(&layer->gate_up, &plain, r, i + d->inner, up);
          for (int k = 0; k < BLOCK; k++) {
            inner[r * d->inner + i + k] = up[k] * gate[k] / (1.0f + exponential(-gate[k]));
          }
        }
      }
      #pragma omp barrier
      given.plain = inner;
      prepare(&layer->down, &given, rows);
      linear_share(&layer->down, &given, rows, thread, threads, 1, x);
      #pragma omp barrier
    }
    #pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      rms_norm(x + r * d->width, d->norm, d->width, d->epsilon, x + r * d->width);
    }
  }
}

/* y, rows x n: rows as a norm makes them. */
void rms_norm_rows(
  int64_t rows, int64_t n, const float * x, const float * norm, double epsilon, float * y,
  int64_t n_threads)
{
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t r = 0; r < rows; r++) {
    rms_norm(x + r * n, norm, n, epsilon, y + r * n);
  }
}

/* As `quantize`, with signs as oneDNN takes them. */
static float quantize_signed(const float * x, int64_t n, Number * numbers)
{
  const float scale = quantize(x, n, numbers);
  for (int64_t j = 0; j < n; j++) {
    numbers[j] ^= SHIFT;
  }
  return scale;
}

/* Rows x n numbers, RMS-normed where `norm` is given, in 8 bits with a scale for each row. */
void quantize_rows(
  int64_t rows, int64_t n, const float * x, const float * norm, double epsilon, Number * numbers,
  float * scales, int64_t n_threads)
{
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t r = 0; r < rows; r++) {
    float normal[n];
    if (norm) {
      rms_norm(x + r * n, norm, n, epsilon, normal);
    }
    scales[r] = quantize_signed(norm ? normal : x + r * n, n, numbers + r * n);
  }
}

/* n outputs of one row of a product of 8 bits, from `first` on, by their sums. */
static inline void outputs(
  const Product * by, int64_t first, int64_t n, const int32_t * restrict sums, float scale,
  float * restrict y)
{
  const float * restrict scales = (const float *)by->scales + first;
  for (int64_t i = 0; i < n; i++) {
    y[i] = (float)sums[first + i] * scale * scales[i];
  }
  for (int64_t i = 0; by->bias && i < n; i++) {
    y[i] += by->bias[first + i];
  }
}

/* y, rows x n_out: what a product of 8 bits gives by its sums, added to `base` where given. */
void dequantize_rows(
  const Product * by, int64_t rows, const int32_t * sums, const float * scales, const float * base,
  float * y, int64_t n_threads)
{
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t r = 0; r < rows; r++) {
    float * to = y + r * by->n_out;
    outputs(by, 0, by->n_out, sums + r * by->n_out, scales[r], to);
    for (int64_t i = 0; base && i < by->n_out; i++) {
      to[i] += base[r * by->n_out + i];
    }
  }
}

/* numbers, rows x n_out / 2, in 8 bits: SiLU of the first half of a product, times the second. */
void silu_and_mul_rows(
  const Product * by, int64_t rows, const int32_t * sums, const float * scales, Number * numbers,
  float * into, int64_t n_threads)
{
  const int64_t n = by->n_out / 2;
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t r = 0; r < rows; r++) {
    float gate[n], up[n];
    outputs(by, 0, n, sums + 2 * r * n, scales[r], gate);
    outputs(by, n, n, sums + 2 * r * n, scales[r], up);
    for (int64_t i = 0; i < n; i++) {
      up[i] *= gate[i] / (1.0f + exponential(-gate[i]));
    }
    into[r] = quantize_signed(up, n, numbers + r * n);
  }
}

/* Rotate the first `heads` of `all` of each row; `cos`, `sin`: as in `rope`, rows x dim. */
void rope_rows(
  int64_t rows, int64_t heads, int64_t all, int64_t dim, float * x, const float * cos,
  const float * sin, int64_t n_threads)
{
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t h = 0; h < heads; h++) {
      rope(x + (r * all + h) * dim, dim, cos + r * dim, sin + r * dim);
    }
  }
}

static inline void put(void * y, int64_t at, int64_t kind, float number)
{
  if (kind == BF16) {
    ((uint16_t *)y)[at] = narrowed(number);
  } else {
    ((float *)y)[at] = number;
  }
}

/* y, n_out x n_in, of `kind`: a weight of 8 or 4 bits written out. */
void dequantize_weight(const Product * by, int64_t kind, void * y, int64_t n_threads)
{
  const int64_t n = by->n_in;
  #pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int64_t i = 0; i < by->n_out; i++) {
    if (by->kind != I4) {
      const int8_t * w = (const int8_t *)by->weight + i * n;
      const float scale = ((const float *)by->scales)[i];
      for (int64_t j = 0; j < n; j++) {
        put(y, i * n + j, kind, (float)w[j] * scale);
      }
      continue;
    }
    const uint8_t * w = (const uint8_t *)by->weight + i * (n / 2);
    for (int64_t g = 0; g < n / GROUP; g++) {
      Bytes both;
      memcpy(&both, w + g * sizeof(both), sizeof(both));
      const float scale = group_scale(by, i * (n / GROUP) + g);
      const Floats low = numbers_of(both & 15) * scale, high = numbers_of(both >> 4) * scale;
      for (int j = 0; j < GROUP / 2; j++) {   /* 4 low ones, then 4 high ones */
        const int64_t at = i * n + g * GROUP + j / 4 * 8 + j % 4;
        put(y, at, kind, low[j]);
        put(y, at + 4, kind, high[j]);
      }
    }
  }
}
