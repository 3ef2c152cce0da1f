// Runs a CUDA kernel on one core of the host: the few names that resize.cu uses, as g++ sees them.
//
// Each thread of a block is a fiber with a stack of its own. A fiber runs until a barrier or its
// end, then the next one; so a missing barrier shows as wrong results, always in the same way.
// A barrier that only some of the threads reach is reported.
#pragma once
#include <ucontext.h>

#include <cstddef>
#include <utility>
#include <vector>

struct Coordinates {
    unsigned x, y, z;
};
static Coordinates threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __shared__ static
#define __syncthreads() host::wait()

namespace host {

constexpr std::size_t STACK = 32 * 1024;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::size_t running;
static std::size_t waiting;  // fibers that stopped at a barrier in this round
static void (*body)(void **);
static void **parameters;

inline void set_thread()
{
    const unsigned index = (unsigned)running;
    threadIdx.x = index % blockDim.x;
    threadIdx.y = index / blockDim.x % blockDim.y;
    threadIdx.z = index / blockDim.x / blockDim.y;
}

// Makes the next fiber the running one; returns where it goes on.
inline ucontext_t *next()
{
    if (++running == fibers.size()) return &scheduler;
    set_thread();
    return &fibers[running].context;
}

inline void wait()
{
    ++waiting;
    ucontext_t *here = &fibers[running].context;
    swapcontext(here, next());
}

inline void enter()
{
    body(parameters);
    next();  // uc_link goes there
}

// Runs one block, round by round; false when threads part at a barrier.
inline bool run_block()
{
    for (std::size_t i = 0; i < fibers.size(); ++i) {
        ucontext_t &context = fibers[i].context;
        getcontext(&context);
        context.uc_stack.ss_sp = fibers[i].stack.data();
        context.uc_stack.ss_size = STACK;
        context.uc_link = i + 1 < fibers.size() ? &fibers[i + 1].context : &scheduler;
        makecontext(&context, enter, 0);
    }
    do {
        running = waiting = 0;
        set_thread();
        swapcontext(&scheduler, &fibers[0].context);
    } while (waiting == fibers.size());
    return waiting == 0;
}

// Kernel parameters as cuLaunchKernel takes them: an address for each.
template <auto Kernel>
struct Launch;

template <class... A, void (*Kernel)(A...)>
struct Launch<Kernel> {
    template <std::size_t... I>
    static void apply(void **arguments, std::index_sequence<I...>)
    {
        Kernel(*static_cast<A *>(arguments[I])...);
    }
    static void call(void **arguments) { apply(arguments, std::index_sequence_for<A...>{}); }

    // Number of parameters; their sizes go to `sizes`.
    static int signature(int *sizes)
    {
        int i = 0;
        ((sizes[i++] = (int)sizeof(A)), ...);
        return i;
    }

    // geometry: grid x, y, z, block x, y, z. Returns 0, or 1 when threads part at a barrier.
    static int run(const unsigned *geometry, void **arguments)
    {
        gridDim = {geometry[0], geometry[1], geometry[2]};
        blockDim = {geometry[3], geometry[4], geometry[5]};
        body = call;
        parameters = arguments;
        fibers.resize(blockDim.x * blockDim.y * blockDim.z);
        for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                    if (!run_block()) return 1;
        return 0;
    }
};

}  // namespace host

#define EXPORT_KERNEL(name)                                                              \
    extern "C" int launch_##name(const unsigned *geometry, void **arguments)             \
    {                                                                                    \
        return host::Launch<name>::run(geometry, arguments);                             \
    }                                                                                    \
    extern "C" int signature_##name(int *sizes) { return host::Launch<name>::signature(sizes); }
