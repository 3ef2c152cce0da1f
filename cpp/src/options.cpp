#include "options.hpp"

#include <system_error>

#include "cores.hpp"
#include "error.hpp"
#include "json.hpp"
#include "structs.hpp"
#include "text.hpp"
#include "tuning.hpp"

namespace destseg_core {
namespace {

bool is_device(const std::string &device) {
  if (device == "cpu" || device == "cuda") return true;
  const std::string digits = device.rfind("cuda:", 0) == 0 ? device.substr(5) : "";
  return !digits.empty() && digits.size() <= 4 &&
         digits.find_first_not_of("0123456789") == std::string::npos;
}

// The first back end that can run here.
std::string default_backend(const std::filesystem::path &path) {
  if (suffix_of(path) == ".engine") return "tensorrt";
  std::string missing;
  for (const std::string &name : backend_names()) {
    if (name == "tensorrt") continue;
    const std::string why = missing_library(name);
    if (why.empty()) return name;
    missing += " " + why;
  }
  throw backend_error(path.u8string() + ": no back end can open it." +
                      (missing.empty() ? " This library was built without ONNX Runtime and OpenVINO."
                                       : missing));
}

void check_precision(const std::string &name, const std::string &backend,
                     const std::string &precision) {
  if (backend != "openvino")
    throw backend_error(name + ": precision " + in_quotes(precision) +
                        " was given, but the back end is " + in_quotes(backend) +
                        ". Pass back end 'openvino', or drop it.");
  if (precision != "fp32" && precision != "bf16")
    throw backend_error("precision " + in_quotes(precision) +
                        ": expected fp32 or bf16 for OpenVINO.");
}

}  // namespace

void check_there(const std::filesystem::path &path) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code))
    throw backend_error(path.u8string() + ": no such file. Expected a .onnx or .engine artifact.");
}

std::filesystem::path path_of(const char *bytes) {
  try {
    decode_utf8(bytes);
  } catch (const JsonError &error) {
    throw argument_error(std::string("path: ") + error.what() + ". Pass the path in UTF-8, on Windows too.");
  }
  return std::filesystem::u8path(bytes);
}

namespace {

int within(const char *name, std::int32_t value, int least, int most) {
  if (value < least || value > most)
    throw argument_error(std::string("options: ") + name + " " + std::to_string(value) +
                         ", expected " + std::to_string(least) + " to " + std::to_string(most) +
                         ".");
  return value;
}

// Of ONNX Runtime on a CPU only.
void set_threads(Request &request, const destseg_options &options) {
  request.threads = within("threads", options.threads, 0, 1024);
  request.spinning = within("no_spinning", options.no_spinning, 0, 1) == 0;
  if (options.worker_cores != nullptr) request.worker_cores = cores_of(options.worker_cores);
  const bool given = options.worker_cores != nullptr || !request.spinning;
  if (given && (request.backend != "onnxruntime" || request.device != "cpu"))
    throw backend_error(request.path.u8string() +
                        ": worker_cores and no_spinning are of ONNX Runtime on the device 'cpu', "
                        "here it is " + in_quotes(request.backend) + " on " +
                        in_quotes(request.device) + ". Leave them out.");
  const auto pinned = static_cast<int>(request.worker_cores.size());
  if (pinned > 0 && request.threads != 0 && request.threads != pinned + 1)
    throw argument_error("options: threads " + std::to_string(request.threads) + " with " +
                         std::to_string(pinned) + " worker_cores, expected 0 or " +
                         std::to_string(pinned + 1) + ": each core has a thread, and so has the "
                         "caller.");
}

// Everything that a tuning decides must be left to it.
void set_tuned(Request &request, const destseg_options &options) {
  if (suffix_of(request.path) == ".engine")
    throw argument_error("options: tuned with " + request.path.filename().u8string() +
                         ", but engines are not tuned: a tuning is of an .onnx on the CPU. Leave "
                         "tuned 0, or open the .onnx.");
  const bool given = options.backend != nullptr || options.precision != nullptr ||
                     options.threads != 0 || options.worker_cores != nullptr ||
                     options.no_spinning != 0 || request.device != "cpu";
  if (given)
    throw argument_error("options: tuned with backend, device, precision, threads, worker_cores or "
                         "no_spinning, which the tuning decides, on the CPU. Leave them out.");
  request.tuned = true;
  follow_tuning(request);
}

Request request_of(const char *path, const destseg_options &options) {
  Request request;
  request.path = path_of(path);
  const std::string name = request.path.u8string();
  check_there(request.path);
  const std::string suffix = suffix_of(request.path);
  const bool engine = suffix == ".engine";
  request.device = options.device != nullptr ? options.device : engine ? "cuda" : "cpu";
  if (!is_device(request.device))
    throw backend_error("device " + in_quotes(request.device) +
                        ": expected cpu, cuda or cuda:<index>.");
  if (!engine && suffix != ".onnx")
    throw backend_error(name + ": unknown kind of artifact. Expected .onnx or .engine.");
  request.log = Log(options.log, options.log_context);
  if (within("tuned", options.tuned, 0, 1) == 1) {
    set_tuned(request, options);
    return request;
  }
  request.backend = options.backend != nullptr ? options.backend : default_backend(request.path);
  if (engine != (request.backend == "tensorrt"))
    throw backend_error(name + ": the back end " + in_quotes(request.backend) +
                        " does not open such files. Expected " +
                        (engine ? "tensorrt." : "onnxruntime or openvino."));
  set_threads(request, options);
  if (options.precision != nullptr) check_precision(name, request.backend, options.precision);
  request.precision = options.precision != nullptr ? options.precision : "fp32";
  return request;
}

}  // namespace

Opening opening_of(const char *path, const destseg_options *given) {
  if (path == nullptr) throw argument_error("path: null. Pass the artifact's path.");
  const destseg_options options = given == nullptr ? destseg_options{} : known_part(given, "options");
  if (given != nullptr) check_rest(*given, "options");
  const int parallel = within("parallel", options.parallel, 0, 64);
  const int queue = within("queue", options.queue, 0, 1024);
  return {request_of(path, options), parallel == 0 ? 2 : parallel, queue == 0 ? 16 : queue};
}

}  // namespace destseg_core
