// overhead.cpp: what the C ABI costs over the back end alone, in one process, in turns.
//
//     destseg_overhead ARTIFACT BACKEND CALLS [THREADS] [REST_MS] [SEED]
//
// Four contenders score the same frame of the artifact's own size, once in each turn, in random order:
// "bare", the back end's lane with its pixels in place; "bare-again", the same of a second opening, so
// that the difference of two openings is known; "abi", destseg_infer with map and score copied out; and
// "abi-null", destseg_infer refused for its count, which is the border alone. Prints JSON: for each the
// milliseconds of all calls, in the order of the turns.
//
// Worker threads of OpenVINO look for work for a while after a call, and would take a core from the next
// contender: let it rest with more than one thread. Those of ONNX Runtime sleep at once here.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backend.hpp"
#include "destseg.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Contender {
  const char *name;
  std::function<void()> run;
  std::vector<double> times;
};

struct Plan {
  int calls, threads, rest_ms;
  unsigned seed;
};

double milliseconds(const std::function<void()> &work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

void take_turns(std::vector<Contender> &contenders, const Plan &plan) {
  constexpr int kWarmUp = 2;
  for (int i = 0; i < kWarmUp; ++i)
    for (const Contender &contender : contenders) contender.run();
  std::mt19937 random(plan.seed);
  std::vector<std::size_t> order(contenders.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (int i = 0; i < plan.calls; ++i) {  // whoever comes second may find warmer caches
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t next : order) {
      if (plan.rest_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(plan.rest_ms));
      contenders[next].times.push_back(milliseconds(contenders[next].run));
    }
  }
}

void print(const char *name, const std::vector<double> &values, const char *end) {
  std::printf("  \"%s\": [", name);
  for (std::size_t i = 0; i < values.size(); ++i)
    std::printf("%s%.6f", i == 0 ? "" : ", ", values[i]);
  std::printf("]%s\n", end);
}

void check(destseg_status status) {
  if (status != DESTSEG_OK) throw std::runtime_error(destseg_last_error());
}

// The back end alone, with a frame's pixels in place.
struct Bare {
  Bare(const destseg_core::Request &request, const destseg_core::Spec &spec,
       const std::vector<std::uint8_t> &pixels)
      : backend(destseg_core::open_backend(request, spec)), lane(backend->open_lane()) {
    std::memcpy(lane->images(1), pixels.data(), pixels.size());
  }
  std::unique_ptr<destseg_core::Backend> backend;
  std::unique_ptr<destseg_core::Lane> lane;
};

void measure(const char *path, const char *backend, const Plan &plan) {
  const destseg_core::Spec spec = destseg_core::read_spec(path);
  destseg_core::Request request;
  request.path = path, request.backend = backend, request.device = "cpu";
  request.threads = plan.threads, request.precision = "fp32", request.spinning = false;
  std::vector<std::uint8_t> pixels(spec.input.pixels() * 3);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i * 7 % 251);
  const Bare bare(request, spec, pixels), again(request, spec, pixels);
  destseg_options options{};
  options.struct_size = sizeof options, options.threads = plan.threads, options.parallel = 1;
  options.backend = backend, options.device = "cpu";
  options.no_spinning = request.backend == "onnxruntime" ? 1 : 0;
  destseg_predictor *predictor = nullptr;
  check(destseg_open(path, &options, &predictor));
  const std::unique_ptr<destseg_predictor, void (*)(destseg_predictor *)> opened(predictor,
                                                                                 destseg_close);
  destseg_frame frame{};
  frame.struct_size = sizeof frame, frame.format = DESTSEG_RGB8, frame.pixels = pixels.data();
  frame.height = spec.input.height, frame.width = spec.input.width;
  std::vector<float> map(spec.map.pixels());
  destseg_result result{};
  result.struct_size = sizeof result;

  std::vector<Contender> contenders{
      {"bare", [&] { bare.lane->run(1); }, {}},
      {"bare-again", [&] { again.lane->run(1); }, {}},
      {"abi",
       [&] { check(destseg_infer(predictor, &frame, 1, &result, map.data(), map.size())); }, {}},
      {"abi-null", [&] { destseg_infer(predictor, &frame, 0, &result, map.data(), 0); }, {}}};
  take_turns(contenders, plan);
  for (const Bare *one : {&bare, &again})
    if (std::memcmp(map.data(), one->lane->maps(), map.size() * sizeof(float)) != 0)
      throw std::runtime_error("the contenders differ");
  std::printf("{\n");
  for (const Contender &one : contenders)
    print(one.name, one.times, &one == &contenders.back() ? "" : ",");
  std::printf("}\n");
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4)
    return std::fprintf(stderr, "Usage: destseg_overhead ARTIFACT BACKEND CALLS [THREADS] "
                                "[REST_MS] [SEED]\n"), 2;
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  try {
    measure(argv[1], argv[2], {std::max(1, number(3, 1)), number(4, 1), number(5, 0),
                               static_cast<unsigned>(number(6, 0))});
    return 0;
  } catch (const std::exception &error) {
    return std::fprintf(stderr, "Error: %s\n", error.what()), 1;
  }
}
