// THE resize on a GPU, to the bit what destseg_deploy/data/resize.py computes: antialiased
// bilinear, along the width, then along the height, rounded to whole grey levels after each pass.
//
// The weights are whole multiples of 2^-16, so both passes are integer arithmetic: a sum is at most
// 255 * 2^16 + 2^15, far below 2^32, and floor(x + 0.5) is an addition and a shift.
//
// Pixels are bytes. Frames have 1 channel (grey) or 3, rows that begin `stride` bytes apart, and lie
// `frame_bytes` apart in a batch; the batch is blockIdx.z. Between the passes, `rows` holds
// (count, height, target_width, channels). The result is (count, target_height, target_width, 3) RGB.
//
// An axis is described by `starts` (target) and `weights` (taps, target): pixel t of the target is
// the sum over k of weights[k * target + t] times pixel starts[t] + k of the source. Every target
// pixel has the same number of taps, inside the source, so that no thread takes another path; weights
// that it does not need are 0. Starts never decrease. bands.py makes both, and resize.py launches.
//
// The same file compiles with nvcc, with NVRTC (hence no #include) and, for tests, with g++ and
// tests/fakes/host_kernel.h. BLOCK threads, a multiple of 3 so that a pixel's channels share a block;
// ROWS source rows share each weight that is read; CHUNK bytes of a row are staged at once.
#if !defined(BLOCK) || !defined(ROWS) || !defined(CHUNK)
#error "pass -DBLOCK=... -DROWS=... -DCHUNK=..., as destseg_deploy/runtime/cuda/resize.py does"
#endif
#if BLOCK % 3 || CHUNK % 3
#error "BLOCK and CHUNK hold whole pixels of three channels"
#endif

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long long offset;  // a batch of large frames passes 4 GiB

#define HALF (1u << 15)

// Along the width. Grid: target pixels / (BLOCK / channels), source rows / ROWS, frames.
//
// A thread makes one channel of one target pixel, in ROWS rows. Neighbours write neighbouring bytes.
// They read bytes that lie a scale factor apart, which would waste most of each memory transaction,
// so the block first copies the bytes it needs to shared memory, neighbour by neighbour. Wide bands
// need more than fits, hence the loop over chunks.
extern "C" __global__ void resize_rows(
    const byte *__restrict__ frames, offset frame_bytes, offset stride, int height, int channels,
    const int *__restrict__ starts, const word *__restrict__ weights, int taps, int target_width,
    byte *__restrict__ rows)
{
    __shared__ byte staged[ROWS][CHUNK];
    const int thread = (int)threadIdx.x;
    const int tile = BLOCK / channels;  // target pixels of this block
    const int first = (int)blockIdx.x * tile;
    const int last = first + tile < target_width ? first + tile - 1 : target_width - 1;
    const int end = starts[last] + taps;  // one past the last source pixel that the tile needs
    const int chunk = CHUNK / channels;

    const int pixel = first + thread / channels;
    const int channel = thread % channels;
    const bool writes = pixel <= last;
    const int start = writes ? starts[pixel] : 0;
    const int top = (int)blockIdx.y * ROWS;
    const byte *source = frames + blockIdx.z * frame_bytes + (offset)top * stride;

    word sums[ROWS] = {};
    for (int begin = starts[first]; begin < end; begin += chunk) {
        const int stop = begin + chunk < end ? begin + chunk : end;
        const int bytes = (stop - begin) * channels;
        for (int row = 0; row < ROWS && top + row < height; ++row) {
            const byte *from = source + row * stride + (offset)begin * channels;
            for (int i = thread; i < bytes; i += BLOCK) staged[row][i] = from[i];
        }
        __syncthreads();
        if (writes) {
            const int low = start > begin ? start : begin;
            const int high = start + taps < stop ? start + taps : stop;
            for (int x = low; x < high; ++x) {
                const word weight = weights[(offset)(x - start) * target_width + pixel];
                const int at = (x - begin) * channels + channel;
                // rows below the frame hold no pixels; what is added up there is never written
                for (int row = 0; row < ROWS; ++row) sums[row] += weight * staged[row][at];
            }
        }
        __syncthreads();  // before the next chunk overwrites this one
    }
    if (!writes) return;
    for (int row = 0; row < ROWS && top + row < height; ++row) {
        const offset line = (offset)blockIdx.z * height + top + row;
        rows[(line * target_width + pixel) * channels + channel] = (byte)((sums[row] + HALF) >> 16);
    }
}

// Along the height, and to RGB. Grid: bytes of a row / BLOCK, target rows, frames.
//
// Neighbours read and write neighbouring bytes, and share each weight. `reverse` turns BGR into RGB.
// Grey was resized once and is written three times, which is what resizing three equal channels gives.
extern "C" __global__ void resize_columns(
    const byte *__restrict__ rows, int height, int target_width, int channels, int reverse,
    const int *__restrict__ starts, const word *__restrict__ weights, int taps, int target_height,
    byte *__restrict__ images)
{
    const int pitch = target_width * channels;
    const int at = (int)(blockIdx.x * BLOCK + threadIdx.x);
    const int y = (int)blockIdx.y;
    if (at >= pitch) return;
    const byte *from = rows + ((offset)blockIdx.z * height + starts[y]) * pitch + at;
    word sum = HALF;
    for (int k = 0; k < taps; ++k) {
        sum += weights[(offset)k * target_height + y] * from[(offset)k * pitch];
    }
    const byte level = (byte)(sum >> 16);
    const offset line = (offset)blockIdx.z * target_height + y;
    byte *image = images + (line * target_width + at / channels) * 3;
    if (channels == 1) {
        image[0] = level;
        image[1] = level;
        image[2] = level;
    } else {
        image[reverse ? 2 - at % 3 : at % 3] = level;
    }
}

// One anomaly map to another size, bilinearly: along the width, then along the height, in float32.
// Grid: target pixels / BLOCK, target rows.
//
// The maps are small (256 x 256) and read through the cache, so nothing is staged. Bands hold one or
// two weights, so the sum over k is what cv2.resize adds up, in its order.
extern "C" __global__ void resize_map(
    const float *__restrict__ map, int width,
    const int *__restrict__ column_starts, const float *__restrict__ column_weights, int column_taps,
    const int *__restrict__ row_starts, const float *__restrict__ row_weights, int row_taps,
    int target_width, int target_height, float *__restrict__ result)
{
    const int x = (int)(blockIdx.x * BLOCK + threadIdx.x);
    const int y = (int)blockIdx.y;
    if (x >= target_width) return;
    float value = 0;
    for (int j = 0; j < row_taps; ++j) {
        const float *from = map + (offset)(row_starts[y] + j) * width + column_starts[x];
        float along = 0;
        for (int i = 0; i < column_taps; ++i) {
            along += column_weights[(offset)i * target_width + x] * from[i];
        }
        value += row_weights[(offset)j * target_height + y] * along;
    }
    result[(offset)y * target_width + x] = value;
}
