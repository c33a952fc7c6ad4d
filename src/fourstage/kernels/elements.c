/* What stands between the matrix products of a training step, each in one pass over its rows. One
   call works on rows `from` to `to` - 1, on one thread. */

#include "lanes.h"

/* silu(gate) * up; a row of `both` [rows, 2 width] holds the gate's numbers, then those of up. */
void swiglu_forward(long from, long to, const float *both, long width, float *output) {
    for (long r = from; r < to; r++) {
        const float *gate = both + r * 2 * width, *up = gate + width;
        float *out = output + r * width;
        long i = 0;
        for (; i + LANES <= width; i += LANES) {
            lanes x = load(gate + i);
            store(out + i, x / (all(1.0f) + exponential(-x)) * load(up + i));
        }
        for (; i < width; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

void swiglu_backward(long from, long to, const float *both, const float *d_output, long width,
                     float *d_both) {
    for (long r = from; r < to; r++) {
        const float *gate = both + r * 2 * width, *up = gate + width, *d_out = d_output + r * width;
        float *d_gate = d_both + r * 2 * width, *d_up = d_gate + width;
        long i = 0;
        for (; i + LANES <= width; i += LANES) {
            lanes x = load(gate + i), d = load(d_out + i);
            lanes open = all(1.0f) / (all(1.0f) + exponential(-x));
            store(d_up + i, d * x * open);
            store(d_gate + i, d * load(up + i) * open * (all(1.0f) + x * (all(1.0f) - open)));
        }
        for (; i < width; i++) {
            float x = gate[i], open = 1.0f / (1.0f + expf(-x));
            d_up[i] = d_out[i] * x * open;
            d_gate[i] = d_out[i] * up[i] * open * (1.0f + x * (1.0f - open));
        }
    }
}

/* relu(x)^2 over `from` to `to` - 1 numbers. */
void relu2_forward(long from, long to, const float *x, float *output) {
    for (long i = from; i < to; i++) {
        float over = x[i] > 0 || x[i] != x[i] ? x[i] : 0.0f; /* NaN stays NaN */
        output[i] = over * over;
    }
}

void relu2_backward(long from, long to, const float *x, const float *d_output, float *d_x) {
    for (long i = from; i < to; i++) d_x[i] = x[i] > 0 ? 2.0f * x[i] * d_output[i] : 0.0f;
}

/* RMSNorm of rows: `scales` [rows] are kept for the way back. */
void rms_forward(long from, long to, const float *x, const float *weight, float epsilon,
                 long width, float *output, float *scales) {
    for (long r = from; r < to; r++) {
        const float *row = x + r * width;
        float *out = output + r * width;
        float scale = 1.0f / sqrtf(dot(row, row, width) / width + epsilon);
        scales[r] = scale;
        for (long i = 0; i < width; i++) out[i] = row[i] * scale * weight[i];
    }
}

/* `d_weight` [width] is added to. */
void rms_backward(long from, long to, const float *x, const float *weight, const float *scales,
                  const float *d_output, long width, float *d_x, float *d_weight) {
    for (long r = from; r < to; r++) {
        const float *row = x + r * width, *d_out = d_output + r * width;
        float *d_row = d_x + r * width, scale = scales[r];
        lanes total = all(0.0f);
        long i = 0;
        for (; i + LANES <= width; i += LANES) {
            lanes moved = load(d_out + i) * load(row + i);
            store(d_weight + i, load(d_weight + i) + moved * all(scale));
            total += moved * load(weight + i);
        }
        float along = sum_of(total);
        for (; i < width; i++) {
            d_weight[i] += d_out[i] * row[i] * scale;
            along += d_out[i] * row[i] * weight[i];
        }
        along *= scale * scale / width;
        for (i = 0; i < width; i++) d_row[i] = scale * (d_out[i] * weight[i] - row[i] * along);
    }
}

/* Of each row of `logits` [rows, width]: the log-probability of its target, the logarithm of the sum
   of exponentials, and the entropy of its distribution. */
void logprobs_forward(long from, long to, const float *logits, const int64_t *targets, long width,
                      float *logprobs, float *logsumexp, float *entropies) {
    for (long r = from; r < to; r++) {
        const float *row = logits + r * width;
        float peak = row[0];
        long i = 0;
        if (width >= LANES) {
            lanes top = load(row);
            for (i = LANES; i + LANES <= width; i += LANES) {
                lanes next = load(row + i);
                top = choose(next > top, next, top);
            }
            peak = max_of(top);
        }
        for (; i < width; i++) peak = row[i] > peak ? row[i] : peak;
        lanes totals = all(0.0f), drops = all(0.0f);
        for (i = 0; i + LANES <= width; i += LANES) {
            lanes below = load(row + i) - all(peak), share = exponential(below);
            totals += share;
            /* A share of zero has no part in the entropy, however far below the peak it is. */
            drops += share * choose(share > all(0.0f), below, all(0.0f));
        }
        float sum = sum_of(totals), drop = sum_of(drops);
        for (; i < width; i++) {
            float below = row[i] - peak, share = expf(below);
            sum += share;
            drop += share > 0 ? share * below : 0;
        }
        logsumexp[r] = peak + logf(sum);
        logprobs[r] = row[targets[r]] - logsumexp[r];
        entropies[r] = logf(sum) - drop / sum;
    }
}

/* Logits -> their gradient, in place, from those of both: d_logprob 1[target] + (d_logsumexp -
   d_logprob) softmax. */
void logprobs_backward(long from, long to, float *logits, const int64_t *targets,
                       const float *logsumexp, const float *d_logprobs, const float *d_logsumexp,
                       long width) {
    for (long r = from; r < to; r++) {
        float *row = logits + r * width, factor = d_logsumexp[r] - d_logprobs[r];
        lanes base = all(logsumexp[r]), factors = all(factor);
        long i = 0;
        for (; i + LANES <= width; i += LANES)
            store(row + i, exponential(load(row + i) - base) * factors);
        for (; i < width; i++) row[i] = factor * expf(row[i] - logsumexp[r]);
        row[targets[r]] += d_logprobs[r];
    }
}
