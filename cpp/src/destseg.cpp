// The border: arguments are checked, exceptions become a status and a text.
#include "destseg.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <filesystem>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "backend.hpp"
#include "error.hpp"
#include "predictor.hpp"
#include "registry.hpp"

namespace destseg_core {
namespace {

thread_local std::string last_error;

destseg_status failed(destseg_status status, const std::exception &error) noexcept {
  try {
    last_error = status == DESTSEG_ERROR_INTERNAL ? one_line(error.what()) : error.what();
  } catch (...) {  // no memory for the text; what is there is shorter than nothing
    last_error.clear();
  }
  return status;
}

struct OutOfMemory : std::exception {
  const char *what() const noexcept override {
    return "out of memory. Pass fewer or smaller frames.";
  }
};
struct NoException : std::exception {
  const char *what() const noexcept override { return "an exception that is no std::exception"; }
};

template <typename Call>
destseg_status guarded(const Call &call) noexcept {
  try {
    call();
    return DESTSEG_OK;
  } catch (const Error &error) {
    return failed(error.status, error);
  } catch (const std::bad_alloc &) {
    return failed(DESTSEG_ERROR_MEMORY, OutOfMemory());
  } catch (const std::exception &error) {  // of a runtime, perhaps of many lines
    return failed(DESTSEG_ERROR_INTERNAL, error);
  } catch (...) {
    return failed(DESTSEG_ERROR_INTERNAL, NoException());
  }
}

constexpr std::uint32_t kLargestStruct = 4096;  // anything longer is not a size

// Where a struct ended in a release. Options of another size would cut a pointer in two.
bool is_size(std::uint32_t size, const destseg_options &) {
  return size == offsetof(destseg_options, precision) ||
         (size >= sizeof(destseg_options) && size <= kLargestStruct);
}
bool is_size(std::uint32_t size, const destseg_info &) {
  return size >= sizeof(std::uint32_t) && size <= kLargestStruct;
}

// Copy as much of a struct as the caller's header knew and this library knows.
template <typename T>
T known_part(const T *given, const char *name) {
  const std::uint32_t size = given->struct_size;
  if (!is_size(size, *given))
    throw argument_error(std::string(name) + ": struct_size " + std::to_string(size) +
                         ", expected " + std::to_string(sizeof(T)) + ". Set it to sizeof.");
  T known{};
  std::memcpy(&known, given, std::min<std::size_t>(size, sizeof(T)));
  return known;
}

// What the caller's header knew beyond this library's must not have been asked for.
void check_rest(const destseg_options &given) {
  const auto *const bytes = reinterpret_cast<const unsigned char *>(&given);
  const auto set = [](unsigned char byte) { return byte != 0; };
  if (given.struct_size > sizeof given &&
      std::any_of(bytes + sizeof given, bytes + given.struct_size, set))
    throw argument_error("options: struct_size " + std::to_string(given.struct_size) +
                         " with an option set that is newer than this library, version " +
                         DESTSEG_VERSION + ". Install a newer one, or leave it zero.");
}

bool is_device(const std::string &device) {
  if (device == "cpu" || device == "cuda") return true;
  const std::string digits = device.rfind("cuda:", 0) == 0 ? device.substr(5) : "";
  return !digits.empty() && digits.size() <= 4 &&
         digits.find_first_not_of("0123456789") == std::string::npos;
}

std::string default_backend(const std::filesystem::path &path) {
  if (path.extension() == ".engine") return "tensorrt";
  for (const std::string &name : backend_names())
    if (name != "tensorrt") return name;
  return "onnxruntime";
}

void check_precision(const std::string &name, const std::string &backend,
                     const std::string &precision) {
  if (backend != "openvino")
    throw backend_error(name + ": precision " + python_repr(precision) +
                        " was given, but the back end is " + python_repr(backend) +
                        ". Pass back end 'openvino', or drop it.");
  if (precision != "fp32" && precision != "bf16")
    throw backend_error("precision " + python_repr(precision) +
                        ": expected fp32 or bf16 for OpenVINO.");
}

Request request_of(const char *path, const destseg_options &options) {
  Request request;
  request.path = std::filesystem::u8path(path);
  const std::string name = request.path.u8string();
  std::error_code code;
  if (!std::filesystem::is_regular_file(request.path, code))
    throw backend_error(name + ": no such file. Expected a .onnx or .engine artifact.");
  const std::string suffix = request.path.extension().u8string();
  const bool engine = suffix == ".engine";
  request.device = options.device != nullptr ? options.device : engine ? "cuda" : "cpu";
  if (!is_device(request.device))
    throw backend_error("device " + python_repr(request.device) +
                        ": expected cpu, cuda or cuda:<index>.");
  if (!engine && suffix != ".onnx")
    throw backend_error(name + ": unknown kind of artifact. Expected .onnx or .engine.");
  request.backend = options.backend != nullptr ? options.backend : default_backend(request.path);
  if (engine != (request.backend == "tensorrt"))
    throw backend_error(name + ": the back end " + python_repr(request.backend) +
                        " does not open such files. Expected " +
                        (engine ? "tensorrt." : "onnxruntime or openvino."));
  request.threads = options.threads;
  if (options.precision != nullptr) check_precision(name, request.backend, options.precision);
  request.precision = options.precision != nullptr ? options.precision : "fp32";
  return request;
}

std::shared_ptr<Predictor> open(const char *path, const destseg_options *given) {
  if (path == nullptr) throw argument_error("path: null. Pass the artifact's path.");
  const destseg_options options = given == nullptr ? destseg_options{} : known_part(given, "options");
  if (given != nullptr) check_rest(*given);
  if (options.reserved != 0)
    throw argument_error("options: reserved " + std::to_string(options.reserved) +
                         ", expected 0. Zero the struct before setting it.");
  if (options.threads < 0 || options.threads > 1024)
    throw argument_error("options: threads " + std::to_string(options.threads) +
                         ", expected 0 to 1024.");
  if (options.parallel < 0 || options.parallel > 64)
    throw argument_error("options: parallel " + std::to_string(options.parallel) +
                         ", expected 0 to 64.");
  const int parallel = options.parallel == 0 ? 2 : options.parallel;
  return std::make_shared<Predictor>(request_of(path, options), parallel);
}

destseg_info info_of(const Spec &spec) {
  destseg_info info{};
  info.any_size = spec.any_size() ? 1 : 0;
  info.height = spec.input.height, info.width = spec.input.width;
  info.network_height = spec.network.height, info.network_width = spec.network.width;
  info.map_height = spec.map.height, info.map_width = spec.map.width;
  info.batch_min = spec.batch.min, info.batch_opt = spec.batch.opt;
  info.batch_max = spec.batch.max;
  info.top_k = spec.top_k;
  info.has_threshold = spec.threshold ? 1 : 0;
  const double none = std::numeric_limits<double>::quiet_NaN();
  const std::int64_t images = spec.threshold ? spec.threshold->images : 0;
  info.threshold_images = static_cast<std::int32_t>(
      std::clamp<std::int64_t>(images, 0, std::numeric_limits<std::int32_t>::max()));
  info.threshold_score = spec.threshold ? spec.threshold->score : none;
  info.threshold_pixel = spec.threshold ? spec.threshold->pixel : none;
  return info;
}

void copy_text(const std::string &text, char *buffer, std::size_t size, std::size_t *needed) {
  if (needed != nullptr) *needed = text.size() + 1;
  if (buffer == nullptr && size == 0) return;
  if (buffer == nullptr) throw argument_error("buffer: null. Pass size 0 to ask for the size.");
  if (size > 0) buffer[0] = '\0';
  if (size < text.size() + 1)
    throw argument_error("buffer: " + std::to_string(size) + " bytes, expected at least " +
                         std::to_string(text.size() + 1) + ".");
  std::memcpy(buffer, text.c_str(), text.size() + 1);
}

std::string joined_backends() {
  std::string joined;
  for (const std::string &name : backend_names()) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

}  // namespace
}  // namespace destseg_core

using namespace destseg_core;

uint32_t destseg_abi_version(void) noexcept { return DESTSEG_ABI_VERSION; }

const char *destseg_version(void) noexcept { return DESTSEG_VERSION; }

const char *destseg_backends(void) noexcept {
  try {
    static const std::string *const names = new std::string(joined_backends());
    return names->c_str();
  } catch (...) {
    return "";
  }
}

const char *destseg_last_error(void) noexcept { return last_error.c_str(); }

destseg_status destseg_open(const char *path, const destseg_options *options,
                            destseg_predictor **predictor) noexcept {
  return guarded([&] {
    if (predictor == nullptr) throw argument_error("predictor: null. Pass where the handle goes.");
    *predictor = nullptr;
    *predictor = add_handle(open(path, options));
  });
}

void destseg_close(destseg_predictor *predictor) noexcept {
  guarded([&] { remove_handle(predictor); });
}

destseg_status destseg_get_info(destseg_predictor *predictor, destseg_info *info) noexcept {
  return guarded([&] {
    if (info == nullptr) throw argument_error("info: null. Pass where it goes.");
    const std::uint32_t size = known_part(info, "info").struct_size;
    destseg_info found = info_of(find_handle(predictor)->spec());
    found.struct_size = size;
    std::memcpy(info, &found, std::min<std::size_t>(size, sizeof found));
  });
}

destseg_status destseg_get_text(destseg_predictor *predictor, const char *name, char *buffer,
                                size_t size, size_t *needed) noexcept {
  return guarded([&] {
    if (needed != nullptr) *needed = 0;
    if (name == nullptr) throw argument_error("name: null. Pass the name of a text.");
    copy_text(find_handle(predictor)->text(name), buffer, size, needed);
  });
}

destseg_status destseg_infer(destseg_predictor *predictor, const destseg_frame *frames,
                             int32_t count, destseg_result *results, float *maps,
                             size_t maps_floats) noexcept {
  return guarded([&] {
    find_handle(predictor)->infer(frames, count, results, maps, maps_floats);
  });
}

destseg_status destseg_judge(destseg_predictor *predictor, float score,
                             destseg_result *result) noexcept {
  return guarded([&] {
    if (result == nullptr) throw argument_error("result: null. Pass where it goes.");
    const auto found = find_handle(predictor);
    if (!found->spec().threshold)
      throw spec_error(found->spec().artifact.file +
                       ": no threshold set yet. Set one from normal images: destseg-threshold "
                       "ARTIFACT --normal FOLDER");
    *result = found->judge(score);
  });
}
