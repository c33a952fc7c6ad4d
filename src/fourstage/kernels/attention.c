/* Causal attention of documents laid back to back, without padding: norms on queries and keys,
   rotary positions, scores, softmax and sums in one pass a block of queries. One call works on some
   key heads and their queries, on one thread. */

#include "lanes.h"
#include "product.h"

#define QUERY_BLOCK 24
#define MOST_HEAD 512
/* Its exponential is zero. */
#define HIDDEN -1e30f

/* What both directions read. Rows are cells; a head's numbers stand together in a row. */
typedef struct {
    const float *queries, *keys, *values;
    long query_row, key_row, value_row;
    const float *query_norm, *key_norm; /* [head] weights of RMSNorm, or NULL */
    const float *cos, *sin;             /* [cells, turned / 2], of each cell's position */
    long turned, head, query_heads, key_heads;
    long window; /* keys that a query sees, itself included; 0 is all */
    float scale, epsilon;
    const int64_t *starts; /* [documents + 1] */
    long documents;
} Attention;

typedef struct {
    float *queries, *keys, *values;
    long query_row, key_row, value_row;
    float *query_norm, *key_norm; /* [query_heads, head], [key_heads, head]: added to */
} Gradients;

/* How a head's numbers are read: made even by a norm, turned by positions, times a factor. */
typedef struct {
    const float *norm, *cos, *sin;
    long turned;
    float factor, epsilon;
} Turn;

INLINE Turn query_turn(const Attention *a, long cell) {
    long angle = cell * (a->turned / 2);
    return (Turn){a->query_norm, a->cos + angle, a->sin + angle, a->turned, a->scale, a->epsilon};
}
INLINE Turn key_turn(const Attention *a, long cell) {
    long angle = cell * (a->turned / 2);
    return (Turn){a->key_norm, a->cos + angle, a->sin + angle, a->turned, 1.0f, a->epsilon};
}
static const Turn plain = {NULL, NULL, NULL, 0, 1.0f, 0.0f};

/* One over the root mean square of a head's numbers. */
INLINE float evening(const float *x, long head, float epsilon) {
    return 1.0f / sqrtf(dot(x, x, head) / head + epsilon);
}

/* One head of `time` cells that stand `row` floats apart -> [time, wide], zero behind the head. */
static void take(const float *restrict from, long row, long time, long head, Turn turn,
                 float *restrict to, long wide) {
    long half = turn.turned / 2;
    float even[MOST_HEAD];
    for (long t = 0; t < time; t++, from += row, to += wide) {
        const float *c = turn.cos + t * half, *s = turn.sin + t * half, *x = from;
        if (turn.norm) {
            float scale = evening(from, head, turn.epsilon);
            for (long i = 0; i < head; i++) even[i] = from[i] * scale * turn.norm[i];
            x = even;
        }
        for (long i = 0; i < half; i++) {
            float first = x[i] * turn.factor, second = x[i + half] * turn.factor;
            to[i] = first * c[i] - second * s[i];
            to[i + half] = second * c[i] + first * s[i];
        }
        for (long i = turn.turned; i < head; i++) to[i] = x[i] * turn.factor;
        for (long i = head; i < wide; i++) to[i] = 0;
    }
}

/* The gradient of what `take` read, from that of what it gave: [time, wide] -> rows of `row`.
   With a norm, `x` are the rows that were read and `d_norm` [head] is added to. */
static void give(const float *restrict from, long wide, long time, long head, Turn turn,
                 const float *restrict x, long x_row, float *restrict d_norm, float *restrict to,
                 long row) {
    long half = turn.turned / 2;
    for (long t = 0; t < time; t++, from += wide, to += row, x += x_row) {
        const float *c = turn.cos + t * half, *s = turn.sin + t * half;
        for (long i = 0; i < half; i++) {
            float first = from[i] * turn.factor, second = from[i + half] * turn.factor;
            to[i] = first * c[i] + second * s[i];
            to[i + half] = second * c[i] - first * s[i];
        }
        for (long i = turn.turned; i < head; i++) to[i] = from[i] * turn.factor;
        if (!turn.norm) continue;
        float scale = evening(x, head, turn.epsilon);
        for (long i = 0; i < head; i++) d_norm[i] += to[i] * x[i] * scale;
        for (long i = 0; i < head; i++) to[i] *= turn.norm[i];
        float along = dot(to, x, head) * scale * scale / head;
        for (long i = 0; i < head; i++) to[i] = scale * (to[i] - x[i] * along);
    }
}

/* [time, wide] -> [wide, row], zero behind `time`. */
static void transpose(const float *from, long time, long wide, float *to, long row) {
    for (long t = 0; t < time; t += LANES) {
        long end = t + LANES < time ? t + LANES : time;
        for (long i = 0; i < wide; i++)
            for (long u = t; u < end; u++) to[i * row + u] = from[u * wide + i];
    }
    for (long i = 0; i < wide; i++)
        for (long u = time; u < row; u++) to[i * row + u] = 0;
}

/* First key that the block of queries from `query` on may see, at a multiple of LANES. */
INLINE long first_key(const Attention *a, long query) {
    if (!a->window || query < a->window) return 0;
    return (query - a->window + 1) / LANES * LANES;
}

/* Hides keys behind each query, and those before its window; columns are keys `low` to `high`. */
INLINE void hide(const Attention *a, float *scores, long rows, long query, long low, long high) {
    long seen = high - low;
    for (long i = 0; i < rows; i++) {
        float *line = scores + i * seen;
        for (long k = query + i + 1 - low; k < seen; k++) line[k] = HIDDEN;
        if (a->window)
            for (long k = 0; k < query + i - a->window + 1 - low; k++) line[k] = HIDDEN;
    }
}

/* Scores -> weights that sum to 1, in place; returns the logarithm of the sum of exponentials. */
INLINE float softmax(float *line, long seen) {
    lanes top = load(line), total = all(0.0f);
    for (long k = LANES; k < seen; k += LANES) {
        lanes next = load(line + k);
        top = choose(next > top, next, top);
    }
    float peak = max_of(top);
    for (long k = 0; k < seen; k += LANES) {
        lanes weight = exponential(load(line + k) - all(peak));
        store(line + k, weight);
        total += weight;
    }
    float sum = sum_of(total);
    lanes share = all(1.0f / sum);
    for (long k = 0; k < seen; k += LANES) store(line + k, load(line + k) * share);
    return peak + logf(sum);
}

static long longest(const Attention *a) {
    long most = 0;
    for (long d = 0; d < a->documents; d++) {
        long time = a->starts[d + 1] - a->starts[d];
        most = time > most ? time : most;
    }
    return most;
}

/* Fills `output` [cells, query_heads, head] and `logsumexp` [cells, query_heads] for key heads
   `from` to `to` - 1. Returns 0, or 1 where memory ran out. */
int attention_forward(const Attention *a, long from, long to, float *output, float *logsumexp) {
    long wide = padded(a->head), most = padded(longest(a)), group = a->query_heads / a->key_heads;
    float *memory = room(most * wide * 3 + QUERY_BLOCK * (wide * 2 + most));
    if (!memory) return 1;
    float *keys = memory, *keys_across = keys + most * wide, *values = keys_across + most * wide;
    float *queries = values + most * wide, *sums = queries + QUERY_BLOCK * wide;
    float *scores = sums + QUERY_BLOCK * wide;
    for (long d = 0; d < a->documents; d++) {
        long start = a->starts[d], time = a->starts[d + 1] - start, row = padded(time);
        for (long h = from; h < to; h++) {
            take(a->keys + start * a->key_row + h * a->head, a->key_row, time, a->head,
                 key_turn(a, start), keys, wide);
            transpose(keys, time, wide, keys_across, row);
            take(a->values + start * a->value_row + h * a->head, a->value_row, time, a->head,
                 plain, values, wide);
            for (long g = h * group; g < (h + 1) * group; g++)
                for (long q = 0; q < time; q += QUERY_BLOCK) {
                    long rows = time - q < QUERY_BLOCK ? time - q : QUERY_BLOCK;
                    long low = first_key(a, q), high = padded(q + rows), seen = high - low;
                    long cell = start + q;
                    take(a->queries + cell * a->query_row + g * a->head, a->query_row, rows,
                         a->head, query_turn(a, cell), queries, wide);
                    product(rows, seen, wide, queries, wide, 1, keys_across + low, row, scores,
                            seen, 0);
                    hide(a, scores, rows, q, low, high);
                    for (long i = 0; i < rows; i++)
                        logsumexp[(cell + i) * a->query_heads + g] =
                            softmax(scores + i * seen, seen);
                    product(rows, wide, q + rows - low, scores, seen, 1, values + low * wide, wide,
                            sums, wide, 0);
                    for (long i = 0; i < rows; i++)
                        memcpy(output + ((cell + i) * a->query_heads + g) * a->head,
                               sums + i * wide, a->head * sizeof(float));
                }
        }
    }
    free(memory);
    return 0;
}

/* The gradients of the same heads, from that of the output. The weights are made again from the
   scores and `logsumexp`; `slopes` are first the gradient of the weights, then of the scores. */
int attention_backward(const Attention *a, long from, long to, const float *output,
                       const float *logsumexp, const float *d_output, const Gradients *d) {
    long wide = padded(a->head), most = padded(longest(a)), group = a->query_heads / a->key_heads;
    float *memory = room(most * wide * 6 + QUERY_BLOCK * (wide * 3 + most * 2));
    if (!memory) return 1;
    float *keys = memory, *keys_across = keys + most * wide, *values = keys_across + most * wide;
    float *values_across = values + most * wide, *key_sums = values_across + most * wide;
    float *value_sums = key_sums + most * wide, *queries = value_sums + most * wide;
    float *outgoing = queries + QUERY_BLOCK * wide, *query_sums = outgoing + QUERY_BLOCK * wide;
    float *weights = query_sums + QUERY_BLOCK * wide, *slopes = weights + QUERY_BLOCK * most;
    for (long n = 0; n < a->documents; n++) {
        long start = a->starts[n], time = a->starts[n + 1] - start, row = padded(time);
        for (long h = from; h < to; h++) {
            const float *own_keys = a->keys + start * a->key_row + h * a->head;
            take(own_keys, a->key_row, time, a->head, key_turn(a, start), keys, wide);
            transpose(keys, time, wide, keys_across, row);
            take(a->values + start * a->value_row + h * a->head, a->value_row, time, a->head,
                 plain, values, wide);
            transpose(values, time, wide, values_across, row);
            memset(key_sums, 0, time * wide * sizeof(float));
            memset(value_sums, 0, time * wide * sizeof(float));
            for (long g = h * group; g < (h + 1) * group; g++)
                for (long q = 0; q < time; q += QUERY_BLOCK) {
                    long rows = time - q < QUERY_BLOCK ? time - q : QUERY_BLOCK;
                    long low = first_key(a, q), high = padded(q + rows), seen = high - low;
                    long cell = start + q, held = q + rows - low;
                    const float *own = a->queries + cell * a->query_row + g * a->head;
                    take(own, a->query_row, rows, a->head, query_turn(a, cell), queries, wide);
                    take(d_output + (cell * a->query_heads + g) * a->head,
                         a->query_heads * a->head, rows, a->head, plain, outgoing, wide);
                    product(rows, seen, wide, queries, wide, 1, keys_across + low, row, weights,
                            seen, 0);
                    hide(a, weights, rows, q, low, high);
                    product(rows, seen, wide, outgoing, wide, 1, values_across + low, row, slopes,
                            seen, 0);
                    for (long i = 0; i < rows; i++) {
                        long place = (cell + i) * a->query_heads + g;
                        const float *out = output + place * a->head;
                        float *weight = weights + i * seen, *slope = slopes + i * seen;
                        lanes base = all(logsumexp[place]);
                        lanes drop = all(dot(out, outgoing + i * wide, a->head));
                        for (long k = 0; k < seen; k += LANES) {
                            lanes share = exponential(load(weight + k) - base);
                            store(weight + k, share);
                            store(slope + k, share * (load(slope + k) - drop));
                        }
                    }
                    product(rows, wide, held, slopes, seen, 1, keys + low * wide, wide, query_sums,
                            wide, 0);
                    give(query_sums, wide, rows, a->head, query_turn(a, cell), own, a->query_row,
                         d->query_norm ? d->query_norm + g * a->head : NULL,
                         d->queries + cell * d->query_row + g * a->head, d->query_row);
                    product(held, wide, rows, slopes, 1, seen, queries, wide,
                            key_sums + low * wide, wide, 1);
                    product(held, wide, rows, weights, 1, seen, outgoing, wide,
                            value_sums + low * wide, wide, 1);
                }
            give(key_sums, wide, time, a->head, key_turn(a, start), own_keys, a->key_row,
                 d->key_norm ? d->key_norm + h * a->head : NULL,
                 d->keys + start * d->key_row + h * a->head, d->key_row);
            give(value_sums, wide, time, a->head, plain, NULL, 0, NULL,
                 d->values + start * d->value_row + h * a->head, d->value_row);
        }
    }
    free(memory);
    return 0;
}
