#include <algorithm>
#include <cstdlib>

#include "backend.hpp"
#include "error.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

std::string listed(const std::vector<std::string> &names) {
  std::string text;
  for (const std::string &name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

}  // namespace

int device_index(const std::string &device) {
  const std::size_t colon = device.find(':');
  return colon == std::string::npos ? 0 : std::atoi(device.c_str() + colon + 1);
}

std::string one_line(const std::string &message, std::size_t most) {
  std::string line;
  for (const char c : message) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space)
      line += c;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  if (!line.empty() && line.back() == ' ') line.pop_back();
  std::size_t end = std::min(line.size(), most);
  while (end < line.size() && end > 0 && (line[end] & 0xc0) == 0x80) --end;  // whole characters
  return line.substr(0, end);
}

namespace {

// An INT8 artifact that was made for TensorRT and is about to run on a CPU.
void warn_of_scheme(const Request &request, const Spec &spec) {
  const Json *quantization = spec.json.find("quantization");
  const bool there = quantization != nullptr && quantization->kind == Json::Kind::object;
  const Json *scheme = there ? quantization->find("scheme") : nullptr;
  if (scheme != nullptr && scheme->text == "s8")
    request.log.warn(spec.artifact.file +
                     ": quantised for TensorRT; a CPU runs few of its layers in INT8, or less "
                     "accurately. Make one for CPUs: destseg-export quantize --for cpu");
}

}  // namespace

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
#ifdef DESTSEG_HAVE_ONNXRUNTIME
  names.emplace_back("onnxruntime");
#endif
#ifdef DESTSEG_HAVE_OPENVINO
  names.emplace_back("openvino");
#endif
#ifdef DESTSEG_HAVE_TENSORRT
  names.emplace_back("tensorrt");
#endif
  return names;
}

std::string missing_library([[maybe_unused]] const std::string &backend) {
  try {
#ifdef DESTSEG_HAVE_ONNXRUNTIME
    if (backend == "onnxruntime") load_onnxruntime();
#endif
#ifdef DESTSEG_HAVE_OPENVINO
    if (backend == "openvino") load_openvino();
#endif
  } catch (const Error &error) {
    return error.what();
  }
  return "";
}

std::unique_ptr<Backend> open_backend([[maybe_unused]] const Request &request,
                                      [[maybe_unused]] const Spec &spec) {
  if (request.device == "cpu") warn_of_scheme(request, spec);
#ifdef DESTSEG_HAVE_ONNXRUNTIME
  if (request.backend == "onnxruntime") return open_onnxruntime(request, spec);
#endif
#ifdef DESTSEG_HAVE_OPENVINO
  if (request.backend == "openvino") return open_openvino(request, spec);
#endif
#ifdef DESTSEG_HAVE_TENSORRT
  if (request.backend == "tensorrt") return open_tensorrt(request, spec);
#endif
  throw backend_error("backend " + in_quotes(request.backend) +
                      ": this library was built without it, only " + listed(backend_names()) +
                      ". Build it again with the back end installed, or use one of these.");
}

}  // namespace destseg_core
