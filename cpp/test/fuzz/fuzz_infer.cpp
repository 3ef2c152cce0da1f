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

int bytes_per_pixel(std::int32_t format) {
  if (format == DESTSEG_RGB8 || format == DESTSEG_BGR8) return 3;
  if (format == DESTSEG_RGBA8 || format == DESTSEG_BGRA8) return 4;
  const bool wide = (format >= DESTSEG_MONO10 && format <= DESTSEG_MONO16) ||
                    format >= DESTSEG_YUV422_8;
  return wide ? 2 : 1;
}

Picture picture(FuzzedDataProvider &fuzz) {
  Picture made;
  destseg_frame &frame = made.frame;
  frame.struct_size = sizeof frame;
  frame.height = fuzz.ConsumeIntegralInRange(1, 40);
  frame.width = fuzz.ConsumeIntegralInRange(1, 40);
  frame.format = fuzz.ConsumeIntegralInRange(1, 15);
  if (frame.format >= DESTSEG_BAYER_RG8 && frame.format <= DESTSEG_BAYER_BG8)
    frame.height = std::max(frame.height, 2), frame.width = std::max(frame.width, 2);
  if (frame.format >= DESTSEG_YUV422_8) frame.width += frame.width % 2;
  if (frame.format >= DESTSEG_MONO10 && frame.format <= DESTSEG_MONO16)
    frame.maximum = fuzz.ConsumeIntegralInRange(0, 65535);
  const int planes = frame.format == DESTSEG_RGB8_PLANAR ? 3 : 1;
  const int packed = frame.width * bytes_per_pixel(frame.format);
  const int gap = fuzz.ConsumeIntegralInRange(0, 9);
  const int stride = packed + gap;
  const int rows = planes * frame.height;
  const std::size_t bytes = static_cast<std::size_t>(stride * (rows - 1) + packed);
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
    case 2: frame.format = fuzz.ConsumeIntegralInRange(16, 2147483647); break;
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
      made.frame = {sizeof(destseg_frame), DESTSEG_GREY8, made.memory.get(), 0, 1, 1, 0, 0, 0};
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
  results[0].struct_size = sizeof(destseg_result);
  const destseg_status status =
      destseg_infer(predictor, frames.data(), static_cast<std::int32_t>(frames.size()),
                    results.data(), maps.get(), room);
  if (status == DESTSEG_ERROR_INTERNAL) std::abort();
  if (status == DESTSEG_OK && (spoiled || room < floats)) std::abort();
}

// Frames handed over, in part wrong, and collected with any count, room and patience.
void tickets(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const destseg_info &info) {
  std::vector<std::uint64_t> numbers;
  std::vector<Picture> pictures(3);
  for (Picture &made : pictures) {
    made = picture(fuzz);
    if (fuzz.ConsumeIntegralInRange(0, 7) == 0) spoil(fuzz, made.frame);
    std::uint64_t number = 0;
    const destseg_status status =
        destseg_submit(predictor, &made.frame, 1, fuzz.ConsumeIntegralInRange(0, 1), &number);
    if (status == DESTSEG_ERROR_INTERNAL || (status == DESTSEG_OK) == (number == 0)) std::abort();
    made.memory.reset();  // which is the caller's again
    numbers.push_back(fuzz.ConsumeIntegralInRange(0, 7) == 0 ? fuzz.ConsumeIntegral<std::uint64_t>()
                                                             : number);
  }
  const std::size_t floats = static_cast<std::size_t>(info.map_height) *
                             static_cast<std::size_t>(info.map_width);
  const bool any = fuzz.ConsumeBool();  // or else everything is collected
  for (const std::uint64_t number : numbers) {
    const std::size_t room = fuzz.ConsumeIntegralInRange<std::size_t>(0, floats);
    std::unique_ptr<float[]> maps(new float[any ? room : floats]);
    const int timeout_ms = any ? fuzz.ConsumeIntegralInRange(0, 2) : -1;
    const int count = any ? fuzz.ConsumeIntegralInRange(-1, 3) : 1;
    std::vector<destseg_result> results(static_cast<std::size_t>(std::max(count, 1)));
    results.shrink_to_fit();
    results[0].struct_size = sizeof(destseg_result);
    const destseg_status status = destseg_wait(predictor, number, timeout_ms, count, results.data(),
                                               maps.get(), any ? room : floats);
    if (status == DESTSEG_ERROR_INTERNAL) std::abort();
    if (status == DESTSEG_OK && any && room < floats) std::abort();
  }
}

// A part of a frame, of any numbers; what is accepted is scored, from memory exactly as long.
void crops(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const destseg_info &info) {
  Picture made = picture(fuzz);
  destseg_frame part{};
  const auto number = [&] {
    return fuzz.ConsumeIntegralInRange(0, 9) == 0 ? fuzz.ConsumeIntegral<std::int32_t>()
                                                  : fuzz.ConsumeIntegralInRange(0, 40);
  };
  const std::int32_t x = number(), y = number(), width = number(), height = number();
  if (destseg_crop(&made.frame, x, y, width, height, &part) != DESTSEG_OK) return;
#ifdef DESTSEG_FUZZ_CONTROL
  ++part.height;
#endif
  std::vector<float> maps(static_cast<std::size_t>(info.map_height) *
                          static_cast<std::size_t>(info.map_width));
  destseg_result result{};
  result.struct_size = sizeof result;
  destseg_infer(predictor, &part, 1, &result, maps.data(), maps.size());
}

// A map at any size, into exactly as much memory.
void large_map(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const destseg_info &info) {
  std::vector<float> map(static_cast<std::size_t>(info.map_height) *
                         static_cast<std::size_t>(info.map_width), 0.5f);
  const int height = fuzz.ConsumeIntegralInRange(-1, 99), width = fuzz.ConsumeIntegralInRange(-1, 99);
  const std::size_t needed = height > 0 && width > 0 ? static_cast<std::size_t>(height * width) : 0;
  const std::size_t room = fuzz.ConsumeBool() ? needed : fuzz.ConsumeIntegralInRange<std::size_t>(0, 9);
  std::unique_ptr<float[]> target(new float[room]);
  const destseg_status status =
      destseg_map_at_frame(predictor, map.data(), height, width, target.get(), room);
  if (status == DESTSEG_ERROR_INTERNAL || (status == DESTSEG_OK && room < needed)) std::abort();
}

// A map of any values, to frames of any size, into buffers that may be too short.
void defects(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const destseg_info &info) {
  std::vector<float> map(static_cast<std::size_t>(info.map_height) *
                         static_cast<std::size_t>(info.map_width));
  for (float &value : map) value = static_cast<float>(fuzz.ConsumeIntegral<std::uint8_t>()) / 255;
  if (fuzz.ConsumeBool()) map[0] = fuzz.ConsumeFloatingPoint<float>();
  const int room = fuzz.ConsumeIntegralInRange(0, 9);
  const int points_room = fuzz.ConsumeIntegralInRange(0, 99);
  std::unique_ptr<destseg_defect[]> found(new destseg_defect[static_cast<std::size_t>(room)]());
  std::unique_ptr<destseg_point[]> points(
      new destseg_point[static_cast<std::size_t>(points_room)]);
  if (room > 0) found[0].struct_size = sizeof(destseg_defect);
  std::int32_t count = 0, point_count = 0;
  const destseg_status status = destseg_defects(
      predictor, map.data(), fuzz.ConsumeIntegralInRange(1, 99), fuzz.ConsumeIntegralInRange(1, 99),
      fuzz.ConsumeFloatingPointInRange<double>(-1, 1), found.get(), room, points.get(), points_room,
      &count, &point_count);
  if (status == DESTSEG_ERROR_INTERNAL || point_count < count) std::abort();
}

void text(FuzzedDataProvider &fuzz, destseg_predictor *predictor) {
  const std::string name = fuzz.ConsumeRandomLengthString(24);
  const auto size = fuzz.ConsumeIntegralInRange<std::size_t>(0, 64);
  std::unique_ptr<char[]> buffer(new char[size]);
  destseg_get_text(predictor, name.c_str(), buffer.get(), size, nullptr);
}

// The same artifact again, or none; what it takes stays the same. Then one call around the others.
void around(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const std::string &path) {
  const bool right = fuzz.ConsumeIntegralInRange(0, 3) != 0;
  const std::string given = right ? path : fuzz.ConsumeRandomLengthString(24);
  const destseg_status reloaded = destseg_reload(predictor, given.c_str());
  if (reloaded == DESTSEG_ERROR_INTERNAL || (right && reloaded != DESTSEG_OK)) std::abort();
  if (destseg_warm_up(predictor) == DESTSEG_ERROR_INTERNAL) std::abort();
  const auto size = fuzz.ConsumeIntegralInRange<std::size_t>(sizeof(std::uint32_t), 64);
  std::vector<std::uint8_t> memory(size);
  memory.shrink_to_fit();
  const auto said = static_cast<std::uint32_t>(size);
  std::memcpy(memory.data(), &said, sizeof said);
  destseg_get_times(predictor, reinterpret_cast<destseg_times *>(memory.data()));
}

void use(FuzzedDataProvider &fuzz, destseg_predictor *predictor, const std::string &path) {
  destseg_info info{};
  info.struct_size = fuzz.ConsumeBool() ? sizeof info : fuzz.ConsumeIntegral<std::uint32_t>();
  destseg_get_info(predictor, &info);
  info.struct_size = sizeof info;
  if (destseg_get_info(predictor, &info) != DESTSEG_OK) std::abort();
  for (int calls = fuzz.ConsumeIntegralInRange(1, 4); calls > 0; --calls) {
    destseg_result result{};
    result.struct_size = fuzz.ConsumeBool() ? sizeof result : fuzz.ConsumeIntegral<std::uint8_t>() % 9;
    switch (fuzz.ConsumeIntegralInRange(0, 8)) {
      case 0: text(fuzz, predictor); break;
      case 1: destseg_judge(predictor, fuzz.ConsumeFloatingPoint<float>(), &result); break;
      case 2: defects(fuzz, predictor, info); break;
      case 3: tickets(fuzz, predictor, info); break;
      case 4: crops(fuzz, predictor, info); break;
      case 5: large_map(fuzz, predictor, info); break;
      case 6: around(fuzz, predictor, path); break;
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
  options.queue = fuzz.ConsumeIntegralInRange(-1, 4);
  options.tuned = fuzz.ConsumeIntegralInRange(0, 15) == 0 ? fuzz.ConsumeIntegralInRange(-1, 2) : 0;
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
  if (status == DESTSEG_OK) use(fuzz, predictor, path);
  if (std::string(destseg_last_error()).find('\n') != std::string::npos) std::abort();
  destseg_close(predictor);
  return 0;
}
