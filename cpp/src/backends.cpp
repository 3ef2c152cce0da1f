#include <algorithm>
#include <cstdlib>

#include "backend.hpp"
#include "error.hpp"

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

std::string one_line(const std::string &message) {
  std::string line;
  for (const char c : message) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space)
      line += c;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  if (!line.empty() && line.back() == ' ') line.pop_back();
  std::size_t end = std::min<std::size_t>(line.size(), 200);
  while (end < line.size() && end > 0 && (line[end] & 0xc0) == 0x80) --end;  // whole characters
  return line.substr(0, end);
}

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

std::unique_ptr<Backend> open_backend([[maybe_unused]] const Request &request,
                                      [[maybe_unused]] const Spec &spec) {
#ifdef DESTSEG_HAVE_ONNXRUNTIME
  if (request.backend == "onnxruntime") return open_onnxruntime(request, spec);
#endif
#ifdef DESTSEG_HAVE_OPENVINO
  if (request.backend == "openvino") return open_openvino(request, spec);
#endif
#ifdef DESTSEG_HAVE_TENSORRT
  if (request.backend == "tensorrt") return open_tensorrt(request, spec);
#endif
  throw backend_error("backend " + python_repr(request.backend) +
                      ": this library was built without it, only " + listed(backend_names()) +
                      ". Build it again with the back end installed, or use one of these.");
}

}  // namespace destseg_core
