// libFuzzer: the entry points, with a spec that is mostly right, frames of any size and layout,
// and buffers exactly as long as the header asks for: one byte too many read or written is seen.
//
// The artifact is an engine of the fake TensorRT, in a folder of this process (/dev/shm if there).
#include <fuzzer/FuzzedDataProvider.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "destseg.h"
#include "sha256.hpp"

namespace {

std::filesystem::path folder() {
  const std::filesystem::path shm = "/dev/shm";
  const auto base = std::filesystem::is_directory(shm) ? shm : std::filesystem::temp_directory_path();
  const auto path = base / ("destseg-fuzz-" + std::to_string(getpid()));
  std::filesystem::create_directories(path);
  return path;
}

void write(const std::filesystem::path &path, const std::string &content) {
  std::ofstream(path, std::ios::binary) << content;
}

struct Sizes {
  int height, width, map_height, map_width, least, best, most;
  bool same;  // as the network's, so that frames of any size are taken
};

std::string spec_text(const Sizes &sizes, const std::string &hash, bool threshold) {
  const auto number = [](int value) { return std::to_string(value); };
  const std::string input = "\"height\": " + number(sizes.height) +
                            ", \"width\": " + number(sizes.width);
  return "{\"kind\": \"engine\", \"category\": \"f\", \"precision\": \"fp16\", \"input\": {" + input +
         ", \"batch\": {\"min\": " + number(sizes.least) + ", \"opt\": " + number(sizes.best) +
         ", \"max\": " + number(sizes.most) + "}, \"name\": \"image\", \"dtype\": \"uint8\", "
         "\"layout\": \"NHWC\", \"color\": \"RGB\"}, \"network\": {" +
         (sizes.same ? input : "\"height\": 3, \"width\": 77") +
         ", \"resize\": \"bilinear-antialiased-16bit\", \"mean\": [0, 0, 0], \"std\": [1, 1, 1]}, "
         "\"output\": {\"height\": " + number(sizes.map_height) + ", \"width\": " +
         number(sizes.map_width) + ", \"top_k\": 1, \"map_name\": \"anomaly_map\", "
         "\"score_name\": \"score\"}, \"artifact\": {\"file\": \"f.engine\", \"sha256\": \"" + hash +
         "\"}, \"checkpoint\": {\"file\": \"\", \"sha256\": \"\"}, \"threshold\": " +
         (threshold ? "{\"score\": 0.5, \"pixel\": 0.5, \"rule\": \"r\", \"images\": 0, "
                      "\"false_reject_rate\": null}"
                    : "null") +
         ", \"teacher\": {}, \"training\": {}, \"parity\": {}, \"engine\": {\"builder\": "
         "\"tensorrt\", \"version\": \"11.4.0.106\", \"gpu\": null, \"targets\": [\"sm_90\"], "
         "\"key\": \"\", \"onnx\": \"\", \"onnx_sha256\": \"\", \"flags\": [], "
         "\"convolutions\": 1, \"half_convolutions\": 1, \"precision_source\": \"engine\", "
         "\"build_seconds\": 0.5}, "
         "\"tools\": {}, \"format\": 1}";
}

// Memory exactly as long as a frame needs, and the frame.
struct Picture {
  std::unique_ptr<std::uint8_t[]> memory;
  destseg_frame frame{};
};

Picture picture(FuzzedDataProvider &fuzz) {
  Picture made;
  destseg_frame &frame = made.frame;
  frame.height = fuzz.ConsumeIntegralInRange(1, 40);
  frame.width = fuzz.ConsumeIntegralInRange(1, 40);
  frame.format = fuzz.ConsumeIntegralInRange(1, 3);
  const int packed = frame.width * (frame.format == DESTSEG_GREY8 ? 1 : 3);
  const int gap = fuzz.ConsumeIntegralInRange(0, 9);
  const int stride = packed + gap;
  const std::size_t bytes = static_cast<std::size_t>(stride * (frame.height - 1) + packed);
  made.memory.reset(new std::uint8_t[bytes]);
  std::fill_n(made.memory.get(), bytes, fuzz.ConsumeIntegral<std::uint8_t>());
  fuzz.ConsumeData(made.memory.get(), bytes);
  const bool upward = fuzz.ConsumeBool();
  frame.stride = gap == 0 && !upward ? 0 : upward ? -stride : stride;
  frame.pixels = made.memory.get() + (upward ? stride * (frame.height - 1) : 0);
  return made;
}

// Hostile values that must be refused before memory is touched.
void spoil(FuzzedDataProvider &fuzz, destseg_frame &frame) {
  switch (fuzz.ConsumeIntegralInRange(0, 4)) {
    case 0: frame.height = fuzz.ConsumeIntegralInRange(-2147483647 - 1, 0); break;
    case 1: frame.width = fuzz.ConsumeIntegralInRange(65537, 2147483647); break;
    case 2: frame.format = fuzz.ConsumeIntegralInRange(4, 2147483647); break;
    case 3: frame.pixels = nullptr; break;
    default: frame.stride = std::int64_t{1} << fuzz.ConsumeIntegralInRange(41, 62);
  }
}

void infer(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const destseg_info &info) {
  std::vector<Picture> pictures(fuzz.ConsumeIntegralInRange<std::size_t>(1, 6));
  std::vector<destseg_frame> frames;
  bool spoiled = false;
  for (Picture &made : pictures) {
    made = picture(fuzz);
    if (fuzz.ConsumeBool())  // of the input's own size
      made.frame = {made.memory.get(), 0, 1, 1, DESTSEG_GREY8, 0};
    frames.push_back(made.frame);
    const bool now = fuzz.ConsumeIntegralInRange(0, 15) == 0;
    if (now) spoil(fuzz, frames.back());
    spoiled = spoiled || now;
  }
  const std::size_t floats = frames.size() * static_cast<std::size_t>(info.map_height) *
                             static_cast<std::size_t>(info.map_width);
  const std::size_t room = fuzz.ConsumeBool() ? floats : floats / 2;
#ifdef DESTSEG_FUZZ_CONTROL
  const std::size_t there = room - (frames.size() == 3 ? 1 : 0);  // less than is said
#else
  const std::size_t there = room;
#endif
  std::unique_ptr<float[]> maps(new float[there]);
  std::vector<destseg_result> results(frames.size());
  results.shrink_to_fit();
  const destseg_status status =
      destseg_infer(predictor, frames.data(), static_cast<std::int32_t>(frames.size()),
                    results.data(), maps.get(), room);
  if (status == DESTSEG_ERROR_INTERNAL) std::abort();
  if (status == DESTSEG_OK && (spoiled || room < floats)) std::abort();
}

void text(FuzzedDataProvider &fuzz, destseg_predictor *predictor) {
  const std::string name = fuzz.ConsumeRandomLengthString(24);
  const auto size = fuzz.ConsumeIntegralInRange<std::size_t>(0, 64);
  std::unique_ptr<char[]> buffer(new char[size]);
  destseg_get_text(predictor, name.c_str(), buffer.get(), size, nullptr);
}

void use(FuzzedDataProvider &fuzz, destseg_predictor *predictor) {
  destseg_info info{};
  info.struct_size = fuzz.ConsumeBool() ? sizeof info : fuzz.ConsumeIntegral<std::uint32_t>();
  destseg_get_info(predictor, &info);
  info.struct_size = sizeof info;
  if (destseg_get_info(predictor, &info) != DESTSEG_OK) std::abort();
  for (int calls = fuzz.ConsumeIntegralInRange(1, 4); calls > 0; --calls) {
    destseg_result result{};
    switch (fuzz.ConsumeIntegralInRange(0, 3)) {
      case 0: text(fuzz, predictor); break;
      case 1: destseg_judge(predictor, fuzz.ConsumeFloatingPoint<float>(), &result); break;
      default: infer(fuzz, predictor, info);
    }
  }
}

// Options of any size and content, mostly right; memory as long as struct_size says.
destseg_status open_with_options(FuzzedDataProvider &fuzz, const std::string &path,
                                 destseg_predictor **predictor) {
  const auto word = [&](const std::string &right) {
    return fuzz.ConsumeIntegralInRange(0, 15) == 0 ? fuzz.ConsumeRandomLengthString(12) : right;
  };
  const std::string backend = word("tensorrt"), device = word("cuda:1"), precision = word("fp32");
  destseg_options options{};
  options.threads = fuzz.ConsumeBool() ? 0 : fuzz.ConsumeIntegral<std::int32_t>();
  options.parallel = fuzz.ConsumeIntegralInRange(0, 15) == 0 ? fuzz.ConsumeIntegral<std::int32_t>()
                                                             : fuzz.ConsumeIntegralInRange(0, 64);
  options.backend = fuzz.ConsumeBool() ? nullptr : backend.c_str();
  options.device = fuzz.ConsumeBool() ? nullptr : device.c_str();
  options.precision = fuzz.ConsumeIntegralInRange(0, 3) != 0 ? nullptr : precision.c_str();
  options.reserved = fuzz.ConsumeIntegralInRange(0, 15) == 0 ? 1 : 0;
  const std::size_t size =
      fuzz.ConsumeBool() ? sizeof options : fuzz.ConsumeIntegralInRange<std::size_t>(4, 4200);
  options.struct_size = static_cast<std::uint32_t>(size);
  std::vector<std::uint8_t> memory(std::max(size, sizeof options));  // aligned as new aligns
  std::memcpy(memory.data(), &options, sizeof options);
  memory.resize(size);
  memory.shrink_to_fit();
  if (size > sizeof options) memory.back() = fuzz.ConsumeIntegral<std::uint8_t>() % 2;
  return destseg_open(path.c_str(), reinterpret_cast<const destseg_options *>(memory.data()),
                      predictor);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  static const std::filesystem::path where = folder();
  FuzzedDataProvider fuzz(data, size);
  Sizes sizes{};
  for (int *side : {&sizes.height, &sizes.width, &sizes.map_height, &sizes.map_width})
    *side = fuzz.ConsumeIntegralInRange(1, 24);
  sizes.least = fuzz.ConsumeIntegralInRange(1, 4);
  sizes.best = fuzz.ConsumeIntegralInRange(sizes.least, 5);
  sizes.most = fuzz.ConsumeIntegralInRange(sizes.best, 6);
  sizes.same = fuzz.ConsumeBool();
  const int lie = fuzz.ConsumeIntegralInRange(0, 15) == 0 ? 1 : 0;  // an engine of another size
  const char *words[] = {"", "", "", "", "nograph", "fails"};
  const std::string engine = "fake-engine " + std::to_string(sizes.height + lie) + " " +
                             std::to_string(sizes.width) + " " + std::to_string(sizes.map_height) +
                             " " + std::to_string(sizes.map_width) + " " +
                             fuzz.PickValueInArray(words);
  destseg_core::Sha256 digest;
  digest.update(reinterpret_cast<const unsigned char *>(engine.data()), engine.size());
  std::string spec = spec_text(sizes, digest.finish(), fuzz.ConsumeBool());
  for (int changes = fuzz.ConsumeIntegralInRange(-6, 2); changes > 0; --changes)
    spec[fuzz.ConsumeIntegralInRange<std::size_t>(0, spec.size() - 1)] =
        static_cast<char>(fuzz.ConsumeIntegral<std::uint8_t>());
  const std::string path = (where / "f.engine").string();
  write(path, engine);
  write(where / "f.engine.json", spec);
  destseg_predictor *predictor = nullptr;
  const destseg_status status = fuzz.ConsumeBool()
                                    ? open_with_options(fuzz, path, &predictor)
                                    : destseg_open(path.c_str(), nullptr, &predictor);
  if (status == DESTSEG_ERROR_INTERNAL || (status == DESTSEG_OK) == (predictor == nullptr))
    std::abort();
  if (status == DESTSEG_OK) use(fuzz, predictor);
  if (std::string(destseg_last_error()).find('\n') != std::string::npos) std::abort();
  destseg_close(predictor);
  return 0;
}
