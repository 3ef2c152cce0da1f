// stress.cpp: uses the C ABI hard and checks every answer; run it under sanitizers.
//
//     destseg_stress threads ARTIFACT ROUNDS    several threads on one handle, and on many; handles
//                                               closed under running calls
//     destseg_stress memory ARTIFACT ROUNDS     that many inferences, every other by a ticket; prints the resident memory
//                                               in KiB after a tenth of them and at the end
//     destseg_stress hostile FOLDER             opens every .onnx and .engine in a folder, and
//                                               uses what opens; what is refused has one line.
//                                               Prints how many were refused and how many not
//
// The environment variable DESTSEG_STRESS_BACKEND names the back end; without it, the artifact does.
// Prints nothing and exits with 0 when all is well (but the numbers above).
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "destseg.h"

namespace {

std::atomic<int> failures{0};

void complain(const std::string &what) {
  ++failures;
  std::fprintf(stderr, "%s (last error: %s)\n", what.c_str(), destseg_last_error());
}

// Frames of and about a predictor's own size, each different, and the answers that a first call gave.
struct Case {
  destseg_predictor *predictor = nullptr;
  destseg_info info{};
  std::vector<std::vector<std::uint8_t>> pixels;
  std::vector<destseg_frame> frames;
  std::vector<destseg_result> results;
  std::vector<float> maps;
};

constexpr int kFrames = 5;

void fill(Case &test) {
  for (int i = 0; i < kFrames; ++i) {
    const int more = test.info.any_size != 0 ? i : 0;  // and larger ones, which are resized
    const int height = test.info.height + more, width = test.info.width + 2 * more;
    test.pixels.emplace_back(static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3);
    unsigned state = 12345u + static_cast<unsigned>(i);
    for (std::uint8_t &value : test.pixels.back())
      value = static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
    destseg_frame frame{};
    frame.struct_size = sizeof frame, frame.format = DESTSEG_RGB8;
    frame.pixels = test.pixels.back().data(), frame.height = height, frame.width = width;
    test.frames.push_back(frame);
  }
}

bool infer(destseg_predictor *predictor, const Case &test, std::vector<destseg_result> &results,
           std::vector<float> &maps) {
  results.resize(kFrames);
  results[0].struct_size = sizeof(destseg_result);
  maps.resize(static_cast<std::size_t>(kFrames) * static_cast<std::size_t>(test.info.map_height) *
              static_cast<std::size_t>(test.info.map_width));
  return destseg_infer(predictor, test.frames.data(), kFrames, results.data(), maps.data(),
                       maps.size()) == DESTSEG_OK;
}

destseg_status open_chosen(const char *path, destseg_predictor **predictor) {
  destseg_options options{};
  options.struct_size = sizeof options;
  options.backend = std::getenv("DESTSEG_STRESS_BACKEND");
  return destseg_open(path, &options, predictor);
}

bool open(const char *path, Case &test) {
  test.info.struct_size = sizeof test.info;
  if (open_chosen(path, &test.predictor) == DESTSEG_OK &&
      destseg_get_info(test.predictor, &test.info) == DESTSEG_OK) {
    fill(test);
    if (infer(test.predictor, test, test.results, test.maps)) return true;
  }
  complain(std::string(path) + ": does not open and run");
  return false;
}

// The same frames must give the same bits, whoever else is running.
void repeat(destseg_predictor *predictor, const Case &test, int rounds) {
  std::vector<destseg_result> results;
  std::vector<float> maps;
  for (int i = 0; i < rounds; ++i) {
    if (!infer(predictor, test, results, maps)) return complain("an inference failed");
    if (maps != test.maps) return complain("a map changed");
    for (std::size_t k = 0; k < results.size(); ++k)
      if (results[k].score != test.results[k].score) return complain("a score changed");
  }
}

template <typename Work>
void in_threads(int count, const Work &work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work);
  for (std::thread &thread : threads) thread.join();
}

// Tickets of one frame each, several open at a time; the answers are those of the first call.
void hand_over(destseg_predictor *predictor, const Case &test, int rounds) {
  std::vector<float> map(test.maps.size() / kFrames);
  destseg_result result{};
  result.struct_size = sizeof result;
  for (int i = 0; i < rounds; ++i) {
    std::uint64_t open[kFrames] = {};
    for (std::size_t k = 0; k < kFrames; ++k)
      if (destseg_submit(predictor, &test.frames[k], 1, 60000, &open[k]) != DESTSEG_OK)
        return complain("frames were not taken");
    for (std::size_t k = kFrames; k-- > 0;) {
      if (destseg_wait(predictor, open[k], 60000, 1, &result, map.data(), map.size()) != DESTSEG_OK)
        return complain("a ticket failed");
      if (!std::equal(map.begin(), map.end(), test.maps.begin() +
                      static_cast<std::ptrdiff_t>(k * map.size())))
        return complain("a map of a ticket changed");
    }
  }
}

// Handing over and collecting while the handle is closed: everybody is let go.
void hand_over_until_closed(const char *path, int rounds) {
  Case test;
  if (!open(path, test)) return;
  std::atomic<int> begun{0};
  std::thread closer([&] {
    while (begun < std::min(rounds, 8)) std::this_thread::yield();
    destseg_close(test.predictor);
  });
  in_threads(4, [&] {
    std::vector<float> map(test.maps.size() / kFrames);
    destseg_result result{};
    result.struct_size = sizeof result;
    for (destseg_status status = DESTSEG_OK; status == DESTSEG_OK;) {
      std::uint64_t ticket = 0;
      status = destseg_submit(test.predictor, &test.frames[0], 1, -1, &ticket);
      ++begun;
      if (status == DESTSEG_OK)
        status = destseg_wait(test.predictor, ticket, -1, 1, &result, map.data(), map.size());
      if (status != DESTSEG_OK && status != DESTSEG_ERROR_BACKEND)
        return complain("a ticket failed otherwise than by the closing");
    }
  });
  closer.join();
}

int threads(const char *path, int rounds) {
  Case test;
  if (!open(path, test)) return 1;
  std::thread reloader([&] {  // the same artifact anew, so that the answers stay what they are
    for (int i = 0; i < rounds; ++i) {
      if (destseg_reload(test.predictor, path) != DESTSEG_OK) return complain("a reload failed");
      if (i % 8 == 0 && destseg_warm_up(test.predictor) != DESTSEG_OK)
        return complain("a warm-up failed");
    }
  });
  std::vector<std::thread> clerks;  // 2 x 5 tickets, of the 16 that may be open
  for (int i = 0; i < 2; ++i)
    clerks.emplace_back([&] { hand_over(test.predictor, test, rounds); });
  in_threads(4, [&] { repeat(test.predictor, test, rounds); });
  for (std::thread &clerk : clerks) clerk.join();
  reloader.join();
  hand_over_until_closed(path, rounds);
  in_threads(4, [&] {  // a handle for each thread
    destseg_predictor *own = nullptr;
    if (open_chosen(path, &own) != DESTSEG_OK) return complain("a second open failed");
    repeat(own, test, rounds);
    destseg_close(own);
  });
  in_threads(4, [&] {  // the last calls finish, the next are refused, nobody crashes
    std::vector<destseg_result> results;
    std::vector<float> maps;
    for (int i = 0; i < rounds; ++i) {
      if (i == rounds / 2) destseg_close(test.predictor);
      const bool done = infer(test.predictor, test, results, maps);
      if (done && maps != test.maps) return complain("a map changed while a handle was closed");
      if (i >= rounds / 2 && done) return complain("a closed handle still answers");
    }
  });
  destseg_close(test.predictor);
  return failures != 0;
}

long resident_kib() {
  std::ifstream status("/proc/self/status");
  std::string word;
  long value = -1;
  while (status >> word)
    if (word == "VmRSS:") status >> value;
  return value;
}

// Score a frame, at once or by a ticket.
bool score(destseg_predictor *predictor, const destseg_frame &frame, bool by_ticket,
           destseg_result &result, std::vector<float> &map) {
  if (!by_ticket)
    return destseg_infer(predictor, &frame, 1, &result, map.data(), map.size()) == DESTSEG_OK;
  std::uint64_t ticket = 0;
  return destseg_submit(predictor, &frame, 1, -1, &ticket) == DESTSEG_OK &&
         destseg_wait(predictor, ticket, -1, 1, &result, map.data(), map.size()) == DESTSEG_OK;
}

int memory(const char *path, int rounds) {
  Case test;
  if (!open(path, test)) return 1;
  std::vector<float> map(test.maps.size());
  destseg_result result{};
  result.struct_size = sizeof result;
  long early = 0;
  for (int i = 0; i < rounds; ++i) {
    const destseg_frame &frame = test.frames[static_cast<std::size_t>(i % kFrames)];
    if (!score(test.predictor, frame, i % 2 == 1, result, map))
      return complain("an inference failed"), 1;
    if (i == rounds / 10) early = resident_kib();
  }
  std::printf("%ld %ld\n", early, resident_kib());
  destseg_close(test.predictor);
  return failures != 0;
}

int hostile(const char *folder) {
  int opened = 0, refused = 0;
  for (const auto &entry : std::filesystem::directory_iterator(folder)) {
    const std::string path = entry.path().string(), suffix = entry.path().extension().string();
    if (suffix != ".onnx" && suffix != ".engine") continue;
    Case test;
    test.predictor = reinterpret_cast<destseg_predictor *>(1);
    const destseg_status status = open_chosen(path.c_str(), &test.predictor);
    if (status == DESTSEG_OK) {
      ++opened;
      test.info.struct_size = sizeof test.info;
      if (destseg_get_info(test.predictor, &test.info) != DESTSEG_OK) complain(path + ": no info");
      fill(test);
      infer(test.predictor, test, test.results, test.maps);  // may be refused; may not crash
      destseg_close(test.predictor);
      continue;
    }
    ++refused;
    if (status == DESTSEG_ERROR_INTERNAL || test.predictor != nullptr)
      complain(path + ": refused with status " + std::to_string(status));
    if (std::strchr(destseg_last_error(), '\n') != nullptr) complain(path + ": more than a line");
  }
  std::printf("%d %d\n", refused, opened);
  return failures != 0;
}

}  // namespace

int main(int argc, char **argv) {
  const std::string command = argc > 2 ? argv[1] : "";
  const int rounds = argc > 3 ? std::max(1, std::atoi(argv[3])) : 1;
  if (command == "threads") return threads(argv[2], rounds);
  if (command == "memory") return memory(argv[2], rounds);
  if (command == "hostile") return hostile(argv[2]);
  std::fprintf(stderr, "Usage: destseg_stress threads|memory|hostile PATH [ROUNDS]\n");
  return 2;
}
