// overhead.cpp: what the C ABI costs over the back end alone, in one process, in turns.
//
//     destseg_overhead ARTIFACT BACKEND CALLS [THREADS]
//
// Three contenders score the same frame of the artifact's own size, interleaved: "bare", the back
// end's lane with its pixels in place; "abi", destseg_infer with map and score copied out; and
// "abi-null", destseg_infer refused for its count, which is the border alone. Prints JSON: for
// each the milliseconds of all calls, in order.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backend.hpp"
#include "destseg.h"

namespace {

using Clock = std::chrono::steady_clock;

// Threads of the call before spin on for a while and would take a core from this one.
constexpr auto kSettle = std::chrono::milliseconds(100);

template <typename Work>
double milliseconds(const Work &work) {
  std::this_thread::sleep_for(kSettle);
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
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

int measure(const char *path, const char *backend, int calls, int threads) {
  const destseg_core::Spec spec = destseg_core::read_spec(path);
  destseg_core::Request request;
  request.path = path, request.backend = backend, request.device = "cpu";
  request.threads = threads, request.precision = "fp32";
  const auto bare = destseg_core::open_backend(request, spec);
  const auto lane = bare->open_lane();
  destseg_options options{};
  options.struct_size = sizeof options, options.threads = threads, options.parallel = 1;
  options.backend = backend, options.device = "cpu";
  destseg_predictor *predictor = nullptr;
  check(destseg_open(path, &options, &predictor));

  std::vector<std::uint8_t> pixels(spec.input.pixels() * 3);
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i * 7 % 251);
  destseg_frame frame{};
  frame.struct_size = sizeof frame, frame.format = DESTSEG_RGB8, frame.pixels = pixels.data();
  frame.height = spec.input.height, frame.width = spec.input.width;
  std::memcpy(lane->images(1), pixels.data(), pixels.size());
  std::vector<float> map(spec.map.pixels());
  destseg_result result{};
  result.struct_size = sizeof result;

  const auto run_bare = [&] { lane->run(1); };
  const auto run_abi = [&] {
    check(destseg_infer(predictor, &frame, 1, &result, map.data(), map.size()));
  };
  const auto run_null = [&] { destseg_infer(predictor, &frame, 0, &result, map.data(), 0); };
  for (int i = 0; i < 5; ++i) run_bare(), run_abi(), run_null();
  if (std::memcmp(map.data(), lane->maps(), map.size() * sizeof(float)) != 0)
    throw std::runtime_error("the contenders differ");
  std::vector<double> first, second, third;
  for (int i = 0; i < calls; ++i) {  // whoever comes second may find warmer caches: in turns
    if (i % 2 == 0) first.push_back(milliseconds(run_bare));
    second.push_back(milliseconds(run_abi));
    if (i % 2 == 1) first.push_back(milliseconds(run_bare));
    third.push_back(milliseconds(run_null));
  }
  std::printf("{\n");
  print("bare", first, ",");
  print("abi", second, ",");
  print("abi-null", third, "");
  std::printf("}\n");
  destseg_close(predictor);
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4) return std::fprintf(stderr, "Usage: destseg_overhead ARTIFACT BACKEND CALLS\n"), 2;
  try {
    return measure(argv[1], argv[2], std::max(1, std::atoi(argv[3])),
                   argc > 4 ? std::atoi(argv[4]) : 0);
  } catch (const std::exception &error) {
    return std::fprintf(stderr, "Error: %s\n", error.what()), 1;
  }
}
