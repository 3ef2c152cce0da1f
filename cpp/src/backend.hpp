// The interface of the back ends, as the predictor uses it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "log.hpp"
#include "spec.hpp"

namespace destseg_core {

// Runs one inference at a time, in memory of its own. One thread uses it at a time; several lanes
// of a back end may run at the same time.
class Lane {
 public:
  virtual ~Lane() = default;
  // Where to write the pixels of `count` images, (count, height, width, 3) RGB; valid until the
  // next call of it.
  virtual std::uint8_t *images(int count) = 0;
  // Score the first `count` images. Throws Error (backend).
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
  // Of ONNX Runtime on a CPU only: where the threads beside the calling one run, and whether they spin.
  std::vector<int> worker_cores;
  bool spinning = true;
  int streams = 0;     // calls that OpenVINO computes at the same time; 0 for one after another
  bool tuned = false;  // the above is what the artifact's tuning says
  Log log;
};

// The index in "cuda:<index>"; 0 without one.
int device_index(const std::string &device);
// A runtime's message as one line of at most that many bytes.
std::string one_line(const std::string &message, std::size_t most = 200);

// The back ends that were built in, in the order in which they are tried. The spec must outlive the
// back end.
std::vector<std::string> backend_names();
// Why the library of a back end cannot be loaded; "" when it is loaded now.
std::string missing_library(const std::string &backend);
std::unique_ptr<Backend> open_backend(const Request &request, const Spec &spec);

// Each is defined in the file of its name, and only where it was built in.
std::unique_ptr<Backend> open_onnxruntime(const Request &request, const Spec &spec);
std::unique_ptr<Backend> open_openvino(const Request &request, const Spec &spec);
std::unique_ptr<Backend> open_tensorrt(const Request &request, const Spec &spec);

// Load the library, which opening does, too. Throw Error (backend) where there is none.
void load_onnxruntime();
void load_openvino();

}  // namespace destseg_core
