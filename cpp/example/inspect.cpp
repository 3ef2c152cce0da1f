// inspect.cpp: score a folder of frames one by one, as a production line does, and time it.
//
//     inspect_folder ARTIFACT FOLDER [BACKEND] [ROUNDS]
//
// Prints name, score and verdict (OK or NG) of each .bmp, .png, .pgm and .ppm in the order of their names, then
// a histogram of latencies: from pixels in memory to score and map in memory. The resize on the
// host is included, the reading of files is not.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <destseg.hpp>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "image.h"

namespace {

struct Frame {
  std::string name;
  std::shared_ptr<std::uint8_t> memory;
  destseg_frame view;
};

Frame read_frame(const std::filesystem::path &path) {
  image read;
  const std::string name = path.u8string();
  if (const char *wrong = image_read(name.c_str(), &read))
    throw std::runtime_error(name + ": " + wrong);
  return {path.filename().u8string(), std::shared_ptr<std::uint8_t>(read.memory, std::free),
          read.frame};
}

std::vector<Frame> read_folder(const std::filesystem::path &folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto &entry : std::filesystem::directory_iterator(folder)) {
    const std::string suffix = entry.path().extension().u8string();
    for (const char *known : {".bmp", ".png", ".pgm", ".ppm"})
      if (suffix == known) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) throw std::runtime_error(folder.u8string() + ": no .bmp, .png, .pgm or .ppm in it");
  std::vector<Frame> frames;
  for (const auto &path : paths) frames.push_back(read_frame(path));
  return frames;
}

const char *verdict_name(std::int32_t verdict) {
  if (verdict == DESTSEG_UNDECIDED) return "undecided";
  return verdict == DESTSEG_ANOMALOUS ? "NG" : "OK";
}

// Latencies in bins of a width that fits their median: a twentieth of it, rounded to 1, 2 or 5.
void print_histogram(std::vector<double> milliseconds) {
  std::sort(milliseconds.begin(), milliseconds.end());
  const auto at = [&](double share) {
    const auto index = static_cast<std::size_t>(share * static_cast<double>(milliseconds.size()));
    return milliseconds[std::min(index, milliseconds.size() - 1)];
  };
  const double factors[] = {2.0, 2.5, 2.0};  // 1, 2, 5, 10 thousandths, and so on
  double bin = 0.001;
  for (int i = 0; bin < at(0.5) / 20; ++i) bin *= factors[i % 3];
  std::printf("latency ms: median %.3f p90 %.3f p99 %.3f max %.3f (%zu calls)\n", at(0.5), at(0.9),
              at(0.99), milliseconds.back(), milliseconds.size());
  std::map<long, int> counts;
  for (const double value : milliseconds) ++counts[static_cast<long>(value / bin)];
  int most = 0;
  for (const auto &count : counts) most = std::max(most, count.second);
  for (const auto &[index, count] : counts)
    std::printf("%10.3f %6d %s\n", static_cast<double>(index) * bin, count,
                std::string(static_cast<std::size_t>((count * 50 + most - 1) / most), '#').c_str());
}

int run(int argc, char **argv) {
  destseg::Options options;
  options.backend = argc > 3 ? argv[3] : "";
  const int rounds = argc > 4 ? std::max(1, std::atoi(argv[4])) : 1;
  const destseg::Predictor predictor(argv[1], options);
  const std::vector<Frame> frames = read_folder(std::filesystem::u8path(argv[2]));
  std::vector<destseg_result> results(1);
  std::vector<float> map(predictor.map_pixels());
  std::vector<double> milliseconds;
  predictor.infer(frames.front().view);  // not timed: the first call also allocates memory
  for (int round = 0; round < rounds; ++round)
    for (const Frame &frame : frames) {
      const auto begin = std::chrono::steady_clock::now();
      predictor.infer_into({&frame.view, 1}, results, map);
      const std::chrono::duration<double, std::milli> taken =
          std::chrono::steady_clock::now() - begin;
      milliseconds.push_back(taken.count());
      if (round == 0)
        std::printf("%s %.9g %s\n", frame.name.c_str(), static_cast<double>(results[0].score),
                    verdict_name(results[0].verdict));
    }
  print_histogram(std::move(milliseconds));
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  argv = utf8_arguments(&argc, argv);
  if (argv == nullptr || argc < 3 || argc > 5) {
    std::fprintf(stderr, "Usage: inspect_folder ARTIFACT FOLDER [BACKEND] [ROUNDS]\n");
    return 1;
  }
  try {
    return run(argc, argv);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 1;
  }
}
