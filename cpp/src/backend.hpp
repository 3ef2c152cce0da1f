// What lies between the ABI and the back ends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "spec.hpp"

namespace destseg_core {

// One inference at a time, with the memory it works in. Used by one thread at a time; several
// lanes of a back end may run at once.
class Lane {
 public:
  virtual ~Lane() = default;
  // Where to write the pixels of `count` images, (count, height, width, 3) RGB; valid until the
  // next call of it.
  virtual std::uint8_t *images(int count) = 0;
  // Score what was written. Throws Error (backend).
  virtual void run(int count) = 0;
  // Answers of the last run: (count, height, width) and (count); valid until the next run.
  virtual const float *maps() const = 0;
  virtual const float *scores() const = 0;
};

// An artifact opened by one runtime.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Lane> open_lane() = 0;
  virtual std::string version() const = 0;
};

// How an artifact is opened.
struct Request {
  std::filesystem::path path;
  std::string backend;  // "onnxruntime", "openvino" or "tensorrt"
  std::string device;   // "cpu", "cuda" or "cuda:<index>"
  int threads = 0;
  std::string precision;  // "fp32" or "bf16"; of OpenVINO only
};

// The index in "cuda:<index>"; 0 without one.
int device_index(const std::string &device);
// A runtime's message as one line of at most 200 characters.
std::string one_line(const std::string &message);

// Those that were built in, in the order in which they are tried. The spec outlives the back end.
std::vector<std::string> backend_names();
std::unique_ptr<Backend> open_backend(const Request &request, const Spec &spec);

// Each in the file of its name; defined only where it was built in.
std::unique_ptr<Backend> open_onnxruntime(const Request &request, const Spec &spec);
std::unique_ptr<Backend> open_openvino(const Request &request, const Spec &spec);
std::unique_ptr<Backend> open_tensorrt(const Request &request, const Spec &spec);

}  // namespace destseg_core
