// TensorRT 10 and 11, and TensorRT-RTX: one API for all that is called here.
//
// Each lane has a context, a stream, pinned host memory and device memory of its own, so the copies
// of one lane overlap the inference of another. From the second run of a batch size on, copies and
// inference run as one CUDA graph; where they cannot be captured, they are queued one by one.
#include <NvInferRuntime.h>

#include <fstream>
#include <mutex>
#include <optional>

#include "backend.hpp"
#include "cuda_owned.hpp"
#include "engine_record.hpp"
#include "error.hpp"
#include "shared_library.hpp"
#include "text.hpp"

#define DESTSEG_TEXT_(x) #x
#define DESTSEG_TEXT(x) DESTSEG_TEXT_(x)
#define DESTSEG_JOIN(a, b, c, d) \
  DESTSEG_TEXT(a) "." DESTSEG_TEXT(b) "." DESTSEG_TEXT(c) "." DESTSEG_TEXT(d)

namespace destseg_core {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr const char *kBuilder = "tensorrt-rtx";
constexpr const char *kVersion =
    DESTSEG_JOIN(TRT_MAJOR_RTX, TRT_MINOR_RTX, TRT_PATCH_RTX, TRT_BUILD_RTX);
constexpr std::int32_t kMajor = TRT_MAJOR_RTX;
#ifdef _WIN32
constexpr const char *kFile =
    "tensorrt_rtx_" DESTSEG_TEXT(TRT_MAJOR_RTX) "_" DESTSEG_TEXT(TRT_MINOR_RTX) ".dll";
constexpr const char *kStem = "tensorrt_rtx_";
#else
constexpr const char *kFile = "libtensorrt_rtx.so." DESTSEG_TEXT(TRT_MAJOR_RTX);
constexpr const char *kStem = "libtensorrt_rtx.so";
#endif
#else
constexpr const char *kBuilder = "tensorrt";
constexpr const char *kVersion =
    DESTSEG_JOIN(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH, NV_TENSORRT_BUILD);
constexpr std::int32_t kMajor = NV_TENSORRT_MAJOR;
#ifdef _WIN32
constexpr const char *kFile = "nvinfer_" DESTSEG_TEXT(NV_TENSORRT_MAJOR) ".dll";
constexpr const char *kStem = kFile;
#else
constexpr const char *kFile = "libnvinfer.so." DESTSEG_TEXT(NV_TENSORRT_MAJOR);
constexpr const char *kStem = "libnvinfer.so";
#endif
#endif

// Keeps TensorRT's last error, which its calls themselves only report as false or null.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const nvinfer1::AsciiChar *message) noexcept override {
    if (severity > Severity::kERROR || message == nullptr) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      last_ = message;
    } catch (...) {  // a log line is not worth a crash, and TensorRT takes no exceptions
    }
  }

  std::string last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_.empty() ? "no reason given" : one_line(last_);
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

std::vector<char> content_of(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes(static_cast<std::size_t>(std::filesystem::file_size(path)));
  if (!file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
    throw backend_error(path.u8string() + ": cannot be read. Check its permissions.");
  return bytes;
}

// What createInferRuntime() of the headers calls, which would have to be linked.
using CreateRuntime = void *(void *logger, std::int32_t version);

const LibraryNames &names() {
  static const LibraryNames the{
      "tensorrt",
      "DESTSEG_TENSORRT_LIBRARY",
      {kFile},
      kStem,
      "Install TensorRT (its archive, or the pip wheel's folder of libraries), of the release that "
      "this library was built for (" +
          std::string(kVersion) +
          "), and put its library beside this one, or name it in DESTSEG_TENSORRT_LIBRARY."};
  return the;
}

// A part of the loaded library's version; -1 where it does not tell.
std::int32_t version_part(LibraryHandle library, const char *part) {
  const std::string name = std::string("getInferLib") + part + "Version";
  auto *const get = function_of<std::int32_t()>(library, name.c_str());
  return get != nullptr ? get() : -1;
}

std::string why_not(LibraryHandle library) {
  if (find_function(library, "createInferRuntime_INTERNAL") == nullptr)
    return "it has no createInferRuntime_INTERNAL";
  const std::int32_t major = version_part(library, "Major");
  return major == -1 || major == kMajor
             ? ""
             : "its version is " + std::to_string(major) + ", expected " + std::to_string(kMajor);
}

struct TensorRt {
  CreateRuntime *create_runtime;
  std::string version;  // of the loaded library
};

TensorRt load() {
  LibraryHandle library = load_library(names(), why_not);
  std::string version;
  for (const char *part : {"Major", "Minor", "Patch", "Build"}) {
    const std::int32_t number = version_part(library, part);
    if (number == -1) version = kVersion;
    if (number == -1) break;
    version += (version.empty() ? "" : ".") + std::to_string(number);
  }
  return {function_of<CreateRuntime>(library, "createInferRuntime_INTERNAL"), version};
}

// Loads TensorRT at the first call. Throws Error (backend) where there is none.
const TensorRt &tensorrt() {
  static const TensorRt *const loaded = new TensorRt(load());  // tried again after a failure
  return *loaded;
}

// Major and minor number of the GPU's architecture, as NVIDIA numbers the attributes.
std::string architecture(int device) {
  std::string name = "sm_";
  for (const int attribute : {75, 76}) {
    int value = 0;
    check_cuda(cuda().cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(attribute), device),
               "device 'cuda:" + std::to_string(device) + "'");
    name += std::to_string(value);
  }
  return name;
}

Machine machine_of(int device) {
  return {kBuilder, tensorrt().version, gpu_name(device), architecture(device)};
}

nvinfer1::Dims dims_of(std::int64_t batch, std::initializer_list<int> sizes) {
  nvinfer1::Dims dims{};
  dims.d[dims.nbDims++] = batch;
  for (const int size : sizes) dims.d[dims.nbDims++] = size;
  return dims;
}

class TensorRtBackend final : public Backend {
 public:
  TensorRtBackend(const Request &request, const Spec &spec)
      : spec_(spec), device_(device_index(request.device)) {
    if (request.device == "cpu")
      throw backend_error("device 'cpu': " + request.path.filename().u8string() +
                          " is a TensorRT engine and runs on a GPU only. Pass device 'cuda', or "
                          "load the .onnx that it was built from.");
    int count = 0;
    check_cuda(cuda().cudaGetDeviceCount(&count), "device " + in_quotes(request.device));
    if (device_ >= count)
      throw backend_error("device " + in_quotes(request.device) + ": this machine has " +
                          std::to_string(count) + " CUDA devices. Use 0 to " +
                          std::to_string(count - 1) + ".");
    const DeviceScope scope(device_);
    check_engine(spec_, machine_of(device_));
    runtime_.reset(static_cast<nvinfer1::IRuntime *>(
        tensorrt().create_runtime(static_cast<nvinfer1::ILogger *>(&log_), NV_TENSORRT_VERSION)));
    const std::vector<char> bytes = content_of(request.path);
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
    if (!engine_) fail("deserialize_cuda_engine");
    check_tensors();
    check_profile();
  }

  std::unique_ptr<Lane> open_lane() override;
  std::string version() const override { return tensorrt().version; }

  const Spec &spec() const { return spec_; }
  int device() const { return device_; }

  [[noreturn]] void fail(const std::string &what) {
    throw backend_error(spec_.artifact.file + ": TensorRT failed at " + what + ": " + log_.last() +
                        ". If it goes on, rebuild the engine: " + rebuild_command(spec_));
  }

  std::unique_ptr<nvinfer1::IExecutionContext> context() {
    return std::unique_ptr<nvinfer1::IExecutionContext>(engine_->createExecutionContext());
  }

 private:
  // Buffers are sized by the spec, so the engine must agree with it.
  void check_tensors() const {
    using nvinfer1::DataType;
    using nvinfer1::TensorIOMode;
    const auto fits = [&](const std::string &name, TensorIOMode mode, DataType type,
                          const nvinfer1::Dims &shape) {
      const nvinfer1::Dims found = engine_->getTensorShape(name.c_str());
      bool same = engine_->getTensorIOMode(name.c_str()) == mode &&
                  engine_->getTensorDataType(name.c_str()) == type &&
                  found.nbDims == shape.nbDims;
      for (int i = 1; same && i < shape.nbDims; ++i)
        same = found.d[i] == shape.d[i] || found.d[i] == -1;
      return same;
    };
    const Size input = spec_.input, map = spec_.map;
    if (!fits(spec_.input_name, TensorIOMode::kINPUT, DataType::kUINT8,
              dims_of(-1, {input.height, input.width, 3})) ||
        !fits(spec_.map_name, TensorIOMode::kOUTPUT, DataType::kFLOAT,
              dims_of(-1, {map.height, map.width})) ||
        !fits(spec_.score_name, TensorIOMode::kOUTPUT, DataType::kFLOAT, dims_of(-1, {})) ||
        engine_->getNbIOTensors() != 3)
      throw spec_error(spec_.artifact.file + ": its tensors are not those of its spec. The pair was "
                       "mixed up; rebuild it: " + rebuild_command(spec_));
  }

  // The builder of this project makes one profile, for all batches of the spec.
  void check_profile() const {
    using nvinfer1::OptProfileSelector;
    const char *name = spec_.input_name.c_str();
    const std::int64_t fixed = engine_->getTensorShape(name).d[0];
    const auto side = [&](OptProfileSelector which) {
      return fixed != -1 ? fixed : engine_->getProfileShape(name, 0, which).d[0];
    };
    if (side(OptProfileSelector::kMIN) > spec_.batch.min ||
        side(OptProfileSelector::kMAX) < spec_.batch.max)
      throw spec_error(spec_.artifact.file + ": no optimization profile holds a batch of " +
                       std::to_string(spec_.batch.max) + ", which its spec promises. Rebuild it: " +
                       rebuild_command(spec_));
  }

  const Spec &spec_;
  const int device_;
  Log log_;  // outlives what logs to it
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

class TensorRtLane final : public Lane {
 public:
  explicit TensorRtLane(TensorRtBackend &backend)
      : backend_(backend),
        scope_once_(std::in_place, backend.device()),
        images_(largest() * spec().input.pixels() * 3),
        maps_(largest() * spec().map.pixels() * sizeof(float)),
        scores_(largest() * sizeof(float)),
        context_(backend.context()) {
    check_cuda(cuda().cudaStreamCreateWithFlags(stream_.receive(), cudaStreamNonBlocking), "stream");
    const bool bound =
        context_ && context_->setTensorAddress(spec().input_name.c_str(), images_.device()) &&
        context_->setTensorAddress(spec().map_name.c_str(), maps_.device()) &&
        context_->setTensorAddress(spec().score_name.c_str(), scores_.device());
    scope_once_.reset();
    if (!bound) backend_.fail("a context");
  }

  std::uint8_t *images(int) override { return static_cast<std::uint8_t *>(images_.host()); }

  void run(int count) override {
    const DeviceScope scope(backend_.device());
    if (count != shape_) {
      set_shape(count);
      enqueue(count);
    } else {
      if (!graph_ && capturable_) capture(count);
      if (graph_)
        check_cuda(cuda().cudaGraphLaunch(graph_->get(), stream_.get()), spec().artifact.file);
      else
        enqueue(count);
    }
    check_cuda(cuda().cudaStreamSynchronize(stream_.get()), spec().artifact.file);
    shape_ = count;
  }

  const float *maps() const override { return static_cast<const float *>(maps_.host()); }
  const float *scores() const override { return static_cast<const float *>(scores_.host()); }

 private:
  const Spec &spec() const { return backend_.spec(); }
  std::size_t largest() const { return static_cast<std::size_t>(spec().batch.max); }

  void set_shape(int count) {
    shape_ = 0;      // until a run of it has succeeded
    graph_.reset();  // a graph holds only as long as its context keeps the shape
    const Size size = spec().input;
    if (!context_->setInputShape(spec().input_name.c_str(),
                                 dims_of(count, {size.height, size.width, 3})))
      backend_.fail("set_input_shape");
  }

  void enqueue(int count) {
    const auto frames = static_cast<std::size_t>(count);
    const cudaStream_t stream = stream_.get();
    const std::string &what = spec().artifact.file;
    check_cuda(images_.copy_in(frames * spec().input.pixels() * 3, stream), what);
    if (!context_->enqueueV3(stream)) backend_.fail("an inference");
    check_cuda(maps_.copy_out(frames * spec().map.pixels() * sizeof(float), stream), what);
    check_cuda(scores_.copy_out(frames * sizeof(float), stream), what);
  }

  // The work of the current batch size as a graph; without one where it cannot be captured.
  void capture(int count) {
    auto graph = std::make_unique<CudaGraph>();
    auto executable = std::make_unique<CudaGraphExec>();
    if (captured(count, *graph) &&
        cuda().cudaGraphInstantiateWithFlags(executable->receive(), graph->get(), 0) == cudaSuccess) {
      graph_ = std::move(executable);
      return;
    }
    capturable_ = false;
    cuda().cudaGetLastError();  // so that it is not seen again by the next call
  }

  bool captured(int count, CudaGraph &graph) {
    if (cuda().cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess)
      return false;
    bool queued = true;
    try {
      enqueue(count);
    } catch (const Error &) {  // what cannot be captured still runs when queued
      queued = false;
    }
    return cuda().cudaStreamEndCapture(stream_.get(), graph.receive()) == cudaSuccess && queued;
  }

  TensorRtBackend &backend_;
  std::optional<DeviceScope> scope_once_;  // while the members below are made
  const CudaPair images_, maps_, scores_;
  CudaStream stream_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::unique_ptr<CudaGraphExec> graph_;
  int shape_ = 0;  // the batch that the context is set to
  bool capturable_ = true;
};

std::unique_ptr<Lane> TensorRtBackend::open_lane() {
  return std::make_unique<TensorRtLane>(*this);
}

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Request &request, const Spec &spec) {
  return std::make_unique<TensorRtBackend>(request, spec);
}

}  // namespace destseg_core
