// What lies between two convolutions of the half network: models/fused.py says what each computes.
//
// Values are halves (or bfloat16 with -DBFLOAT=1), read and written eight at a time, channels last;
// arithmetic is float's. A thread makes eight channels of one pixel and shares nothing, so a grid
// only has to have enough threads. Numbers of channels are multiples of 8.
//
// Compiles with NVRTC (hence no #include) and, for tests, with g++ and tests/fakes/host_kernel.h.
#ifndef BFLOAT
#error "pass -DBFLOAT=0 or 1, as destseg_deploy/runtime/torch_gpu/layers.py does"
#endif
#ifdef __CUDACC_RTC__
#define DEVICE static __device__ __forceinline__
#else
#include <cmath>
#include <cstring>
#define DEVICE static inline
#endif

typedef unsigned short half;
typedef unsigned int word;
typedef unsigned long long offset;

struct __attribute__((aligned(16))) Eight {
    word pairs[4];
};

union Bits {
    float value;
    word bits;
};

#if BFLOAT
DEVICE float widen(half x)
{
    Bits found;
    found.bits = (word)x << 16;
    return found.value;
}
DEVICE half narrow(float x)
{
    Bits given;
    given.value = x;
    if (x != x) return 0x7fff;
    return (half)((given.bits + 0x7fff + (given.bits >> 16 & 1)) >> 16);
}
#elif defined(__CUDACC_RTC__)
DEVICE float widen(half x)
{
    float found;
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(x));
    return found;
}
DEVICE half narrow(float x)
{
    half found;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(found) : "f"(x));
    return found;
}
#else
DEVICE float widen(half x)
{
    _Float16 found;
    std::memcpy(&found, &x, 2);
    return (float)found;
}
DEVICE half narrow(float x)
{
    const _Float16 rounded = (_Float16)x;
    half found;
    std::memcpy(&found, &rounded, 2);
    return found;
}
#endif

DEVICE void unpack(const Eight &packed, float *values)
{
    for (int i = 0; i < 4; ++i) {
        values[2 * i] = widen((half)(packed.pairs[i] & 0xffff));
        values[2 * i + 1] = widen((half)(packed.pairs[i] >> 16));
    }
}

DEVICE Eight pack(const float *values)
{
    Eight packed;
    for (int i = 0; i < 4; ++i)
        packed.pairs[i] = narrow(values[2 * i]) | (word)narrow(values[2 * i + 1]) << 16;
    return packed;
}

DEVICE offset this_thread() { return (offset)blockIdx.x * blockDim.x + threadIdx.x; }

// Which eight channels of which pixel of which frame a thread makes.
struct Place {
    int eight, x, y;
    offset pixel, frame;
};

DEVICE Place locate(offset thread, int eights, int height, int width)
{
    Place found;
    found.eight = (int)(thread % eights);
    found.pixel = thread / eights;
    found.x = (int)(found.pixel % width);
    found.y = (int)(found.pixel / width % height);
    found.frame = found.pixel / width / height;
    return found;
}

// Where bilinear interpolation with half-pixel centres reads along an axis.
struct Taps {
    int low, high;
    float weight;  // of high
};

DEVICE Taps taps(int target, int source_size, int target_size)
{
    const float scale = (float)source_size / (float)target_size;
    const float at = scale * ((float)target + 0.5f) - 0.5f;
    const float source = at < 0.0f ? 0.0f : at;
    Taps found;
    found.low = (int)source;
    found.high = found.low + (found.low < source_size - 1 ? 1 : 0);
    found.weight = source - (float)found.low;
    return found;
}

DEVICE float blend(float a, float b, float c, float d, const Taps &y, const Taps &x)
{
    return (1.0f - y.weight) * ((1.0f - x.weight) * a + x.weight * b) +
           y.weight * ((1.0f - x.weight) * c + x.weight * d);
}

// float (pixels, 3) -> (pixels, 16): high, low, high, 1, 1, 0 ...; a thread makes one pixel.
extern "C" __global__ void split_image(const float *__restrict__ image, Eight *__restrict__ split, offset pixels)
{
    const offset pixel = this_thread();
    if (pixel >= pixels) return;
    float first[8], second[8] = {0, 1, 1, 0, 0, 0, 0, 0};
    for (int i = 0; i < 3; ++i) {
        const float value = image[3 * pixel + i];
        const float high = widen(narrow(value));
        first[i] = high;
        first[3 + i] = value - high;
        if (i < 2) first[6 + i] = high;
        else second[0] = high;
    }
    split[2 * pixel] = pack(first);
    split[2 * pixel + 1] = pack(second);
}

// The largest of 3 x 3 with a step of 2 and a border of 1: (N, height, width, C) to half of that.
extern "C" __global__ void max_pool(
    const Eight *__restrict__ source, Eight *__restrict__ target, int height, int width, int eights,
    int target_height, int target_width, offset count)
{
    const offset thread = this_thread();
    if (thread >= count) return;
    const Place at = locate(thread, eights, target_height, target_width);
    float largest[8], values[8];
    bool any = false;
    for (int row = 2 * at.y - 1; row <= 2 * at.y + 1; ++row) {
        if (row < 0 || row >= height) continue;
        for (int column = 2 * at.x - 1; column <= 2 * at.x + 1; ++column) {
            if (column < 0 || column >= width) continue;
            unpack(source[((at.frame * height + row) * width + column) * eights + at.eight], values);
            for (int i = 0; i < 8; ++i)
                if (!any || values[i] > largest[i] || values[i] != values[i]) largest[i] = values[i];
            any = true;
        }
    }
    target[thread] = pack(largest);
}

// Bilinear: (N, height, width, C) to (N, target_height, target_width, C).
extern "C" __global__ void upsample(
    const Eight *__restrict__ source, Eight *__restrict__ target, int height, int width, int eights,
    int target_height, int target_width, offset count)
{
    const offset thread = this_thread();
    if (thread >= count) return;
    const Place at = locate(thread, eights, target_height, target_width);
    const Taps x = taps(at.x, width, target_width), y = taps(at.y, height, target_height);
    const offset frame = at.frame * height;
    float a[8], b[8], c[8], d[8];
    unpack(source[((frame + y.low) * width + x.low) * eights + at.eight], a);
    unpack(source[((frame + y.low) * width + x.high) * eights + at.eight], b);
    unpack(source[((frame + y.high) * width + x.low) * eights + at.eight], c);
    unpack(source[((frame + y.high) * width + x.high) * eights + at.eight], d);
    for (int i = 0; i < 8; ++i) a[i] = blend(a[i], b[i], c[i], d[i], y, x);
    target[thread] = pack(a);
}

// -t s / (|t| |s|) of each pixel's vectors (pixels, C). To float (pixels, C) where `wide` is given,
// else to halves, from an eight on of pixels that are `total` eights long.
extern "C" __global__ void products(
    const Eight *__restrict__ teacher, const Eight *__restrict__ student, float *__restrict__ wide,
    Eight *__restrict__ narrow_target, int eights, int total, offset count)
{
    const offset thread = this_thread();
    if (thread >= count) return;
    const int eight = (int)(thread % eights);
    const offset pixel = thread / eights;
    float t[8], s[8], made[8], t_squares = 0.0f, s_squares = 0.0f;
    for (int i = 0; i < eights; ++i) {  // neighbours read the same, so it comes from the cache
        unpack(teacher[pixel * eights + i], t);
        unpack(student[pixel * eights + i], s);
        for (int j = 0; j < 8; ++j) {
            t_squares += t[j] * t[j];
            s_squares += s[j] * s[j];
        }
    }
    const float t_length = sqrtf(t_squares) + 1e-12f, s_length = sqrtf(s_squares) + 1e-12f;
    unpack(teacher[thread], t);
    unpack(student[thread], s);
    for (int i = 0; i < 8; ++i) made[i] = -(t[i] / t_length) * (s[i] / s_length);
    if (wide)
        for (int i = 0; i < 8; ++i) wide[8 * thread + i] = made[i];
    else
        narrow_target[pixel * total + eight] = pack(made);
}

// Bilinear from float (N, height, width, C) to halves, `begin` eights into pixels of `total` eights.
extern "C" __global__ void upsample_products(
    const float *__restrict__ source, Eight *__restrict__ target, int height, int width, int eights,
    int target_height, int target_width, int begin, int total, offset count)
{
    const offset thread = this_thread();
    if (thread >= count) return;
    const Place at = locate(thread, eights, target_height, target_width);
    const Taps x = taps(at.x, width, target_width), y = taps(at.y, height, target_height);
    const offset frame = at.frame * height;
    const float *a = source + (((frame + y.low) * width + x.low) * eights + at.eight) * 8;
    const float *b = source + (((frame + y.low) * width + x.high) * eights + at.eight) * 8;
    const float *c = source + (((frame + y.high) * width + x.low) * eights + at.eight) * 8;
    const float *d = source + (((frame + y.high) * width + x.high) * eights + at.eight) * 8;
    float made[8];
    for (int i = 0; i < 8; ++i) made[i] = blend(a[i], b[i], c[i], d[i], y, x);
    target[at.pixel * total + begin + at.eight] = pack(made);
}

// One vector for each frame (N, C), which every pixel gets, and three of (N, pixels, C): the four of
// a pixel side by side, (N, pixels, 4 C).
extern "C" __global__ void concatenate(
    const Eight *__restrict__ pooled, const Eight *__restrict__ a, const Eight *__restrict__ b,
    const Eight *__restrict__ c, Eight *__restrict__ target, int eights, int pixels, offset count)
{
    const offset thread = this_thread();
    if (thread >= count) return;
    const offset pixel = thread / (4 * eights);
    const int within = (int)(thread % (4 * eights)), branch = within / eights, eight = within % eights;
    if (branch == 0) {
        target[thread] = pooled[pixel / pixels * eights + eight];
        return;
    }
    const Eight *source = branch == 1 ? a : branch == 2 ? b : c;
    target[thread] = source[pixel * eights + eight];
}

// The last convolution and its sigmoid: (pixels, C) to float (pixels); a thread makes one pixel.
extern "C" __global__ void probability(
    const Eight *__restrict__ source, const float *__restrict__ weight, const float *__restrict__ bias,
    float *__restrict__ target, int eights, offset pixels)
{
    const offset pixel = this_thread();
    if (pixel >= pixels) return;
    float sum = bias[0], values[8];
    for (int i = 0; i < eights; ++i) {
        unpack(source[pixel * eights + i], values);
        for (int j = 0; j < 8; ++j) sum += weight[8 * i + j] * values[j];
    }
    target[pixel] = 1.0f / (1.0f + expf(-sum));
}
